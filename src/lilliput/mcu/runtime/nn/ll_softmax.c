/* Softmax over rows in fixed point, as TensorFlow Lite's int8 reference computes it: e^x for x <= 0 as e^(multiples of 1/4), bit by bit,
 * times a polynomial on [-1/4, 0); the reciprocal of the sum by three Newton steps. Qi.f is i integer and f fractional bits. */
#include "ll_exp.h"

LL_INLINE int32_t ll_shift_left_saturating(int32_t x, int32_t left) {
    int32_t limit = (1 << (31 - left)) - 1;
    return x > limit ? INT32_MAX : x < -limit ? INT32_MIN : (int32_t)((uint32_t)x << left);
}

/* 1 / (1 + a) for 0 <= a < 1, both Q0.31; Newton steps in Q2.29. */
static int32_t ll_one_over_one_plus(int32_t a) {
    int32_t half_denominator = (int32_t)(((int64_t)a + INT32_MAX + 1) / 2);
    int32_t x = 1515870810 + ll_product(half_denominator, -1010580540); /* 48/17 - 32/17 d */
    for (int i = 0; i < 3; i++) {
        int32_t error = (1 << 29) - ll_product(half_denominator, x);
        x += ll_shift_left_saturating(ll_product(x, error), 2);
    }
    return ll_shift_left_saturating(x, 1);
}

LL_INLINE int32_t ll_leading_zeros(uint32_t x) {
    int32_t count = 0;
    for (; !(x >> 31); x <<= 1) count++;
    return count;
}

void ll_softmax(const ll_softmax_params *params, const int8_t *input, int8_t *output, void *scratch) {
    (void)scratch;
    for (uint32_t row = 0; row < params->rows; row++, input += params->depth, output += params->depth) {
        int32_t largest = -128, sum = 0; /* sum in Q12.19 */
        for (uint32_t i = 0; i < params->depth; i++)
            if (input[i] > largest) largest = input[i];
        for (uint32_t i = 0; i < params->depth; i++) {
            int32_t diff = input[i] - largest;
            if (diff < params->diff_min) continue;
            sum += ll_divide_by_power(ll_exp_of_negative(ll_rescale(diff, params->multiplier, params->shift)), 12);
        }
        int32_t zeros = ll_leading_zeros((uint32_t)sum);
        int32_t reciprocal = ll_one_over_one_plus((int32_t)(((uint32_t)sum << zeros) - (UINT32_C(1) << 31)));
        for (uint32_t i = 0; i < params->depth; i++) {
            int32_t diff = input[i] - largest;
            if (diff < params->diff_min) {
                output[i] = -128;
                continue;
            }
            int32_t power = ll_exp_of_negative(ll_rescale(diff, params->multiplier, params->shift));
            output[i] = ll_code_of(ll_divide_by_power(ll_product(reciprocal, power), 12 - zeros + 31 - 8), -128, -128, 127);
        }
    }
}
