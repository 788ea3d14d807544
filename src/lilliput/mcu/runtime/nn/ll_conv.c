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

/* Sums over `quads` words of four codes, paired weights, four channels: sums[2 * channel + pixel]. */
#if LL_DSP
/* By hand and outside any function: eight sums, two codes, a weight and three pointers are all fourteen registers, and compilers spill. */
void ll_sum_2x4_paired(const uint32_t *codes, const uint32_t *weights, uint32_t quads, int32_t *sums);
__asm__(".pushsection .text.ll_sum_2x4_paired, \"ax\", %progbits\n"
        ".syntax unified\n"
        ".thumb\n"
        ".p2align 2\n"
        ".global ll_sum_2x4_paired\n"
        ".type ll_sum_2x4_paired, %function\n"
        ".macro ll_pair_step\n"
        "ldrd r2, r12, [r0], #8\n" /* codes of the first pixel, of the second */
        "ldr r3, [r1], #4\n"       /* AB */
        "smlad r4, r3, r2, r4\n"
        "smlad r5, r3, r12, r5\n"
        "sxtb16 r3, r3\n"
        "smlad r6, r3, r2, r6\n"
        "smlad r7, r3, r12, r7\n"
        "ldr r3, [r1], #4\n" /* CD */
        "smlad r8, r3, r2, r8\n"
        "smlad r9, r3, r12, r9\n"
        "sxtb16 r3, r3\n"
        "smlad r10, r3, r2, r10\n"
        "smlad r11, r3, r12, r11\n"
        ".endm\n"
        "ll_sum_2x4_paired:\n"
        "push {r3-r11, lr}\n"
        "add lr, r1, r2, lsl #4\n" /* end of the weights */
        "movs r4, #0\n"
        "movs r5, #0\n"
        "movs r6, #0\n"
        "movs r7, #0\n"
        "mov r8, #0\n"
        "mov r9, #0\n"
        "mov r10, #0\n"
        "mov r11, #0\n"
        "lsls r2, r2, #31\n"
        "beq 1f\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "cmp r1, lr\n"
        "beq 2f\n"
        "1:\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "ll_pair_step\n"
        "cmp r1, lr\n"
        "bne 1b\n"
        "2:\n"
        "pop {r3}\n"
        "sub r4, r4, r6\n"
        "asr r4, r4, #8\n"
        "sub r5, r5, r7\n"
        "asr r5, r5, #8\n"
        "sub r8, r8, r10\n"
        "asr r8, r8, #8\n"
        "sub r9, r9, r11\n"
        "asr r9, r9, #8\n"
        "stm r3, {r4-r11}\n"
        "pop {r4-r11, pc}\n"
        ".size ll_sum_2x4_paired, . - ll_sum_2x4_paired\n"
        ".purgem ll_pair_step\n"
        ".popsection\n");
#else
static void ll_sum_2x4_paired(const uint32_t *codes, const uint32_t *weights, uint32_t quads, int32_t *sums) {
    for (int i = 0; i < 8; i++) sums[i] = 0;
    for (uint32_t step = 0; step < 2 * quads; step++, codes += 2) {
        for (int pair = 0; pair < 2; pair++) {
            uint32_t raw = *weights++, low = ll_evens(raw);
            for (int pixel = 0; pixel < 2; pixel++) {
                sums[4 * pair + pixel] = ll_smlad(raw, codes[pixel], sums[4 * pair + pixel]);
                sums[4 * pair + 2 + pixel] = ll_smlad(low, codes[pixel], sums[4 * pair + 2 + pixel]);
            }
        }
    }
    for (int i = 0; i < 4; i++) {
        int high = i + (i & 2); /* 0 1 4 5 */
        sums[high] = ll_unpair(sums[high], sums[high + 2]);
    }
}
#endif

/* Two channels, either packing: the last block, and the whole of a plain layer two channels at a time. */
LL_INLINE void ll_sum_2x2(const uint32_t *codes, const uint32_t *weights, uint32_t quads, uint32_t quad_words, int is_paired,
                          int32_t *sums) {
    int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0;
    uint32_t second = is_paired ? quad_words / 2 : 0;
    for (; quads; quads--, codes += 4, weights += quad_words) {
        uint32_t ae, ao, be, bo;
        if (is_paired) {
            ae = weights[0], ao = weights[second];
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

/* All `channels` outputs of two pixels from their codes; the second pixel is computed but not written where is_single. */
static LL_NOINLINE void ll_conv_pixels(const ll_scaling *scaling, const int32_t *constants, const uint32_t *weights, int is_paired,
                                       const uint32_t *codes, uint32_t quads, uint32_t channels, int8_t *output,
                                       int8_t *output1, int is_single) {
    int32_t sums[8];
    for (; channels; constants += 12, output += 4, output1 += 4) {
        uint32_t block = channels < 4 ? channels : 4, quad_words = block > 2 ? 4 : 2;
        if (is_paired) {
            if (block > 2) ll_sum_2x4_paired(codes, weights, quads, sums);
            else ll_sum_2x2_paired(codes, weights, quads, quad_words, sums);
        } else {
            ll_sum_2x2_plain(codes, weights, quads, quad_words, sums);
            if (block > 2) ll_sum_2x2_plain(codes, weights + 2, quads, quad_words, sums + 4);
        }
        weights += quads * quad_words;
        channels -= block;
        if (block == 4 && scaling->is_plain_scale) {
            ll_store_2x4(scaling, constants, sums, output, output1, is_single);
        } else {
            for (uint32_t c = 0; c < block; c++) {
                output[c] = ll_scale(scaling, constants + 3 * c, sums[2 * c]);
                if (!is_single) output1[c] = ll_scale(scaling, constants + 3 * c, sums[2 * c + 1]);
            }
        }
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
                codes = ll_widen_value(codes, p->in_zero_point, (uint32_t)before * channels);
                codes = ll_widen(codes, from, (uint32_t)inside * channels);
                codes = ll_widen_value(codes, p->in_zero_point, (uint32_t)after * channels);
            } else {
                ll_fill_bytes(fill, p->in_zero_point, (uint32_t)before * channels);
                fill += (uint32_t)before * channels;
                ll_copy_bytes(fill, from, (uint32_t)inside * channels);
                fill += (uint32_t)inside * channels;
                ll_fill_bytes(fill, p->in_zero_point, (uint32_t)after * channels);
                fill += (uint32_t)after * channels;
            }
        }
    }
    if (!is_aligned) {
        uint32_t count = (uint32_t)(fill - patch);
        while (count % 4) patch[count++] = 0; /* meets weights of 0 */
        ll_widen(codes, patch, count);
    }
}

/* Where `sum` is given, each pair of pixels goes to `plain` first and is added to the skip from there. */
LL_INLINE void ll_conv_image(const ll_conv_params *p, const int8_t *input, const ll_add_params *add, const int8_t *skip,
                             int8_t *output, void *scratch, int is_1x1) {
    uint32_t group_in = p->in_c / p->groups, group_out = p->out_c / p->groups;
    uint32_t quads = ((uint32_t)p->kernel_h * p->kernel_w * group_in + 3) / 4;
    uint32_t *codes = scratch;
    int8_t *patch = (int8_t *)(codes + 4 * quads);
    int8_t *plain = patch + (group_in % 4 ? 4 * quads : 0);
    uint32_t pixels = (uint32_t)p->out_h * p->out_w, step = 2u * p->out_c;
    int32_t y = 0, x = 0;
    for (uint32_t done = 0; done < pixels; done += 2) {
        int is_single = done + 1 == pixels;
        int32_t x1 = x + 1, y1 = y;
        if (x1 == p->out_w) x1 = 0, y1++;
        int8_t *to = add ? plain : output;
        for (uint32_t group = 0; group < p->groups; group++) {
            const int8_t *from = input + group * group_in;
            uint32_t first = group * group_out;
            if (is_1x1) {
                ll_widen(codes, from, group_in);
                if (!is_single) ll_widen(codes + 1, from + group_in, group_in);
                input += 2 * group_in;
            } else {
                ll_gather(p, from, group_in, y, x, codes, patch);
                if (!is_single) ll_gather(p, from, group_in, y1, x1, codes + 1, patch);
            }
            ll_conv_pixels(&p->scaling, p->scaling.channels + 3 * first, p->weights + group * p->group_words, p->is_paired,
                           codes, quads, group_out, to + first, to + first + p->out_c, is_single);
            LL_COUNT((is_single ? 1 : 2) * (uint64_t)p->kernel_h * p->kernel_w * group_in * group_out);
        }
        if (add) {
            ll_add_codes(add, plain, skip, output, is_single ? p->out_c : step);
            skip += step;
        }
        output += step;
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
