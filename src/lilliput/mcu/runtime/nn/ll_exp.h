/* e^x for x <= 0 in fixed point: e^(multiples of 1/4), bit by bit, times a polynomial on [-1/4, 0). Qi.f is i integer and f fractional bits. */
#ifndef LL_EXP_H
#define LL_EXP_H

#include "ll_arith.h"

/* Products of fractions; no pair of operands here is twice INT32_MIN, the one case that would not fit. */
LL_INLINE int32_t ll_product(int32_t a, int32_t b) { return ll_multiply_high(a, b); }

/* e^a for -1/4 <= a < 0, both Q0.31: Taylor of degree 4 about -1/8. */
static int32_t ll_exp_of_quarter(int32_t a) {
    const int32_t exp_of_minus_eighth = 1895147668, third = 715827883;
    int32_t x = a + (1 << 28);
    int32_t x2 = ll_product(x, x), x3 = ll_product(x2, x), x4 = ll_product(x2, x2);
    int32_t tail = ll_divide_by_power(ll_product(ll_divide_by_power(x4, 2) + x3, third) + x2, 1);
    return exp_of_minus_eighth + ll_product(exp_of_minus_eighth, x + tail);
}

/* e^a for a <= 0 in Q5.26; the result is Q0.31. */
static int32_t ll_exp_of_negative(int32_t a) {
    /* e^-(2^i) for i = -2 ... 4 */
    static const int32_t factors[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter = 1 << 24;
    if (a == 0) return INT32_MAX;
    int32_t in_quarter = (a & (quarter - 1)) - quarter;
    int32_t result = ll_exp_of_quarter(in_quarter * 32), rest = in_quarter - a;
    for (int i = 0; i < 7; i++)
        if (rest & (quarter << i)) result = ll_product(result, factors[i]);
    return result;
}

#endif
