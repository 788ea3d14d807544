/* Fully connected layer on one vector: each weight is used once, so codes are widened on the fly and no scratch is needed.
 * Weights are packed as for a convolution (ll_conv.c). */
#include "ll_scale.h"

/* Four codes times the weights of four channels, or two. raw[channel] collects sums that ll_unpair splits. */
LL_INLINE void ll_step(uint32_t codes, const uint32_t *weights, int channels, int is_paired, int32_t *raw) {
    uint32_t evens = ll_evens(codes), odds = ll_odds(codes);
    if (is_paired) {
        for (int c = 0; c < channels; c += 2) {
            uint32_t w = weights[c / 2];
            raw[c] = ll_smlad(w, evens, raw[c]);
            raw[c + 1] = ll_smlad(ll_evens(w), evens, raw[c + 1]);
            w = weights[channels / 2 + c / 2];
            raw[c] = ll_smlad(w, odds, raw[c]);
            raw[c + 1] = ll_smlad(ll_evens(w), odds, raw[c + 1]);
        }
    } else {
        for (int c = 0; c < channels; c++) {
            raw[c] = ll_smlad(ll_evens(weights[c]), evens, raw[c]);
            raw[c] = ll_smlad(ll_odds(weights[c]), odds, raw[c]);
        }
    }
}

LL_INLINE void ll_sum(const int8_t *input, const uint32_t *weights, uint32_t count, int channels, int is_paired, int32_t *sums) {
    int32_t raw[4] = {0, 0, 0, 0};
    const int8_t *end = input + (count & ~3u);
    if (count & 4) ll_step(ll_load4(input), weights, channels, is_paired, raw), input += 4, weights += channels;
    for (; input != end; input += 8, weights += 2 * channels) {
        ll_step(ll_load4(input), weights, channels, is_paired, raw);
        ll_step(ll_load4(input + 4), weights + channels, channels, is_paired, raw);
    }
    if (count & 3) { /* the bytes after the input meet weights of 0, but must not be read */
        uint32_t word = (uint8_t)input[0];
        if ((count & 3) > 1) word |= (uint32_t)(uint8_t)input[1] << 8;
        if ((count & 3) > 2) word |= (uint32_t)(uint8_t)input[2] << 16;
        ll_step(word, weights, channels, is_paired, raw);
    }
    for (int c = 0; c < channels; c++) sums[c] = is_paired && c % 2 == 0 ? ll_unpair(raw[c], raw[c + 1]) : raw[c];
}

/* Outputs of a plain scale from paired weights: the way of nearly all blocks. */
LL_INLINE uint32_t ll_block(const ll_linear_params *p, const int8_t *input, const uint32_t *weights, const int32_t *constants,
                            int channels) {
    int32_t codes[4] = {0, 0, 0, 0};
    ll_sum(input, weights, p->in_c, channels, 1, codes);
    for (int c = 0; c < channels; c++, constants += 3) {
        int32_t offset = ll_plain_offset(p->scaling.zero_point, constants[2]);
        codes[c] = ll_rescale_plain(ll_twice(codes[c], constants[0]), constants[1], constants[2], offset);
    }
    uint32_t word = ll_pack4(codes[0], codes[1], codes[2], codes[3]);
    return ll_min4(ll_max4(word, ll_repeat4(p->scaling.lower)), ll_repeat4(p->scaling.upper));
}

static LL_NOINLINE uint32_t ll_block_4(const ll_linear_params *p, const int8_t *input, const uint32_t *weights,
                                       const int32_t *constants) {
    return ll_block(p, input, weights, constants, 4);
}

static LL_NOINLINE uint32_t ll_block_2(const ll_linear_params *p, const int8_t *input, const uint32_t *weights,
                                       const int32_t *constants) {
    return ll_block(p, input, weights, constants, 2);
}

/* Whole blocks of four channels from an input of whole words. The assembly knows the offsets. */
typedef struct {
    const int8_t *input, *end;
    const uint32_t *weights;
    const int32_t *constants;
    uint32_t blocks, odd; /* 2 * zero_point + 1, see ll_plain_offset */
    uint32_t lower, upper; /* four times each */
} ll_vector;

#if LL_DSP
void ll_linear_blocks(const ll_vector *job, int8_t *output, uint32_t input_bytes);

/* Sums of A B C D in r4 to r7, A and C still 256 * a + b; two codes in r2, r3; weights in r8 to r11; the input's end in lr. The frame:
 * weights, constants, output, blocks left, input_bytes << 29, job. */
__asm__(".pushsection .text.ll_linear_blocks, \"ax\", %progbits\n"
        ".syntax unified\n"
        ".thumb\n"
        ".p2align 2\n"
        ".global ll_linear_blocks\n"
        ".type ll_linear_blocks, %function\n"
        ".macro ll_start sum, a, b\n"
        "smuad \\sum, \\a, \\b\n"
        ".endm\n"
        ".macro ll_go_on sum, a, b\n"
        "smlad \\sum, \\a, \\b, \\sum\n"
        ".endm\n"
        ".macro ll_quad add=ll_go_on\n"
        "ldr r2, [r0], #4\n"
        "ldm r1!, {r8, r9, r10, r11}\n"
        "sxtb16 r3, r2, ror #8\n"
        "sxtb16 r2, r2\n"
        "\\add r4, r8, r2\n"
        "\\add r6, r9, r2\n"
        "sxtb16 r8, r8\n"
        "sxtb16 r9, r9\n"
        "\\add r5, r8, r2\n"
        "\\add r7, r9, r2\n"
        "smlad r4, r10, r3, r4\n"
        "smlad r6, r11, r3, r6\n"
        "sxtb16 r10, r10\n"
        "sxtb16 r11, r11\n"
        "smlad r5, r10, r3, r5\n"
        "smlad r7, r11, r3, r7\n"
        ".endm\n"
        ".macro ll_scale_one sum, twice:vararg\n" /* as ll_rescale_plain */
        "ldm r3!, {r0, r1, r2}\n"                /* 2 * bias, multiplier, right */
        "lsl r8, r12, r2\n"
        "add \\sum, r0, \\sum, \\twice\n"
        "smmulr \\sum, \\sum, r1\n"
        "add \\sum, \\sum, \\sum, asr #31\n"
        "add \\sum, \\sum, r8, asr #1\n"
        "asr \\sum, \\sum, r2\n"
        "ssat \\sum, #8, \\sum\n"
        ".endm\n"
        "ll_linear_blocks:\n"
        "push {r0, r4-r11, lr}\n"
        "ldrd r4, r5, [r0, #8]\n"
        "ldr r6, [r0, #16]\n"
        "lsl r7, r2, #29\n" /* its sign: an odd number of quads */
        "sub sp, sp, #24\n"
        "strd r4, r5, [sp]\n"
        "strd r1, r6, [sp, #8]\n"
        "strd r7, r0, [sp, #16]\n"
        "1:\n"
        "ldr r1, [sp]\n"
        "ldrd r2, r3, [sp, #16]\n"
        "ldrd r0, lr, [r3]\n"
        "cmp r2, #0\n" /* nothing changes the flags until they are asked for */
        "ll_quad ll_start\n"
        "bmi 2f\n"
        "ll_quad\n"
        "2:\n"
        "cmp r0, lr\n"
        "beq 4f\n"
        "3:\n"
        "ll_quad\n"
        "ll_quad\n"
        "cmp r0, lr\n"
        "bne 3b\n"
        "4:\n"
        "ldr r10, [sp, #20]\n"
        "ldr r3, [sp, #4]\n"
        "str r1, [sp]\n"
        "ldr r12, [r10, #20]\n"
        "sub r4, r4, r5\n"
        "sub r6, r6, r7\n"
        "ll_scale_one r4, asr #7\n" /* 256 * a, halved seven times: 2 * a */
        "ll_scale_one r5, lsl #1\n"
        "ll_scale_one r6, asr #7\n"
        "ll_scale_one r7, lsl #1\n"
        "bfi r4, r5, #8, #8\n"
        "bfi r4, r6, #16, #8\n"
        "bfi r4, r7, #24, #8\n"
        "ldrd r1, r2, [r10, #24]\n"
        "ssub8 r5, r4, r1\n"
        "sel r4, r4, r1\n"
        "ssub8 r5, r2, r4\n"
        "sel r4, r4, r2\n"
        "ldrd r0, r1, [sp, #8]\n"
        "str r3, [sp, #4]\n"
        "str r4, [r0], #4\n"
        "subs r1, r1, #1\n"
        "strd r0, r1, [sp, #8]\n"
        "bne 1b\n"
        "add sp, sp, #24\n"
        "pop {r0, r4-r11, pc}\n"
        ".size ll_linear_blocks, . - ll_linear_blocks\n"
        ".purgem ll_quad\n"
        ".purgem ll_start\n"
        ".purgem ll_go_on\n"
        ".purgem ll_scale_one\n"
        ".popsection\n");
#endif

static LL_NOINLINE void ll_sum_2_paired(const int8_t *input, const uint32_t *weights, uint32_t count, int32_t *sums) {
    ll_sum(input, weights, count, 2, 1, sums);
}
static LL_NOINLINE void ll_sum_4_paired(const int8_t *input, const uint32_t *weights, uint32_t count, int32_t *sums) {
    ll_sum(input, weights, count, 4, 1, sums);
}
static LL_NOINLINE void ll_sum_2_plain(const int8_t *input, const uint32_t *weights, uint32_t count, int32_t *sums) {
    ll_sum(input, weights, count, 2, 0, sums);
}
static LL_NOINLINE void ll_sum_4_plain(const int8_t *input, const uint32_t *weights, uint32_t count, int32_t *sums) {
    ll_sum(input, weights, count, 4, 0, sums);
}

void ll_linear(const ll_linear_params *params, const int8_t *input, int8_t *output, void *scratch) {
    const ll_linear_params *p = params;
    const uint32_t *weights = p->weights;
    const int32_t *constants = p->scaling.channels;
    uint32_t left = p->out_c, quads = (p->in_c + 3) / 4;
    (void)scratch;
    if (p->is_paired && p->scaling.is_plain_scale) {
#if LL_DSP
        if (left >= 4 && p->in_c % 4 == 0) {
            ll_vector job = {input, input + p->in_c, weights, constants, left / 4, (uint32_t)(2 * p->scaling.zero_point + 1),
                             ll_repeat4(p->scaling.lower), ll_repeat4(p->scaling.upper)};
            ll_linear_blocks(&job, output, p->in_c);
            weights += job.blocks * 4 * quads, constants += job.blocks * 12, output += job.blocks * 4;
            left %= 4;
        }
#endif
        for (; left >= 4; left -= 4, weights += 4 * quads, constants += 12, output += 4)
            ll_store4(output, ll_block_4(p, input, weights, constants));
        if (left == 2) {
            uint32_t word = ll_block_2(p, input, weights, constants);
            output[0] = (int8_t)(uint8_t)word, output[1] = (int8_t)(uint8_t)(word >> 8);
            left = 0;
        }
    }
    while (left) {
        uint32_t block = left < 4 ? left : 4;
        int32_t sums[4];
        if (block > 2) (p->is_paired ? ll_sum_4_paired : ll_sum_4_plain)(input, weights, p->in_c, sums);
        else (p->is_paired ? ll_sum_2_paired : ll_sum_2_plain)(input, weights, p->in_c, sums);
        for (uint32_t c = 0; c < block; c++, constants += 3) *output++ = ll_scale(&p->scaling, constants, sums[c]);
        weights += quads * (block > 2 ? 4 : 2);
        left -= block;
    }
    LL_COUNT((uint64_t)p->in_c * p->out_c);
}
