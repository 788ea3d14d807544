/* From sums to codes with one multiplier a channel: one at a time, or two pixels by four channels. */
#ifndef LL_SCALE_H
#define LL_SCALE_H

#include "ll_arith.h"

/* The high half of paired sums: (256 * a + b, b) -> a. */
LL_INLINE int32_t ll_unpair(int32_t both, int32_t low) { return (int32_t)((uint32_t)both - (uint32_t)low) >> 8; }

/* Twice (sum + half of the doubled bias); cannot overflow under a plain scale. */
LL_INLINE int32_t ll_twice(int32_t sum, int32_t doubled_bias) { return doubled_bias + 2 * sum; }

LL_INLINE int8_t ll_scale(const ll_scaling *s, const int32_t *constants, int32_t sum) {
    if (s->is_plain_scale) {
        int32_t offset = ll_plain_offset(s->zero_point, constants[2]);
        int32_t code = ll_rescale_plain(ll_twice(sum, constants[0]), constants[1], constants[2], offset);
        return (int8_t)ll_clamp(code, s->lower, s->upper);
    }
    int32_t with_bias = (int32_t)((uint32_t)sum + (uint32_t)constants[0]);
    return ll_code_of(ll_rescale(with_bias, constants[1], constants[2]), s->zero_point, s->lower, s->upper);
}

LL_INLINE uint32_t ll_clamp4(const ll_scaling *s, uint32_t codes) {
    return ll_min4(ll_max4(codes, ll_repeat4(s->lower)), ll_repeat4(s->upper));
}

/* Plain scale only. sums[2 * channel + pixel]. */
LL_INLINE void ll_store_2x4(const ll_scaling *s, const int32_t *constants, const int32_t *sums, int8_t *output,
                            int8_t *output1, int is_single) {
    int32_t code0[4], code1[4];
    for (int c = 0; c < 4; c++) {
        int32_t bias = constants[3 * c], multiplier = constants[3 * c + 1], right = constants[3 * c + 2];
        int32_t offset = ll_plain_offset(s->zero_point, right);
        code0[c] = ll_rescale_plain(ll_twice(sums[2 * c], bias), multiplier, right, offset);
        code1[c] = ll_rescale_plain(ll_twice(sums[2 * c + 1], bias), multiplier, right, offset);
    }
    uint32_t word0 = ll_pack4(code0[0], code0[1], code0[2], code0[3]);
    uint32_t word1 = ll_pack4(code1[0], code1[1], code1[2], code1[3]);
    if (s->lower != -128 || s->upper != 127) word0 = ll_clamp4(s, word0), word1 = ll_clamp4(s, word1);
    ll_store4(output, word0);
    if (!is_single) ll_store4(output1, word1);
}

#endif
