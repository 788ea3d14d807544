/* From sums to codes with one multiplier a channel. */
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

#endif
