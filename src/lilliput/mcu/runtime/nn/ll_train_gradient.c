/* Gradients of activations, element by element: masked, scaled per channel, added, and average pooling backwards. */
#include "ll_train_arith.h"

int32_t ll_train_mask_gradient(const ll_train_mask_params *params, const int16_t *gradient, const uint8_t *mask, int16_t *output,
                               void *scratch, int32_t exponent) {
    uint32_t index = 0;
    (void)scratch;
    for (uint32_t pixel = 0; pixel < params->pixels; pixel++) {
        const int16_t *from = params->is_repeated ? gradient : gradient + index;
        for (uint32_t c = 0; c < params->channels; c++, index++) output[index] = ll_bit(mask, index) ? from[c] : 0;
    }
    return exponent;
}

int32_t ll_train_scale_gradient(const ll_train_scale_params *params, const int16_t *gradient, const uint8_t *mask, int16_t *output,
                                void *scratch, int32_t exponent) {
    const ll_train_scale_params *p = params;
    const int32_t limit = 1 << p->bits;
    uint32_t index = 0, bits = 0xFFu;
    int32_t shift = 0;
    (void)scratch;
    for (uint32_t pixel = 0; pixel < p->pixels; pixel++) {
        const int16_t *from = p->is_repeated ? gradient : gradient + index;
        for (uint32_t c = 0; c < p->channels; c++, index++, bits >>= 1) {
            if (index % 8 == 0) bits = mask ? mask[index / 8] : 0xFFu;
            const int32_t m = bits & 1u ? from[c] : 0;
            const int16_t size = (int16_t)(m < 0 ? -m : m); /* 15 bits */
            int32_t magnitude = (int32_t)(((int64_t)p->factors[c] * size) >> 16) >> shift;
            if (magnitude >= limit) {
                const int32_t more = ll_bit_length((uint32_t)magnitude) - p->bits;
                ll_train_shift_more(output, 1, index, 0, more);
                shift += more, magnitude >>= more;
            }
            output[index] = (int16_t)(m < 0 ? -magnitude : magnitude);
        }
    }
    return exponent + p->factor_exponent + 16 + shift;
}

int32_t ll_train_add_gradients(const ll_train_sum_params *params, const int16_t *first, const int16_t *second, int16_t *output,
                               void *scratch, int32_t first_exponent, int32_t second_exponent) {
    int32_t right[2] = {0, 0}, shift = 0;
    (void)scratch;
    first_exponent += params->factor_exponent[0], second_exponent += params->factor_exponent[1];
    const int32_t apart = first_exponent - second_exponent;
    right[apart > 0] = ll_clamp(apart < 0 ? -apart : apart, 0, 31); /* products have 30 bits */
    for (uint32_t i = 0; i < params->count; i++) {
        const int32_t sum = ll_truncate(first[i] * params->factor[0], right[0]) + ll_truncate(second[i] * params->factor[1], right[1]);
        const int32_t more = ll_bit_length(ll_magnitude(sum)) - LL_GRADIENT_BITS - shift;
        if (more > 0) {
            ll_train_shift_more(output, 1, i, 0, more);
            shift += more;
        }
        output[i] = (int16_t)ll_truncate(sum, shift);
    }
    return (apart > 0 ? first_exponent : second_exponent) + shift;
}

/* Output positions whose windows hold a position, along one axis. */
LL_INLINE void ll_windows_over(int32_t position, int32_t pad, int32_t kernel, int32_t stride, int32_t count, int32_t *first,
                               int32_t *end) {
    const int32_t low = position + pad - kernel + 1; /* first * stride >= low */
    *first = low > 0 ? (low + stride - 1) / stride : 0;
    *end = (position + pad) / stride + 1;
    if (*end > count) *end = count;
}

int32_t ll_train_pool_dx(const ll_train_pool_params *params, const int16_t *gradient, int16_t *output, void *scratch,
                         int32_t exponent) {
    const ll_train_pool_params *p = params;
    uint32_t index = 0;
    int32_t shift = 0;
    (void)scratch;
    for (int32_t y = 0; y < p->in_h; y++) {
        int32_t y0, y1;
        ll_windows_over(y, p->pad_top, p->kernel_h, p->stride_h, p->out_h, &y0, &y1);
        for (int32_t x = 0; x < p->in_w; x++) {
            int32_t x0, x1;
            ll_windows_over(x, p->pad_left, p->kernel_w, p->stride_w, p->out_w, &x0, &x1);
            for (int32_t c = 0; c < p->channels; c++, index++) {
                int32_t sum = 0;
                for (int32_t i = y0; i < y1; i++)
                    for (int32_t j = x0; j < x1; j++)
                        sum += gradient[(i * p->out_w + j) * p->channels + c] * (p->row_weights[i] * p->column_weights[j]);
                const int32_t more = ll_bit_length(ll_magnitude(sum)) - LL_GRADIENT_BITS - shift;
                if (more > 0) {
                    ll_train_shift_more(output, 1, index, 0, more);
                    shift += more;
                }
                output[index] = (int16_t)ll_truncate(sum, shift);
            }
        }
    }
    return exponent + shift;
}
