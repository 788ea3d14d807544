/* Product, and any function of one code by table. */
#include "ll_arith.h"

void ll_mul(const ll_mul_params *params, const int8_t *first, const int8_t *second, int8_t *output, void *scratch) {
    uint32_t period = params->count / params->repeat;
    (void)scratch;
    for (uint32_t turn = 0; turn < params->repeat; turn++) {
        for (uint32_t i = 0; i < period; i++) {
            int32_t product = (*first++ - params->zero_point[0]) * (second[i] - params->zero_point[1]);
            int32_t x = ll_rescale(product, params->multiplier, params->shift);
            *output++ = ll_code_of(x, params->zero_point[2], params->lower, params->upper);
        }
    }
}

void ll_lookup(const ll_lookup_params *params, const int8_t *input, int8_t *output, void *scratch) {
    const int8_t *middle = params->table + 128;
    (void)scratch;
    for (uint32_t i = 0; i < params->count; i++) output[i] = middle[input[i]];
}
