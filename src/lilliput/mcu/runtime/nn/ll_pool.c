/* Windows and means: of one window, four channels or one at a time, so that outputs may overwrite inputs that no later window reads. */
#include "ll_arith.h"

typedef struct {
    int32_t y0, y1, x0, x1; /* taps inside the image */
    int32_t top, left;
} ll_window;

LL_INLINE void ll_taps_inside(int32_t start, int32_t size, int32_t kernel, int32_t dilation, int32_t *first, int32_t *end) {
    *first = start < 0 ? (-start + dilation - 1) / dilation : 0;
    *end = start + (kernel - 1) * dilation < size ? kernel : size > start ? (size - start + dilation - 1) / dilation : 0;
    if (*end < *first) *end = *first;
}

LL_INLINE ll_window ll_window_at(const ll_pool_params *p, int32_t out_y, int32_t out_x) {
    ll_window w;
    w.top = out_y * p->stride_h - p->pad_top;
    w.left = out_x * p->stride_w - p->pad_left;
    ll_taps_inside(w.top, p->in_h, p->kernel_h, p->dilation_h, &w.y0, &w.y1);
    ll_taps_inside(w.left, p->in_w, p->kernel_w, p->dilation_w, &w.x0, &w.x1);
    return w;
}

LL_INLINE const int8_t *ll_tap(const ll_pool_params *p, const ll_window *w, const int8_t *input, int32_t i) {
    int32_t y = w->top + i * p->dilation_h, x = w->left + w->x0 * p->dilation_w;
    return input + ((ptrdiff_t)y * p->in_w + x) * p->channels;
}

void ll_max_pool(const ll_pool_params *params, const int8_t *input, int8_t *output, void *scratch) {
    ptrdiff_t step = (ptrdiff_t)params->dilation_w * params->channels;
    (void)scratch;
    for (int32_t y = 0; y < params->out_h; y++) {
        for (int32_t x = 0; x < params->out_w; x++) {
            ll_window w = ll_window_at(params, y, x);
            int32_t c = 0;
            for (; c + 4 <= params->channels; c += 4, output += 4) {
                uint32_t largest = 0x80808080u; /* -128 */
                for (int32_t i = w.y0; i < w.y1; i++) {
                    const int8_t *from = ll_tap(params, &w, input, i) + c;
                    for (int32_t j = w.x0; j < w.x1; j++, from += step) largest = ll_max4(largest, ll_load4(from));
                }
                ll_store4(output, ll_min4(ll_max4(largest, ll_repeat4(params->lower)), ll_repeat4(params->upper)));
            }
            for (; c < params->channels; c++) {
                int32_t largest = -128;
                for (int32_t i = w.y0; i < w.y1; i++) {
                    const int8_t *from = ll_tap(params, &w, input, i) + c;
                    for (int32_t j = w.x0; j < w.x1; j++, from += step)
                        if (*from > largest) largest = *from;
                }
                *output++ = (int8_t)ll_clamp(largest, params->lower, params->upper);
            }
        }
    }
}

LL_INLINE int8_t ll_average(const ll_pool_params *p, int32_t sum, int32_t count) {
    if (count) sum = (sum > 0 ? sum + count / 2 : sum - count / 2) / count; /* half away from zero */
    return (int8_t)ll_clamp(sum, p->lower, p->upper);
}

void ll_avg_pool(const ll_pool_params *params, const int8_t *input, int8_t *output, void *scratch) {
    ptrdiff_t step = (ptrdiff_t)params->dilation_w * params->channels;
    (void)scratch;
    for (int32_t y = 0; y < params->out_h; y++) {
        for (int32_t x = 0; x < params->out_w; x++) {
            ll_window w = ll_window_at(params, y, x);
            int32_t count = (w.y1 - w.y0) * (w.x1 - w.x0), c = 0;
            for (; c + 4 <= params->channels && count <= 256; c += 4) { /* sums of so many codes fit a halfword */
                uint32_t evens = 0, odds = 0;
                for (int32_t i = w.y0; i < w.y1; i++) {
                    const int8_t *from = ll_tap(params, &w, input, i) + c;
                    for (int32_t j = w.x0; j < w.x1; j++, from += step) {
                        uint32_t word = ll_load4(from);
                        evens = ll_add2(evens, ll_evens(word)), odds = ll_add2(odds, ll_odds(word));
                    }
                }
                for (int half = 0; half < 2; half++, evens >>= 16, odds >>= 16) {
                    *output++ = ll_average(params, (int16_t)(uint16_t)evens, count);
                    *output++ = ll_average(params, (int16_t)(uint16_t)odds, count);
                }
            }
            for (; c < params->channels; c++) {
                int32_t sum = 0;
                for (int32_t i = w.y0; i < w.y1; i++) {
                    const int8_t *from = ll_tap(params, &w, input, i) + c;
                    for (int32_t j = w.x0; j < w.x1; j++, from += step) sum += *from;
                }
                *output++ = ll_average(params, sum, count);
            }
        }
    }
}

void ll_mean(const ll_mean_params *params, const int8_t *input, int8_t *output, void *scratch) {
    ptrdiff_t step = (ptrdiff_t)params->channels;
    (void)scratch;
    for (uint32_t c = 0; c < params->channels; c++) {
        const int8_t *from = input + c;
        int32_t sum = -(int32_t)params->pixels * params->in_zero_point;
        uint32_t left = params->pixels;
        for (; left >= 4; left -= 4, from += 4 * step) sum += from[0] + from[step] + from[2 * step] + from[3 * step];
        for (; left; left--, from += step) sum += *from;
        int32_t x = ll_rescale(sum, params->multiplier, params->shift);
        output[c] = ll_code_of(x, params->zero_point, params->lower, params->upper);
    }
}
