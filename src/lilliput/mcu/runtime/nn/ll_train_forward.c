/* Element-wise forward operations that also say where they clamped, and the channels kept for a weight gradient. */
#include "ll_train_arith.h"

void ll_train_add(const ll_add_params *params, const int8_t *first, const int8_t *second, int8_t *output, uint8_t *mask,
                  void *scratch) {
    const ll_add_params *p = params;
    (void)scratch;
    for (uint32_t start = 0; start < p->count; start += 8) {
        const uint32_t count = p->count - start < 8 ? p->count - start : 8;
        uint32_t inside = 0;
        for (uint32_t i = 0; i < count; i++) {
            const int32_t a = ll_rescale((*first++ - p->zero_point[0]) * (1 << 20), p->multiplier[0], p->shift[0]);
            const int32_t b = ll_rescale((*second++ - p->zero_point[1]) * (1 << 20), p->multiplier[1], p->shift[1]);
            const int32_t sum = ll_rescale((int32_t)((uint32_t)a + (uint32_t)b), p->multiplier[2], p->shift[2]);
            const ll_train_code code = ll_train_clamp_wide(sum, p->zero_point[2], p->lower, p->upper);
            *output++ = (int8_t)code.code;
            inside |= code.is_inside << i;
        }
        *mask++ = (uint8_t)inside;
    }
}

void ll_train_mean(const ll_mean_params *params, const int8_t *input, int8_t *output, uint8_t *mask, void *scratch) {
    const ll_mean_params *p = params;
    (void)scratch;
    for (uint32_t start = 0; start < p->channels; start += 8) {
        const uint32_t count = p->channels - start < 8 ? p->channels - start : 8;
        uint32_t inside = 0;
        for (uint32_t i = 0; i < count; i++) {
            const int8_t *from = input + start + i;
            int32_t sum = -(int32_t)p->pixels * p->in_zero_point;
            for (uint32_t pixel = 0; pixel < p->pixels; pixel++, from += p->channels) sum += *from;
            const int32_t x = ll_rescale(sum, p->multiplier, p->shift);
            const ll_train_code code = ll_train_clamp_wide(x, p->zero_point, p->lower, p->upper);
            output[start + i] = (int8_t)code.code;
            inside |= code.is_inside << i;
        }
        *mask++ = (uint8_t)inside;
    }
}

void ll_train_keep(const ll_train_keep_params *params, const int8_t *input, int8_t *output, void *scratch) {
    (void)scratch;
    for (uint32_t pixel = 0; pixel < params->pixels; pixel++, input += params->channels)
        for (uint32_t s = 0; s < params->selected; s++) *output++ = input[params->selection[s]];
}
