/* Depthwise convolution with one output channel an input channel, forward and with respect to its input: four channels at a time, the
 * weights of each place of the kernel widened once into two words in scratch (2 words a place). */
#include "ll_train_arith.h"

/* Weights of channels c to c + count - 1: forward in the order in which a word of codes is widened, (0,2) (1,3); backward as gradients lie,
 * (0,1) (2,3). */
static LL_NOINLINE void ll_widen(const ll_train_layer *l, uint32_t c, uint32_t count, uint32_t selected, int is_forward,
                                 uint32_t *panel) {
    const uint32_t taps = (uint32_t)l->kernel_h * l->kernel_w;
    for (uint32_t tap = 0; tap < taps; tap++) {
        int32_t w[4] = {0, 0, 0, 0};
        uint32_t s = selected;
        for (uint32_t i = 0; i < count; i++) {
            if (s < l->selected && l->channels[s] == c + i) {
                const uint32_t index = s++ * taps + tap;
                w[i] = l->master_bytes == 2 ? (((const int16_t *)l->masters)[index] + 128) >> 8 : ((const int8_t *)l->masters)[index];
            } else {
                w[i] = l->weights[(c + i) * taps + tap];
            }
        }
        const int32_t second = is_forward ? w[2] : w[1], third = is_forward ? w[1] : w[2];
        *panel++ = ll_lows((uint32_t)w[0], (uint32_t)second), *panel++ = ll_lows((uint32_t)third, (uint32_t)w[3]);
    }
}

LL_INLINE uint32_t ll_codes4(const int8_t *from, uint32_t count) {
    if (count == 4) return ll_load4(from);
    uint32_t word = 0;
    for (uint32_t i = 0; i < count; i++) word |= (uint32_t)(uint8_t)from[i] << 8 * i;
    return word;
}

LL_INLINE uint32_t ll_selected_in(const ll_train_layer *l, uint32_t c, uint32_t from) {
    while (from < l->selected && l->channels[from] < c) from++;
    return from;
}

void ll_train_depthwise(const ll_train_conv_params *params, const int8_t *input, int8_t *output, uint8_t *mask, void *scratch) {
    const ll_train_layer *l = params->layer;
    const uint32_t zero = ll_repeat2(-l->in_zero_point);
    const ptrdiff_t step = (ptrdiff_t)l->dilation_w * l->in_c;
    uint32_t *panel = scratch;
    uint32_t selected = 0;
    if (mask) ll_fill_bytes((int8_t *)mask, 0, ((uint32_t)l->out_h * l->out_w * l->out_c + 7) / 8);
    for (uint32_t c = 0; c < l->in_c; c += 4) {
        const uint32_t count = l->in_c - c < 4u ? l->in_c - c : 4;
        const int32_t *scales = params->scales + 2 * c;
        int32_t biases[4] = {0, 0, 0, 0};
        uint32_t index = c;
        selected = ll_selected_in(l, c, selected);
        ll_widen(l, c, count, selected, 1, panel);
        for (uint32_t i = 0; i < count; i++) biases[i] = ll_train_bias(l, c + i);
        for (int32_t y = 0; y < l->out_h; y++) {
            const int32_t top = y * l->stride_h - l->pad_top;
            int32_t y0, y1;
            ll_taps_in(top, l->in_h, l->kernel_h, l->dilation_h, &y0, &y1);
            for (int32_t x = 0; x < l->out_w; x++, index += l->out_c) {
                const int32_t left = x * l->stride_w - l->pad_left;
                int32_t x0, x1, sums[4] = {biases[0], biases[1], biases[2], biases[3]};
                ll_taps_in(left, l->in_w, l->kernel_w, l->dilation_w, &x0, &x1);
                for (int32_t i = y0; i < y1; i++) {
                    const int32_t pixel = (top + i * l->dilation_h) * l->in_w + left + x0 * l->dilation_w;
                    const int8_t *from = input + (ptrdiff_t)pixel * l->in_c + c;
                    const uint32_t *w = panel + 2 * (i * l->kernel_w + x0);
                    for (int32_t j = x0; j < x1; j++, from += step, w += 2) {
                        const uint32_t word = ll_codes4(from, count);
                        const uint32_t evens = ll_add2(ll_evens(word), zero), odds = ll_add2(ll_odds(word), zero);
                        sums[0] = ll_smlabb(w[0], evens, sums[0]), sums[1] = ll_smlabb(w[1], odds, sums[1]);
                        sums[2] = ll_smlatt(w[0], evens, sums[2]), sums[3] = ll_smlatt(w[1], odds, sums[3]);
                    }
                }
                uint32_t inside = 0;
                for (uint32_t i = 0; i < count; i++) {
                    const ll_train_code code = ll_train_scale(params, scales + 2 * i, sums[i]);
                    output[index + i] = (int8_t)code.code;
                    inside |= code.is_inside << i;
                }
                if (mask) ll_or_bits(mask, index, inside);
            }
        }
    }
}

int32_t ll_train_depthwise_dx(const ll_train_layer *layer, const int16_t *gradient, int16_t *output, void *scratch,
                              int32_t exponent) {
    const ll_train_layer *l = layer;
    uint32_t *panel = scratch;
    uint32_t selected = 0;
    int32_t shift = 0;
    for (uint32_t c = 0; c < l->in_c; c += 4) {
        const uint32_t count = l->in_c - c < 4u ? l->in_c - c : 4;
        int16_t *to = output + c;
        selected = ll_selected_in(l, c, selected);
        ll_widen(l, c, count, selected, 0, panel);
        for (int32_t y = 0; y < l->in_h; y++)
            for (int32_t x = 0; x < l->in_w; x++, to += l->in_c) {
                int32_t sums[4] = {0, 0, 0, 0};
                for (int32_t i = 0; i < l->kernel_h; i++) { /* y = out_y * stride + i * dilation - pad */
                    const int32_t down = y + l->pad_top - i * l->dilation_h, out_y = down / l->stride_h;
                    if (down < 0 || out_y >= l->out_h || out_y * l->stride_h != down) continue;
                    for (int32_t j = 0; j < l->kernel_w; j++) {
                        const int32_t right = x + l->pad_left - j * l->dilation_w, out_x = right / l->stride_w;
                        if (right < 0 || out_x >= l->out_w || out_x * l->stride_w != right) continue;
                        const int16_t *from = gradient + (ptrdiff_t)(out_y * l->out_w + out_x) * l->out_c + c;
                        const uint32_t *w = panel + 2 * (i * l->kernel_w + j);
                        if (count == 4) {
                            const uint32_t low = ll_load4(from), high = ll_load4(from + 2);
                            sums[0] = ll_smlabb(w[0], low, sums[0]), sums[1] = ll_smlatt(w[0], low, sums[1]);
                            sums[2] = ll_smlabb(w[1], high, sums[2]), sums[3] = ll_smlatt(w[1], high, sums[3]);
                        } else {
                            for (uint32_t k = 0; k < count; k++)
                                sums[k] += from[k] * (int16_t)(uint16_t)(w[k / 2] >> 16 * (k % 2));
                        }
                    }
                }
                uint32_t large = 0;
                for (uint32_t k = 0; k < count; k++) large |= ll_magnitude(sums[k]);
                const int32_t more = ll_bit_length(large) - LL_GRADIENT_BITS - shift;
                if (more > 0) {
                    const uint32_t pixels = (uint32_t)l->in_h * l->in_w, done = (uint32_t)(y * l->in_w + x);
                    ll_train_shift_more(output, pixels, c, l->in_c, more);
                    ll_train_shift_more(output + c, done, count, l->in_c, more);
                    shift += more;
                }
                for (uint32_t k = 0; k < count; k++) to[k] = (int16_t)ll_truncate(sums[k], shift);
            }
    }
    return exponent + shift;
}
