/* Depthwise convolution with one output channel an input channel, forward and with respect to its input.
 *
 * Four channels at a time: their planes are copied to scratch, so that the result may lie over the operand (in height, width, channel order
 * the places of one channel never hold another's), and their weights are widened once. Scratch, forward: a word a pixel and two a place of
 * the kernel; backward: two words a pixel of the gradient and two a place.
 */
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

static LL_NOINLINE void ll_copy_codes(const int8_t *from, uint32_t pixels, uint32_t step, uint32_t count, uint32_t *plane) {
    for (; pixels; pixels--, from += step) {
        uint32_t word = 0;
        if (count == 4) word = ll_load4(from);
        else
            for (uint32_t i = 0; i < count; i++) word |= (uint32_t)(uint8_t)from[i] << 8 * i;
        *plane++ = word;
    }
}

static LL_NOINLINE void ll_copy_gradients(const int16_t *from, uint32_t pixels, uint32_t step, uint32_t count, uint32_t *plane) {
    for (; pixels; pixels--, from += step, plane += 2) {
        uint32_t words[2] = {0, 0};
        if (count == 4) words[0] = ll_load4(from), words[1] = ll_load4(from + 2);
        else
            for (uint32_t i = 0; i < count; i++) words[i / 2] |= (uint32_t)(uint16_t)from[i] << 16 * (i % 2);
        plane[0] = words[0], plane[1] = words[1];
    }
}

LL_INLINE uint32_t ll_selected_in(const ll_train_layer *l, uint32_t c, uint32_t from) {
    while (from < l->selected && l->channels[from] < c) from++;
    return from;
}

/* One row of a window; the zero point is taken off each code unless its share is in the sums already. */
LL_INLINE void ll_row(const uint32_t *codes, const uint32_t *w, int32_t count, int32_t step, int has_share, uint32_t zero, int32_t *sums) {
    for (; count > 0; count--, codes += step, w += 2) {
        uint32_t evens = ll_evens(*codes), odds = ll_odds(*codes);
        if (!has_share) evens = ll_add2(evens, zero), odds = ll_add2(odds, zero);
        sums[0] = ll_smlabb(w[0], evens, sums[0]), sums[1] = ll_smlabb(w[1], odds, sums[1]);
        sums[2] = ll_smlatt(w[0], evens, sums[2]), sums[3] = ll_smlatt(w[1], odds, sums[3]);
    }
}

void ll_train_depthwise(const ll_train_conv_params *params, const int8_t *input, int8_t *output, uint8_t *mask, void *scratch) {
    const ll_train_layer *l = params->layer;
    const uint32_t zero = ll_repeat2(-l->in_zero_point), taps = (uint32_t)l->kernel_h * l->kernel_w;
    uint32_t *const panel = scratch, *const plane = panel + 2 * taps;
    uint32_t selected = 0;
    if (mask) ll_fill_bytes((int8_t *)mask, 0, ((uint32_t)l->out_h * l->out_w * l->out_c + 7) / 8);
    for (uint32_t c = 0; c < l->in_c; c += 4) {
        const uint32_t count = l->in_c - c < 4u ? l->in_c - c : 4;
        const int32_t *scales = params->scales + 2 * c;
        int32_t biases[4] = {0, 0, 0, 0}, shares[4] = {0, 0, 0, 0};
        uint32_t index = c;
        selected = ll_selected_in(l, c, selected);
        ll_widen(l, c, count, selected, 1, panel);
        ll_copy_codes(input + c, (uint32_t)l->in_h * l->in_w, l->in_c, count, plane);
        for (uint32_t tap = 0; tap < taps; tap++) {
            const uint32_t *w = panel + 2 * tap, one = 0x10001u;
            shares[0] = ll_smlabb(w[0], one, shares[0]), shares[1] = ll_smlabb(w[1], one, shares[1]);
            shares[2] = ll_smlatt(w[0], one, shares[2]), shares[3] = ll_smlatt(w[1], one, shares[3]);
        }
        const int is_plain = params->is_plain && count == 4;
        ll_plain4 plain = {{0, 0, 0, 0}, {1, 1, 1, 1}, {0, 0, 0, 0}};
        if (is_plain) plain = ll_plain4_of(params, c, count);
        for (uint32_t i = 0; i < count; i++) biases[i] = ll_train_bias(l, c + i), shares[i] = biases[i] - l->in_zero_point * shares[i];
        for (int32_t y = 0; y < l->out_h; y++) {
            const int32_t top = y * l->stride_h - l->pad_top;
            int32_t y0, y1;
            ll_taps_in(top, l->in_h, l->kernel_h, l->dilation_h, &y0, &y1);
            for (int32_t x = 0; x < l->out_w; x++, index += l->out_c) {
                const int32_t left = x * l->stride_w - l->pad_left;
                int32_t x0, x1;
                ll_taps_in(left, l->in_w, l->kernel_w, l->dilation_w, &x0, &x1);
                const int is_inside = (y1 - y0) * (x1 - x0) == (int32_t)taps;
                const int32_t *start = is_inside ? shares : biases;
                int32_t sums[4] = {start[0], start[1], start[2], start[3]};
                for (int32_t i = y0; i < y1; i++) {
                    const uint32_t *codes = plane + (top + i * l->dilation_h) * l->in_w + left + x0 * l->dilation_w;
                    const uint32_t *w = panel + 2 * (i * l->kernel_w + x0);
                    if (is_inside) ll_row(codes, w, x1 - x0, l->dilation_w, 1, 0, sums);
                    else ll_row(codes, w, x1 - x0, l->dilation_w, 0, zero, sums);
                }
                uint32_t inside = 0;
                if (is_plain) ll_store4(output + index, ll_codes4(params, &plain, sums, &inside));
                for (uint32_t i = 0; i < count && !is_plain; i++) {
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
    const ll_way down = ll_way_of(l->stride_h, l->dilation_h), across = ll_way_of(l->stride_w, l->dilation_w);
    uint32_t *const panel = scratch, *const plane = panel + 2u * l->kernel_h * l->kernel_w;
    uint32_t selected = 0;
    int32_t shift = 0;
    for (uint32_t c = 0; c < l->in_c; c += 4) {
        const uint32_t count = l->in_c - c < 4u ? l->in_c - c : 4;
        int16_t *to = output + c;
        selected = ll_selected_in(l, c, selected);
        ll_widen(l, c, count, selected, 0, panel);
        ll_copy_gradients(gradient + c, (uint32_t)l->out_h * l->out_w, l->out_c, count, plane);
        for (int32_t y = 0; y < l->in_h; y++) {
            const ll_back rows = ll_way_back(&down, y + l->pad_top, l->stride_h, l->dilation_h, l->kernel_h, l->out_h);
            for (int32_t x = 0; x < l->in_w; x++, to += l->in_c) {
                const ll_back columns = ll_way_back(&across, x + l->pad_left, l->stride_w, l->dilation_w, l->kernel_w, l->out_w);
                int32_t sums[4] = {0, 0, 0, 0};
                for (int32_t i = 0; i < rows.count; i++) {
                    const uint32_t *from = plane + 2 * ((rows.out - i * down.out_step) * l->out_w + columns.out);
                    const uint32_t *w = panel + 2 * ((rows.place + i * down.place_step) * l->kernel_w + columns.place);
                    for (int32_t j = columns.count; j > 0; j--, from -= 2 * across.out_step, w += 2 * across.place_step) {
                        sums[0] = ll_smlabb(w[0], from[0], sums[0]), sums[1] = ll_smlatt(w[0], from[0], sums[1]);
                        sums[2] = ll_smlabb(w[1], from[1], sums[2]), sums[3] = ll_smlatt(w[1], from[1], sums[3]);
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
    }
    return exponent + shift;
}
