/* Gradient of a convolution with respect to its input: for each input pixel, the gradients of the outputs that saw it, times the weights.
 *
 * Four input channels at a time; their weights are widened once into a panel in scratch: for each place of the kernel and each two output
 * channels o the halfword pairs (o0,o1) of the four input channels, four words. Where there are many output channels and few pixels the
 * panel holds some of them at a time (LL_PANEL_QUADS), and the pixels' sums wait before it. Scratch: places * ceil(out / 2) * 4 words, or
 * (pixels + places * max(1, LL_PANEL_QUADS / places)) * 4 words if that is less.
 */
#include "ll_train_arith.h"

void ll_train_shift_more(int16_t *values, uint32_t rows, uint32_t width, uint32_t step, int32_t more) {
    if (more > 15) more = 15; /* nothing is left of 15 bits */
    for (; rows; rows--, values += step)
        for (uint32_t i = 0; i < width; i++) values[i] = (int16_t)ll_truncate(values[i], more);
}

#define LL_PANEL_QUADS 32u

LL_INLINE void ll_pair4(uint32_t evens, uint32_t odds, uint32_t next_evens, uint32_t next_odds, uint32_t *panel) {
    panel[0] = ll_lows(evens, next_evens), panel[1] = ll_lows(odds, next_odds);
    panel[2] = ll_highs(evens, next_evens), panel[3] = ll_highs(odds, next_odds);
}

/* For two output channels `pair` to `end` - 1. */
static LL_NOINLINE void ll_widen(const ll_train_group *g, uint32_t in, uint32_t pair, uint32_t end, uint32_t *panel) {
    const uint32_t first = ll_selected_below(g, in, 0), last = ll_selected_below(g, in + 4, first);
    const int is_word = g->in_c - in >= 4;
    for (uint32_t tap = 0; tap < g->taps; tap++)
        for (uint32_t out = 2 * pair; out < 2 * end; out += 2, panel += 4) {
            const uint32_t row = out * g->taps + tap, next = row + g->taps;
            if (is_word && first == last && out + 1 < g->out_c) { /* all of one kind */
                const uint32_t even = ll_load4(g->weights + (size_t)row * g->in_c + in);
                const uint32_t odd = ll_load4(g->weights + (size_t)next * g->in_c + in);
                ll_pair4(ll_evens(even), ll_odds(even), ll_evens(odd), ll_odds(odd), panel);
            } else if (is_word && last - first == 4 && out + 1 < g->out_c) {
                uint32_t e, o, f, p;
                ll_codes_of_masters(g, row * g->selected + first, &e, &o);
                ll_codes_of_masters(g, next * g->selected + first, &f, &p);
                ll_pair4(e, o, f, p, panel);
            } else {
                const uint32_t even = ll_weights4(g, row, in, first, last);
                const uint32_t odd = out + 1 < g->out_c ? ll_weights4(g, next, in, first, last) : 0;
                ll_pair4(ll_evens(even), ll_odds(even), ll_evens(odd), ll_odds(odd), panel);
            }
        }
}

typedef struct {
    int32_t of[4];
} ll_sums;

LL_INLINE void ll_step4(uint32_t pair, const uint32_t *panel, ll_sums *s) {
    for (int c = 0; c < 4; c++) s->of[c] = ll_smlad(panel[c], pair, s->of[c]);
}

#if LL_DSP
void ll_train_pairs(const int16_t *gradient, const int16_t *end, const uint32_t *panel, int32_t *sums);

/* Gradients of output channels by fours times the panel; at least four. By hand, as compilers load the panel word by word. Sums in r4 to r7,
 * weights in r8 to r11, gradients in r12 and lr. */
__asm__(".pushsection .text.ll_train_pairs, \"ax\", %progbits\n"
        ".syntax unified\n"
        ".thumb\n"
        ".p2align 2\n"
        ".global ll_train_pairs\n"
        ".type ll_train_pairs, %function\n"
        "ll_train_pairs:\n"
        "push {r4-r11, lr}\n"
        "ldm r3, {r4-r7}\n"
        "1:\n"
        "ldr r12, [r0], #4\n"
        "ldm r2!, {r8-r11}\n"
        "ldr lr, [r0], #4\n"
        "smlad r4, r8, r12, r4\n"
        "smlad r5, r9, r12, r5\n"
        "smlad r6, r10, r12, r6\n"
        "smlad r7, r11, r12, r7\n"
        "ldm r2!, {r8-r11}\n"
        "cmp r0, r1\n"
        "smlad r4, r8, lr, r4\n"
        "smlad r5, r9, lr, r5\n"
        "smlad r6, r10, lr, r6\n"
        "smlad r7, r11, lr, r7\n"
        "bne 1b\n"
        "stm r3, {r4-r7}\n"
        "pop {r4-r11, pc}\n"
        ".size ll_train_pairs, . - ll_train_pairs\n"
        ".popsection\n");
#endif

/* Gradients of one output pixel. */
LL_INLINE void ll_run4(const int16_t *gradient, uint32_t count, const uint32_t *panel, ll_sums *sums) {
    ll_sums s = *sums; /* in registers, unless by hand */
#if LL_DSP
    const uint32_t whole = count & ~3u;
    if (whole) ll_train_pairs(gradient, gradient + whole, panel, s.of);
    gradient += whole, panel += 2 * whole;
    count &= 3u;
#endif
    for (; count >= 2; count -= 2, gradient += 2, panel += 4) ll_step4(ll_load4(gradient), panel, &s);
    if (count) ll_step4((uint16_t)gradient[0], panel, &s);
    *sums = s;
}

/* A pass over the pixels: which gradients, times what. */
typedef struct {
    const ll_train_layer *layer;
    ll_way down, across;
    const int16_t *gradient; /* the first output channel of the pass */
    uint32_t count;          /* of output channels */
    const uint32_t *panel;
} ll_pass;

static LL_NOINLINE void ll_pixel(const ll_pass *p, const ll_back *rows, int32_t x, ll_sums *sums) {
    const ll_train_layer *l = p->layer;
    const uint32_t tap_words = 4 * ((p->count + 1) / 2);
    const ll_back columns = ll_way_back(&p->across, x + l->pad_left, l->stride_w, l->dilation_w, l->kernel_w, l->out_w);
    for (int32_t i = 0; i < rows->count; i++) {
        const int32_t row = (rows->out - i * p->down.out_step) * l->out_w;
        const int32_t place = (rows->place + i * p->down.place_step) * l->kernel_w;
        for (int32_t j = 0; j < columns.count; j++) {
            const int16_t *from = p->gradient + (ptrdiff_t)(row + columns.out - j * p->across.out_step) * l->out_c;
            ll_run4(from, p->count, p->panel + (uint32_t)(place + columns.place + j * p->across.place_step) * tap_words, sums);
        }
    }
}

int32_t ll_train_conv_dx(const ll_train_layer *layer, const int16_t *gradient, int16_t *output, void *scratch, int32_t exponent) {
    const ll_train_layer *l = layer;
    const uint32_t pixels = (uint32_t)l->in_h * l->in_w, taps = (uint32_t)l->kernel_h * l->kernel_w;
    const uint32_t pairs = (l->out_c / l->groups + 1u) / 2, some = taps < LL_PANEL_QUADS ? LL_PANEL_QUADS / taps : 1;
    const uint32_t step = taps * pairs <= pixels + taps * some ? pairs : some;
    ll_sums *waiting = scratch;
    uint32_t *panel = (uint32_t *)scratch + (step < pairs ? 4 * pixels : 0), selected = 0;
    ll_pass pass = {l, ll_way_of(l->stride_h, l->dilation_h), ll_way_of(l->stride_w, l->dilation_w), NULL, 0, panel};
    const int is_pointwise = ll_is_pointwise(l);
    int32_t shift = 0;
    for (uint32_t i = 0; i < l->groups; i++) {
        const ll_train_group g = ll_group_at(l, i, selected);
        selected += g.selected;
        for (uint32_t in = 0; in < g.in_c; in += 4)
            for (uint32_t pair = 0; pair < pairs; pair += step) {
                const uint32_t end = pair + step < pairs ? pair + step : pairs, left = g.out_c - 2 * pair;
                const uint32_t count = g.in_c - in < 4 ? g.in_c - in : 4, channel = g.in_first + in;
                int16_t *to = output + channel;
                uint32_t pixel = 0;
                ll_widen(&g, in, pair, end, panel);
                pass.gradient = gradient + g.out_first + 2 * pair;
                pass.count = left < 2 * step ? left : 2 * step;
                for (int32_t y = 0; y < l->in_h; y++) {
                    const ll_back rows = ll_way_back(&pass.down, y + l->pad_top, l->stride_h, l->dilation_h, l->kernel_h, l->out_h);
                    for (int32_t x = 0; x < l->in_w; x++, pixel++, to += l->in_c) {
                        ll_sums s = {{0, 0, 0, 0}};
                        if (pair) s = waiting[pixel];
                        if (is_pointwise) ll_run4(pass.gradient + (size_t)pixel * l->out_c, pass.count, panel, &s);
                        else ll_pixel(&pass, &rows, x, &s);
                        if (end < pairs) {
                            waiting[pixel] = s;
                            continue;
                        }
                        uint32_t large = 0;
                        for (uint32_t k = 0; k < count; k++) large |= ll_magnitude(s.of[k]);
                        const int32_t more = ll_bit_length(large) - LL_GRADIENT_BITS - shift;
                        if (more > 0) {
                            ll_train_shift_more(output, pixels, channel, l->in_c, more);
                            ll_train_shift_more(output + channel, pixel, count, l->in_c, more);
                            shift += more;
                        }
                        for (uint32_t k = 0; k < count; k++) to[k] = (int16_t)ll_truncate(s.of[k], shift);
                    }
                }
            }
    }
    return exponent + shift;
}
