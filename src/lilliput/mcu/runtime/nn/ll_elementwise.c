/* Product, and any function of one code by table. */
#include "ll_arith.h"

void ll_mul(const ll_mul_params *params, const int8_t *first, const int8_t *second, int8_t *output, void *scratch) {
    const ll_mul_params p = *params;
    uint32_t period = p.count / p.repeat;
    int32_t right = p.is_plain_scale ? -p.shift : 0, offset = ll_plain_offset(p.zero_point[2], right);
    (void)scratch;
    for (uint32_t turn = 0; turn < p.repeat; turn++) {
        for (uint32_t i = 0; i < period; i++) {
            int32_t product = (*first++ - p.zero_point[0]) * (second[i] - p.zero_point[1]);
            if (p.is_plain_scale) {
                int32_t code = ll_rescale_plain(2 * product, p.multiplier, right, offset);
                *output++ = (int8_t)ll_clamp(code, p.lower, p.upper);
            } else {
                *output++ = ll_code_of(ll_rescale(product, p.multiplier, p.shift), p.zero_point[2], p.lower, p.upper);
            }
        }
    }
}

void ll_lookup(const ll_lookup_params *params, const int8_t *input, int8_t *output, void *scratch) {
    const int8_t *middle = params->table + 128;
    (void)scratch;
    for (uint32_t i = 0; i < params->count; i++) output[i] = middle[input[i]];
}
