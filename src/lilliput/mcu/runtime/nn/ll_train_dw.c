/* Gradient of a convolution with respect to its trained weights; each is used for its step as soon as it is summed, or stored.
 *
 * Four selected input channels at one place of the kernel are widened into a panel in scratch: for each two output pixels the halfword
 * pairs of the four channels' codes less the zero point, four words (0 outside the image). Then two output channels at a time are summed
 * over the pixels. Where steps are rounded by chance, random numbers are drawn in the order of the masters, output channel first, so that
 * each has a place of its own in the stream. Scratch: a word for each output channel if numbers are drawn, then, except of a depthwise
 * layer, ceil(pixels / 2) * 4 words.
 */
#include "ll_train_step.h"

#define LL_CHUNK 256u /* pixels whose products fit int32: 256 * 255 * (2^15 - 1) < 2^31 */

typedef struct {
    const ll_train_weight_params *params;
    const ll_train_group *group;
    const int16_t *gradient; /* the group's first channel */
    uint32_t *panel;
    uint32_t *random; /* of the group's output channels; NULL where none are drawn */
    int32_t *store;   /* of the group; NULL: step at once */
    void *masters;
    int32_t exponent;
    const ll_train_state *state;
} ll_job;

/* Codes of selected channels number s to s + 3 of the group under one place of the kernel. */
static LL_NOINLINE void ll_widen(const ll_job *job, const int8_t *input, uint32_t tap, uint32_t s, uint32_t count) {
    const ll_train_layer *l = job->params->layer;
    const ll_train_group *g = job->group;
    const uint32_t step = job->params->is_kept ? l->selected : l->in_c;
    const uint32_t place = (job->params->is_kept ? g->first_selected : g->channels[0]) + s; /* all are selected unless kept */
    const int32_t down = (int32_t)(tap / l->kernel_w) * l->dilation_h - l->pad_top;
    const int32_t right = (int32_t)(tap % l->kernel_w) * l->dilation_w - l->pad_left;
    int16_t *to = (int16_t *)job->panel;
    uint32_t half = 0;
    for (int32_t y = 0; y < l->out_h; y++)
        for (int32_t x = 0; x < l->out_w; x++) {
            const int32_t in_y = y * l->stride_h + down, in_x = x * l->stride_w + right;
            const int is_inside = in_y >= 0 && in_y < l->in_h && in_x >= 0 && in_x < l->in_w;
            const int8_t *from = is_inside ? input + ((ptrdiff_t)in_y * l->in_w + in_x) * step + place : NULL;
            for (uint32_t c = 0; c < 4; c++) to[2 * c + half] = (int16_t)(is_inside && c < count ? from[c] - l->in_zero_point : 0);
            to += half ? 8 : 0;
            half ^= 1;
        }
    if (half)
        for (uint32_t c = 0; c < 4; c++) to[2 * c + 1] = 0;
}

/* Sums over pixels for two output channels and four input channels. */
static LL_NOINLINE void ll_sum_2x4(const int16_t *gradient, uint32_t step, const uint32_t *panel, uint32_t pixels, int32_t *sums) {
    int32_t a[4] = {0, 0, 0, 0}, b[4] = {0, 0, 0, 0};
    for (; pixels >= 2; pixels -= 2, panel += 4, gradient += 2 * step) {
        const uint32_t now = ll_load4(gradient), next = ll_load4(gradient + step);
        const uint32_t p = ll_lows(now, next), q = ll_highs(now, next);
        for (int c = 0; c < 4; c++) a[c] = ll_smlad(panel[c], p, a[c]), b[c] = ll_smlad(panel[c], q, b[c]);
    }
    if (pixels) {
        const uint32_t now = ll_load4(gradient);
        for (int c = 0; c < 4; c++) a[c] = ll_smlabb(panel[c], now, a[c]), b[c] = ll_smlabt(panel[c], now, b[c]);
    }
    for (int c = 0; c < 4; c++) sums[c] = a[c], sums[4 + c] = b[c];
}

/* The same for one. */
static LL_NOINLINE void ll_sum_1x4(const int16_t *gradient, uint32_t step, const uint32_t *panel, uint32_t pixels, int32_t *sums) {
    int32_t a[4] = {0, 0, 0, 0};
    for (; pixels >= 2; pixels -= 2, panel += 4, gradient += 2 * step) {
        const uint32_t p = ll_lows((uint16_t)gradient[0], (uint16_t)gradient[step]);
        for (int c = 0; c < 4; c++) a[c] = ll_smlad(panel[c], p, a[c]);
    }
    if (pixels)
        for (int c = 0; c < 4; c++) a[c] = ll_smlabb(panel[c], (uint16_t)gradient[0], a[c]);
    for (int c = 0; c < 4; c++) sums[c] = a[c];
}

/* Complete gradients of up to four weights of an output channel. */
LL_INLINE void ll_use(const ll_job *job, uint32_t out, uint32_t index, const int32_t *gradient, uint32_t count) {
    if (job->store) {
        for (uint32_t c = 0; c < count; c++) job->store[index + c] = gradient[c];
        return;
    }
    const ll_pace pace = ll_pace_of(job->params->factors, job->group->out_first + out, job->exponent, job->state);
    const uint32_t rule = job->params->rule;
    if (rule == LL_TRAIN_Q7_8) {
        int16_t *master = (int16_t *)job->masters + index;
        for (uint32_t c = 0; c < count; c++) master[c] = ll_move_q7_8(master[c], ll_delta(gradient[c], pace));
        return;
    }
    int8_t *master = (int8_t *)job->masters + index;
    uint32_t number = 0, *random = job->random ? job->random + out : NULL;
    for (uint32_t c = 0; c < count; c++) {
        if (random) number = ll_random(random);
        master[c] = ll_move_code(master[c], ll_delta(gradient[c], pace), rule, number);
    }
}

static void ll_outputs(const ll_job *job, uint32_t tap, uint32_t s, uint32_t count) {
    const ll_train_layer *l = job->params->layer;
    const ll_train_group *g = job->group;
    const uint32_t pixels = (uint32_t)l->out_h * l->out_w;
    for (uint32_t out = 0; out < g->out_c; out += 2) {
        const uint32_t channels = g->out_c - out < 2 ? 1 : 2;
        int32_t sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        int64_t totals[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (uint32_t first = 0; first < pixels; first += LL_CHUNK) {
            const int16_t *from = job->gradient + (size_t)first * l->out_c + out;
            const uint32_t chunk = pixels - first < LL_CHUNK ? pixels - first : LL_CHUNK;
            (channels == 2 ? ll_sum_2x4 : ll_sum_1x4)(from, l->out_c, job->panel + 2 * first, chunk, sums);
            if (pixels > LL_CHUNK)
                for (int i = 0; i < 8; i++) totals[i] += sums[i];
        }
        if (pixels > LL_CHUNK)
            for (int i = 0; i < 8; i++) sums[i] = ll_truncate64(totals[i], job->params->sum_shift);
        for (uint32_t i = 0; i < channels; i++)
            ll_use(job, out + i, ((out + i) * g->taps + tap) * g->selected + s, sums + 4 * i, count);
    }
}

/* Output positions, along one axis, whose code at a place of the kernel lies inside the image: position * stride + offset. */
LL_INLINE void ll_outputs_in(int32_t offset, int32_t size, int32_t stride, int32_t outputs, int32_t *first, int32_t *end) {
    *first = offset < 0 ? (-offset + stride - 1) / stride : 0;
    *end = size > offset ? (size - 1 - offset) / stride + 1 : 0;
    if (*end > outputs) *end = outputs;
}

/* One output channel an input channel: each weight sees one channel of either side. */
static void ll_every_plane(ll_job *job, const int16_t *gradient, const int8_t *input) {
    const ll_train_layer *l = job->params->layer;
    const ptrdiff_t in_step = job->params->is_kept ? l->selected : l->in_c, across = in_step * l->stride_w;
    const ll_train_group plane = {NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0}; /* channels are counted in the whole image */
    uint32_t index = 0;
    job->group = &plane;
    for (uint32_t s = 0; s < l->selected; s++) {
        const uint32_t channel = l->channels[s];
        const int8_t *codes = input + (job->params->is_kept ? s : channel);
        for (int32_t i = 0; i < l->kernel_h; i++)
            for (int32_t j = 0; j < l->kernel_w; j++, index++) {
                const int32_t down = i * l->dilation_h - l->pad_top, right = j * l->dilation_w - l->pad_left;
                int32_t y0, y1, x0, x1;
                int64_t total = 0;
                ll_outputs_in(down, l->in_h, l->stride_h, l->out_h, &y0, &y1);
                ll_outputs_in(right, l->in_w, l->stride_w, l->out_w, &x0, &x1);
                for (int32_t y = y0; y < y1; y++) {
                    const int16_t *g = gradient + (ptrdiff_t)(y * l->out_w + x0) * l->out_c + channel;
                    const int8_t *x = codes + ((ptrdiff_t)(y * l->stride_h + down) * l->in_w + x0 * l->stride_w + right) * in_step;
                    for (int32_t left = x1 - x0; left > 0; left--, g += l->out_c, x += across)
                        total += *g * (*x - l->in_zero_point);
                }
                const int32_t sum = ll_truncate64(total, job->params->sum_shift);
                ll_use(job, channel, index, &sum, 1);
            }
    }
}

static void ll_every_group(ll_job *job, const int16_t *gradient, const int8_t *input, uint32_t *random, int32_t *store) {
    const ll_train_layer *l = job->params->layer;
    uint32_t selected = 0;
    if (l->groups == l->in_c && l->groups == l->out_c) {
        job->random = random, job->store = store, job->masters = l->masters;
        ll_every_plane(job, gradient, input);
        return;
    }
    for (uint32_t i = 0; i < l->groups; i++) {
        const ll_train_group g = ll_group_at(l, i, selected);
        job->group = &g;
        job->gradient = gradient + g.out_first;
        job->random = random ? random + g.out_first : NULL;
        job->store = store ? store + (size_t)g.out_c * g.taps * selected : NULL;
        job->masters = (int8_t *)l->masters + (size_t)g.out_c * g.taps * selected * l->master_bytes;
        selected += g.selected;
        for (uint32_t tap = 0; tap < g.taps; tap++)
            for (uint32_t s = 0; s < g.selected; s += 4) {
                const uint32_t count = g.selected - s < 4 ? g.selected - s : 4;
                ll_widen(job, input, tap, s, count);
                ll_outputs(job, tap, s, count);
            }
    }
}

/* Each output channel's place in the stream; the stream itself goes on behind the last. */
static void ll_deal(const ll_train_layer *l, uint32_t *states, uint32_t *stream) {
    uint32_t selected = 0, state = *stream;
    for (uint32_t i = 0; i < l->groups; i++) {
        const ll_train_group g = ll_group_at(l, i, selected);
        selected += g.selected;
        for (uint32_t out = 0; out < g.out_c; out++) {
            *states++ = state;
            for (uint32_t k = 0; k < g.taps * g.selected; k++) ll_random(&state);
        }
    }
    *stream = state;
}

void ll_train_conv_dw_step(const ll_train_weight_params *params, const int16_t *gradient, const int8_t *input, void *scratch,
                           int32_t exponent, ll_train_state *state) {
    const ll_train_layer *l = params->layer;
    ll_job job = {params, NULL, NULL, scratch, NULL, NULL, NULL, exponent + params->sum_shift, state};
    uint32_t *random = NULL;
    if (params->rule == LL_TRAIN_CHANCE) {
        random = scratch, job.panel = random + l->out_c;
        ll_deal(l, random, &state->random);
    }
    ll_every_group(&job, gradient, input, random, NULL);
}

int32_t ll_train_conv_dw(const ll_train_weight_params *params, const int16_t *gradient, const int8_t *input, int32_t *output,
                         void *scratch, int32_t exponent) {
    ll_job job = {params, NULL, NULL, scratch, NULL, NULL, NULL, 0, NULL};
    ll_every_group(&job, gradient, input, NULL, output);
    return exponent + params->sum_shift;
}
