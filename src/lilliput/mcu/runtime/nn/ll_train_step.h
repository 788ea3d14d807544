/* How far trained numbers move, and the moves. */
#ifndef LL_TRAIN_STEP_H
#define LL_TRAIN_STEP_H

#include "ll_train_arith.h"

/* Of one output channel: its factor times the rate, and how far its product with a gradient is shifted. */
typedef struct {
    uint32_t factor;
    int32_t right;
} ll_pace;

LL_INLINE ll_pace ll_pace_of(const int32_t *factors, uint32_t channel, int32_t exponent, const ll_train_state *state) {
    ll_pace p;
    p.factor = (uint32_t)(((uint64_t)(uint32_t)factors[2 * channel] * state->rate) >> 15);
    p.right = -(exponent + factors[2 * channel + 1]);
    return p;
}

/* gradient * factor / 2^right, rounded half away from zero, at most 2^31 - 1 either way. */
LL_INLINE int32_t ll_delta(int32_t gradient, ll_pace p) {
    const uint64_t product = (uint64_t)ll_magnitude(gradient) * p.factor; /* below 2^62 */
    uint64_t magnitude;
    if (p.right > 32 && p.right < 63) { /* as the next but one, but the low word is only rounded away */
        const uint32_t high = (uint32_t)(product >> 32);
        const int32_t rounded = (int32_t)((high + (UINT32_C(1) << (p.right - 33))) >> (p.right - 32));
        return gradient < 0 ? -rounded : rounded;
    }
    if (p.right >= 63) magnitude = 0;
    else if (p.right > 0) magnitude = (product + (UINT64_C(1) << (p.right - 1))) >> p.right;
    else {
        const int32_t left = p.right < -31 ? 31 : -p.right;
        magnitude = product > (uint64_t)(INT32_MAX >> left) ? INT32_MAX : product << left;
    }
    if (magnitude > INT32_MAX) magnitude = INT32_MAX;
    return gradient < 0 ? -(int32_t)magnitude : (int32_t)magnitude;
}

LL_INLINE uint32_t ll_random(uint32_t *state) { /* Marsaglia's xorshift32 */
    uint32_t x = *state;
    x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    return *state = x;
}

/* weight - delta in 2^-24 of a code, by one of the rules for int8 masters. */
LL_INLINE int8_t ll_move_code(int8_t weight, int32_t delta, uint32_t rule, uint32_t random) {
    int64_t moved = (int64_t)weight * (1 << 24) - delta, code;
    if (rule == LL_TRAIN_CHANCE) code = (moved + (random >> 8)) >> 24;
    else {
        const int64_t half = rule == LL_TRAIN_NEAREST ? 1 << 23 : 0;
        code = moved < 0 ? -((half - moved) >> 24) : (half + moved) >> 24;
    }
    return (int8_t)(code < -127 ? -127 : code > 127 ? 127 : code);
}

LL_INLINE int16_t ll_move_q7_8(int16_t master, int32_t delta) {
    const int32_t largest = 127 * 256;
    return (int16_t)ll_clamp(master - ll_clamp(delta, -2 * largest, 2 * largest), -largest, largest);
}

#endif
