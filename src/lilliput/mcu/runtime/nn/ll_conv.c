/* Convolution: two output pixels by four output channels at a time, from activations widened once to 16 bits in scratch.
 *
 * Scratch holds, for two pixels, the K = kernel_h * kernel_w * channels codes under the window, rounded up to whole words of four: per
 * four codes k the words (k0,k2) of the first pixel, (k0,k2) of the second, (k1,k3) of the first, (k1,k3) of the second. Outside the image
 * a code is the input's zero point; the bias already has zero_point * sum(weights) taken off, so codes are multiplied as they are.
 *
 * Weights come in blocks of four output channels A B C D (the last block may have two: A B), per four codes:
 *   plain:  bytes A0..A3 | B0..B3 | C0..C3 | D0..D3
 *   paired: halfwords 256*A + B, two a word: AB(k0,k2) | CD(k0,k2) | AB(k1,k3) | CD(k1,k3)
 * With pairs, one SMLAD on the raw word sums 256*a + b and one on its sign-extended low bytes sums b, so a is their difference over 256:
 * half the unpacking. It is exact while |sum a| < 2^23, which the generator has checked for every channel (else it packs plain).
 */
#include "ll_add.h"
#include "ll_scale.h"

#ifdef LL_COUNT_MACS
uint64_t ll_macs;
#endif

/* What ll_blocks_2x4 does for every two pixels: `blocks` whole blocks of four channels, paired weights and a plain scale. The assembly
 * knows the offsets. */
typedef struct {
    const uint32_t *codes;
    uint32_t weight_bytes; /* of a block */
    const uint32_t *weights;
    const int32_t *constants;
    uint32_t blocks;
    int32_t odd; /* 2 * zero_point + 1, see ll_plain_offset */
    uint32_t is_clamped;
    uint32_t lower, upper; /* four times each */
} ll_blocks;

/* The second pixel is written first: the same output for both discards it. */
void ll_blocks_2x4(const ll_blocks *job, int8_t *output, int8_t *output1);

#if LL_DSP
/* By hand and outside any function: eight sums, two codes, two weights and two pointers are all fourteen registers, and compilers spill.
 * Sums: first pixel of A B C D in r4 r6 r8 r10, second in r5 r7 r9 r11; A and C still hold 256 * a + b until b is taken off. The frame: end
 * of the block's weights, weights, constants, blocks left, output, output1, job. */
__asm__(".pushsection .text.ll_blocks_2x4, \"ax\", %progbits\n"
        ".syntax unified\n"
        ".thumb\n"
        ".p2align 2\n"
        ".global ll_blocks_2x4\n"
        ".type ll_blocks_2x4, %function\n"
        ".macro ll_start sum, a, b\n"
        "smuad \\sum, \\a, \\b\n"
        ".endm\n"
        ".macro ll_go_on sum, a, b\n"
        "smlad \\sum, \\a, \\b, \\sum\n"
        ".endm\n"
        ".macro ll_pair_step add=ll_go_on\n"
        "ldrd r2, r12, [r0], #8\n" /* codes of the first pixel, of the second */
        "ldrd r3, lr, [r1], #8\n"  /* AB, CD */
        "\\add r4, r3, r2\n"
        "\\add r5, r3, r12\n"
        "sxtb16 r3, r3\n"
        "\\add r8, lr, r2\n"
        "\\add r9, lr, r12\n"
        "sxtb16 lr, lr\n"
        "\\add r6, r3, r2\n"
        "\\add r7, r3, r12\n"
        "\\add r10, lr, r2\n"
        "\\add r11, lr, r12\n"
        ".endm\n"
        ".macro ll_scale_two first, second, twice:vararg\n" /* as ll_rescale_plain */
        "ldm r3!, {r0, r1, r2}\n"                           /* 2 * bias, multiplier, right */
        "lsl r12, lr, r2\n"
        "add \\first, r0, \\first, \\twice\n"
        "add \\second, r0, \\second, \\twice\n"
        "smmulr \\first, \\first, r1\n"
        "smmulr \\second, \\second, r1\n"
        "add \\first, \\first, \\first, asr #31\n"
        "add \\second, \\second, \\second, asr #31\n"
        "add \\first, \\first, r12, asr #1\n"
        "add \\second, \\second, r12, asr #1\n"
        "asr \\first, \\first, r2\n"
        "asr \\second, \\second, r2\n"
        "ssat \\first, #8, \\first\n"
        "ssat \\second, #8, \\second\n"
        ".endm\n"
        "ll_blocks_2x4:\n"
        "push {r0, r4-r11, lr}\n"
        "ldrd r4, r5, [r0, #8]\n"
        "ldr r6, [r0, #16]\n"
        "sub sp, sp, #24\n"
        "strd r4, r5, [sp, #4]\n"
        "strd r6, r1, [sp, #12]\n"
        "str r2, [sp, #20]\n"
        "1:\n"
        "ldrd r0, r2, [r0]\n"
        "ldr r1, [sp, #4]\n"
        "add r3, r1, r2\n"
        "str r3, [sp]\n"
        "lsls r2, r2, #27\n" /* an odd number of quads? nothing changes the flags until that is asked */
        "ll_pair_step ll_start\n"
        "ll_pair_step\n"
        "bmi 2f\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "2:\n"
        "ldr r2, [sp]\n"
        "cmp r1, r2\n"
        "beq 4f\n"
        "3:\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "ldr r2, [sp]\n"
        "cmp r1, r2\n"
        "bne 3b\n"
        "4:\n"
        "ldr r12, [sp, #24]\n"
        "ldr r3, [sp, #8]\n"
        "str r1, [sp, #4]\n"
        "ldr lr, [r12, #20]\n"
        "sub r4, r4, r6\n"
        "sub r5, r5, r7\n"
        "sub r8, r8, r10\n"
        "sub r9, r9, r11\n"
        "ll_scale_two r4, r5, asr #7\n" /* 256 * a, halved seven times: 2 * a */
        "ll_scale_two r6, r7, lsl #1\n"
        "ll_scale_two r8, r9, asr #7\n"
        "ll_scale_two r10, r11, lsl #1\n"
        "bfi r4, r6, #8, #8\n"
        "bfi r4, r8, #16, #8\n"
        "bfi r4, r10, #24, #8\n"
        "bfi r5, r7, #8, #8\n"
        "bfi r5, r9, #16, #8\n"
        "bfi r5, r11, #24, #8\n"
        "ldr r0, [sp, #24]\n"
        "str r3, [sp, #8]\n"
        "ldr r1, [r0, #24]\n"
        "cbz r1, 5f\n"
        "ldrd r1, r2, [r0, #28]\n"
        "ssub8 r3, r4, r1\n"
        "sel r4, r4, r1\n"
        "ssub8 r3, r5, r1\n"
        "sel r5, r5, r1\n"
        "ssub8 r3, r2, r4\n"
        "sel r4, r4, r2\n"
        "ssub8 r3, r2, r5\n"
        "sel r5, r5, r2\n"
        "5:\n"
        "ldrd r1, r2, [sp, #16]\n"
        "ldr r3, [sp, #12]\n"
        "str r5, [r2], #4\n"
        "str r4, [r1], #4\n"
        "subs r3, r3, #1\n"
        "strd r1, r2, [sp, #16]\n"
        "str r3, [sp, #12]\n"
        "bne 1b\n"
        "add sp, sp, #24\n"
        "pop {r0, r4-r11, pc}\n"
        ".size ll_blocks_2x4, . - ll_blocks_2x4\n"
        ".purgem ll_pair_step\n"
        ".purgem ll_start\n"
        ".purgem ll_go_on\n"
        ".purgem ll_scale_two\n"
        ".popsection\n");
#else
void ll_blocks_2x4(const ll_blocks *job, int8_t *output, int8_t *output1) {
    const uint32_t *weights = job->weights;
    const int32_t *constants = job->constants;
    for (uint32_t block = job->blocks; block; block--, constants += 12, output += 4, output1 += 4) {
        int32_t sums[8] = {0, 0, 0, 0, 0, 0, 0, 0}; /* by channel and pixel */
        const uint32_t *codes = job->codes;
        for (uint32_t step = job->weight_bytes / 8; step; step--, codes += 2) {
            for (int pair = 0; pair < 2; pair++) {
                uint32_t raw = *weights++, low = ll_evens(raw);
                for (int pixel = 0; pixel < 2; pixel++) {
                    sums[4 * pair + pixel] = ll_smlad(raw, codes[pixel], sums[4 * pair + pixel]);
                    sums[4 * pair + 2 + pixel] = ll_smlad(low, codes[pixel], sums[4 * pair + 2 + pixel]);
                }
            }
        }
        for (int pixel = 1; pixel >= 0; pixel--) {
            int32_t code[4];
            for (int c = 0; c < 4; c++) {
                const int32_t *k = constants + 3 * c;
                int32_t sum = sums[2 * c + pixel];
                if (c % 2 == 0) sum = ll_unpair(sum, sums[2 * c + 2 + pixel]);
                code[c] = ll_rescale_plain(ll_twice(sum, k[0]), k[1], k[2], (int32_t)((uint32_t)job->odd << k[2]) >> 1);
            }
            uint32_t word = ll_pack4(code[0], code[1], code[2], code[3]);
            if (job->is_clamped) word = ll_min4(ll_max4(word, job->lower), job->upper);
            ll_store4(pixel ? output1 : output, word);
        }
    }
}
#endif

/* Two channels, either packing: sums[2 * channel + pixel]. */
LL_INLINE void ll_sum_2x2(const uint32_t *codes, const uint32_t *weights, uint32_t quads, uint32_t quad_words, int is_paired,
                          int32_t *sums) {
    int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0;
    for (; quads; quads--, codes += 4, weights += quad_words) {
        uint32_t ae, ao, be, bo;
        if (is_paired) {
            ae = weights[0], ao = weights[quad_words / 2];
            be = ll_evens(ae), bo = ll_evens(ao);
        } else {
            ae = ll_evens(weights[0]), ao = ll_odds(weights[0]);
            be = ll_evens(weights[1]), bo = ll_odds(weights[1]);
        }
        a0 = ll_smlad(ao, codes[2], ll_smlad(ae, codes[0], a0));
        a1 = ll_smlad(ao, codes[3], ll_smlad(ae, codes[1], a1));
        b0 = ll_smlad(bo, codes[2], ll_smlad(be, codes[0], b0));
        b1 = ll_smlad(bo, codes[3], ll_smlad(be, codes[1], b1));
    }
    sums[0] = is_paired ? ll_unpair(a0, b0) : a0;
    sums[1] = is_paired ? ll_unpair(a1, b1) : a1;
    sums[2] = b0;
    sums[3] = b1;
}

static LL_NOINLINE void ll_sum_2x2_paired(const uint32_t *codes, const uint32_t *weights, uint32_t quads, uint32_t quad_words,
                                          int32_t *sums) {
    ll_sum_2x2(codes, weights, quads, quad_words, 1, sums);
}

static LL_NOINLINE void ll_sum_2x2_plain(const uint32_t *codes, const uint32_t *weights, uint32_t quads, uint32_t quad_words,
                                         int32_t *sums) {
    ll_sum_2x2(codes, weights, quads, quad_words, 0, sums);
}

/* What ll_blocks_2x4 leaves: the last channels, plain weights, other scales; two channels at a time. */
static LL_NOINLINE void ll_rest(const ll_scaling *scaling, const int32_t *constants, const uint32_t *weights, int is_paired,
                                const uint32_t *codes, uint32_t quads, uint32_t channels, int8_t *output, int8_t *output1) {
    while (channels) {
        uint32_t block = channels < 4 ? channels : 4, quad_words = block > 2 ? 4 : 2;
        for (uint32_t half = 0; 2 * half < block; half++) {
            int32_t sums[4];
            if (is_paired) ll_sum_2x2_paired(codes, weights + half, quads, quad_words, sums);
            else ll_sum_2x2_plain(codes, weights + 2 * half, quads, quad_words, sums);
            for (int c = 0; c < (block - 2 * half > 1 ? 2 : 1); c++, constants += 3) {
                *output1++ = ll_scale(scaling, constants, sums[2 * c + 1]);
                *output++ = ll_scale(scaling, constants, sums[2 * c]);
            }
        }
        weights += quads * quad_words;
        channels -= block;
    }
}

/* `count` codes, a multiple of four, widened to where one pixel's words lie. */
LL_INLINE uint32_t *ll_widen(uint32_t *codes, const int8_t *from, uint32_t count) {
    for (; count >= 16; count -= 16, from += 16, codes += 16) {
        uint32_t a = ll_load4(from), b = ll_load4(from + 4), c = ll_load4(from + 8), d = ll_load4(from + 12);
        codes[0] = ll_evens(a), codes[2] = ll_odds(a);
        codes[4] = ll_evens(b), codes[6] = ll_odds(b);
        codes[8] = ll_evens(c), codes[10] = ll_odds(c);
        codes[12] = ll_evens(d), codes[14] = ll_odds(d);
    }
    for (; count; count -= 4, from += 4, codes += 4) {
        uint32_t a = ll_load4(from);
        codes[0] = ll_evens(a), codes[2] = ll_odds(a);
    }
    return codes;
}

LL_INLINE uint32_t *ll_widen_value(uint32_t *codes, int8_t value, uint32_t count) {
    uint32_t pair = ll_evens(ll_repeat4(value));
    for (; count; count -= 4, codes += 4) codes[0] = codes[2] = pair;
    return codes;
}

/* What lies under the window of one output pixel, for one group of `channels`, row by row; `patch` holds the bytes first where a pixel's
 * channels do not fill whole words. */
static LL_NOINLINE void ll_gather(const ll_conv_params *p, const int8_t *input, uint32_t channels, int32_t out_y, int32_t out_x,
                                  uint32_t *codes, int8_t *patch) {
    int32_t y = out_y * p->stride_h - p->pad_top, left = out_x * p->stride_w - p->pad_left;
    int in_one_run = p->dilation_w == 1 && p->groups == 1;
    int32_t runs = in_one_run ? 1 : p->kernel_w, taps = in_one_run ? p->kernel_w : 1;
    int is_aligned = channels % 4 == 0;
    int8_t *fill = patch;
    for (int32_t row = 0; row < p->kernel_h; row++, y += p->dilation_h) {
        int32_t x = left;
        for (int32_t run = 0; run < runs; run++, x += p->dilation_w) {
            int32_t before = 0, inside = taps, after = 0;
            if (y < 0 || y >= p->in_h || x >= p->in_w || x + taps <= 0) {
                before = taps, inside = 0;
            } else {
                if (x < 0) before = -x, inside += x;
                if (x + taps > p->in_w) after = x + taps - p->in_w, inside -= after;
            }
            const int8_t *from = inside ? input + (ptrdiff_t)(y * p->in_w + x + before) * p->in_c : input;
            if (is_aligned) {
                if (before) codes = ll_widen_value(codes, p->in_zero_point, (uint32_t)before * channels);
                codes = ll_widen(codes, from, (uint32_t)inside * channels);
                if (after) codes = ll_widen_value(codes, p->in_zero_point, (uint32_t)after * channels);
            } else {
                if (before) fill = ll_fill_bytes(fill, p->in_zero_point, (uint32_t)before * channels);
                fill = ll_copy_bytes(fill, from, (uint32_t)inside * channels);
                if (after) fill = ll_fill_bytes(fill, p->in_zero_point, (uint32_t)after * channels);
            }
        }
    }
    if (!is_aligned) {
        uint32_t count = (uint32_t)(fill - patch);
        while (count % 4) patch[count++] = 0; /* meets weights of 0 */
        ll_widen(codes, patch, count);
    }
}

/* The same for a window that lies inside the image, of one group and without horizontal dilation: its rows are runs of bytes. */
static LL_NOINLINE void ll_gather_inside(const ll_conv_params *p, const int8_t *from, uint32_t *codes, int8_t *patch) {
    uint32_t run = (uint32_t)p->kernel_w * p->in_c, count = run * p->kernel_h;
    ptrdiff_t step = (ptrdiff_t)p->dilation_h * p->in_w * p->in_c;
    const int8_t *end = from + p->kernel_h * step;
    if (run % 4 == 0) {
        for (; from != end; from += step) codes = ll_widen(codes, from, run);
    } else {
        int8_t *fill = patch;
        for (; from != end; from += step) fill = ll_copy_bytes(fill, from, run);
        for (; count % 4; count++) *fill++ = 0; /* meets weights of 0 */
        ll_widen(codes, patch, count);
    }
}

/* What lies under the window of one output pixel. */
LL_INLINE void ll_take_window(const ll_conv_params *p, const int8_t *input, uint32_t channels, int32_t out_y, int32_t out_x,
                              uint32_t *codes, int8_t *patch) {
    int32_t y = out_y * p->stride_h - p->pad_top, x = out_x * p->stride_w - p->pad_left;
    int is_inside = y >= 0 && y + (p->kernel_h - 1) * p->dilation_h < p->in_h && x >= 0 && x + p->kernel_w <= p->in_w;
    if (is_inside && p->groups == 1 && p->dilation_w == 1)
        ll_gather_inside(p, input + (ptrdiff_t)(y * p->in_w + x) * p->in_c, codes, patch);
    else ll_gather(p, input, channels, out_y, out_x, codes, patch);
}

/* Where there is an addition, each pair of pixels goes to `plain` first and is added to the skip from there. Where a longer result of a
   single tap is written over its input, the pairs go from the last to the first: what is still to be read lies before both. */
LL_INLINE void ll_conv_image(const ll_conv_params *p, const int8_t *input, const ll_add_params *add, const int8_t *skip,
                             int8_t *output, void *scratch, int is_1x1) {
    uint32_t group_in = p->in_c / p->groups, group_out = p->out_c / p->groups;
    uint32_t quads = ((uint32_t)p->kernel_h * p->kernel_w * group_in + 3) / 4;
    uint32_t *codes = scratch;
    int8_t *patch = (int8_t *)(codes + 4 * quads);
    int8_t *plain = patch + (group_in % 4 ? 4 * quads : 0);
    uint32_t pixels = (uint32_t)p->out_h * p->out_w;
    int is_back = output == input && (uint32_t)p->in_h * p->in_w * p->in_c < pixels * p->out_c;
    const ll_scaling *s = &p->scaling;
    uint32_t blocks = p->is_paired && s->is_plain_scale ? group_out / 4 : 0, done_channels = 4 * blocks;
    ll_blocks job = {codes, 16 * quads, p->weights, s->channels, blocks, 2 * s->zero_point + 1,
                     s->lower != -128 || s->upper != 127, ll_repeat4(s->lower), ll_repeat4(s->upper)};
    int32_t y = 0, x = 0;
    for (uint32_t done = 0; done < pixels; done += 2) {
        int is_single = done + 1 == pixels;
        uint32_t at = !is_back ? done : is_single ? 0 : pixels - 2 - done;
        if (is_back) y = at / (uint32_t)p->out_w, x = at % (uint32_t)p->out_w;
        int32_t x1 = x + 1, y1 = y;
        if (x1 == p->out_w) x1 = 0, y1++;
        int8_t *result = output + at * p->out_c, *to = add ? plain : result;
        for (uint32_t group = 0; group < p->groups; group++) {
            const int8_t *from = input + (is_1x1 ? at * group_in : group * group_in);
            uint32_t first = group * group_out;
            if (is_1x1) {
                ll_widen(codes, from, group_in);
                if (!is_single) ll_widen(codes + 1, from + group_in, group_in);
            } else {
                ll_take_window(p, from, group_in, y, x, codes, patch);
                if (!is_single) ll_take_window(p, from, group_in, y1, x1, codes + 1, patch);
            }
            int8_t *to0 = to + first, *to1 = is_single ? to0 : to0 + p->out_c; /* the same for both discards the second */
            job.weights = p->weights + group * p->group_words, job.constants = s->channels + 3 * first;
            if (blocks) ll_blocks_2x4(&job, to0, to1);
            if (done_channels < group_out)
                ll_rest(s, job.constants + 3 * done_channels, job.weights + done_channels * quads, p->is_paired, codes, quads,
                        group_out - done_channels, to0 + done_channels, to1 + done_channels);
            LL_COUNT((is_single ? 1 : 2) * (uint64_t)p->kernel_h * p->kernel_w * group_in * group_out);
        }
        if (add) {
            ll_add_codes(add, plain, skip, result, (is_single ? 1u : 2u) * p->out_c);
            skip += 2u * p->out_c;
        }
        x = x1 + 1, y = y1;
        if (x == p->out_w) x = 0, y++;
    }
}

void ll_conv(const ll_conv_params *params, const int8_t *input, int8_t *output, void *scratch) {
    ll_conv_image(params, input, NULL, NULL, output, scratch, 0);
}

/* One tap, stride 1, no padding, one group, channels in whole words: pixels follow each other in memory. */
void ll_conv_1x1(const ll_conv_params *params, const int8_t *input, int8_t *output, void *scratch) {
    ll_conv_image(params, input, NULL, NULL, output, scratch, 1);
}

void ll_conv_add(const ll_conv_add_params *params, const int8_t *input, const int8_t *skip, int8_t *output, void *scratch) {
    ll_conv_image(&params->conv, input, &params->add, skip, output, scratch, 0);
}

void ll_conv_1x1_add(const ll_conv_add_params *params, const int8_t *input, const int8_t *skip, int8_t *output, void *scratch) {
    ll_conv_image(&params->conv, input, &params->add, skip, output, scratch, 1);
}
