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
