/* Convolution whose weights may move: four output channels at a time, their weights widened once into a panel in scratch.
 *
 * A panel holds, for each place of the kernel and each four input channels k, for four output channels A B C D the halfword pairs
 * A(k0,k2) A(k1,k3) B(k0,k2) ... D(k1,k3): eight words. Codes are multiplied as they are; the zero point's share, zero_point * sum of the
 * place's weights, lies before the panel for each place, and is taken off for places inside the image, as codes outside count as 0.
 * Scratch: places * (4 + 8 * ceil(in / 4)) words. A single output pixel uses each weight once, so it has no panel and no scratch.
 */
#include "ll_train_arith.h"

/* Widens one row of weights into every fourth pair of the panel's words; gives their sum. */
LL_INLINE int32_t ll_widen_row(const ll_train_group *g, uint32_t row, uint32_t *panel) {
    const uint32_t one = 0x10001u;
    int32_t sum = 0;
    if (g->in_c % 4 == 0 && (g->selected == 0 || g->selected == g->in_c)) { /* all of one kind, whole words */
        const int8_t *from = g->weights + (g->weights ? (size_t)row * g->in_c : 0);
        for (uint32_t in = 0; in < g->in_c; in += 4, panel += 8) {
            if (g->selected) {
                ll_codes_of_masters(g, row * g->selected + in, panel, panel + 1);
            } else {
                const uint32_t word = ll_load4(from + in);
                panel[0] = ll_evens(word), panel[1] = ll_odds(word);
            }
            sum = ll_smlad(panel[0], one, ll_smlad(panel[1], one, sum));
        }
        return sum;
    }
    uint32_t first = 0;
    for (uint32_t in = 0; in < g->in_c; in += 4, panel += 8) {
        const uint32_t last = ll_selected_below(g, in + 4, first), word = ll_weights4(g, row, in, first, last);
        panel[0] = ll_evens(word), panel[1] = ll_odds(word);
        sum = ll_smlad(panel[0], one, ll_smlad(panel[1], one, sum));
        first = last;
    }
    return sum;
}

/* The zero point's shares, then the panel, of output channels out to out + count - 1 of a group. */
static LL_NOINLINE void ll_widen(const ll_train_group *g, uint32_t out, uint32_t count, int32_t zero_point, int32_t *shares,
                                 uint32_t *panel) {
    const uint32_t tap_words = 8 * ((g->in_c + 3) / 4);
    for (uint32_t tap = 0; tap < g->taps; tap++, shares += 4, panel += tap_words)
        for (uint32_t c = 0; c < 4; c++) {
            if (c < count) {
                shares[c] = zero_point * ll_widen_row(g, (out + c) * g->taps + tap, panel + 2 * c);
            } else {
                shares[c] = 0;
                for (uint32_t i = 2 * c; i < tap_words; i += 8) panel[i] = panel[i + 1] = 0;
            }
        }
}

typedef struct {
    int32_t of[4];
} ll_sums;

LL_INLINE void ll_step4(uint32_t codes, const uint32_t *panel, ll_sums *s) {
    uint32_t evens = ll_evens(codes), odds = ll_odds(codes);
    for (int c = 0; c < 4; c++) s->of[c] = ll_smlad(panel[2 * c], evens, ll_smlad(panel[2 * c + 1], odds, s->of[c]));
}

#if LL_DSP
void ll_train_quads(const int8_t *input, const int8_t *end, const uint32_t *panel, int32_t *sums);

/* Whole words of codes times the panel; at least one. By hand, as compilers load the panel word by word. Sums in r4 to r7, weights in r8 to
 * r11, codes in r12 and lr. */
__asm__(".pushsection .text.ll_train_quads, \"ax\", %progbits\n"
        ".syntax unified\n"
        ".thumb\n"
        ".p2align 2\n"
        ".global ll_train_quads\n"
        ".type ll_train_quads, %function\n"
        "ll_train_quads:\n"
        "push {r4-r11, lr}\n"
        "ldm r3, {r4-r7}\n"
        "1:\n"
        "ldr lr, [r0], #4\n"
        "ldm r2!, {r8-r11}\n"
        "sxtb16 r12, lr\n"
        "sxtb16 lr, lr, ror #8\n"
        "smlad r4, r8, r12, r4\n"
        "smlad r5, r10, r12, r5\n"
        "smlad r4, r9, lr, r4\n"
        "smlad r5, r11, lr, r5\n"
        "ldm r2!, {r8-r11}\n"
        "cmp r0, r1\n"
        "smlad r6, r8, r12, r6\n"
        "smlad r7, r10, r12, r7\n"
        "smlad r6, r9, lr, r6\n"
        "smlad r7, r11, lr, r7\n"
        "bne 1b\n"
        "stm r3, {r4-r7}\n"
        "pop {r4-r11, pc}\n"
        ".size ll_train_quads, . - ll_train_quads\n"
        ".popsection\n");
#endif

/* Codes under one place of the kernel times its part of the panel. */
LL_INLINE void ll_run4(const int8_t *input, uint32_t count, const uint32_t *panel, ll_sums *sums) {
    ll_sums s = *sums; /* in registers, unless by hand */
#if LL_DSP
    const uint32_t whole = count & ~3u;
    if (whole) ll_train_quads(input, input + whole, panel, s.of);
    input += whole, panel += 2 * whole;
    count &= 3u;
#else
    for (; count >= 4; count -= 4, input += 4, panel += 8) ll_step4(ll_load4(input), panel, &s);
#endif
    if (count) { /* the bytes after the input meet weights of 0, but must not be read */
        uint32_t word = (uint8_t)input[0];
        if (count > 1) word |= (uint32_t)(uint8_t)input[1] << 8;
        if (count > 2) word |= (uint32_t)(uint8_t)input[2] << 16;
        ll_step4(word, panel, &s);
    }
    *sums = s;
}

typedef struct {
    const ll_train_layer *layer;
    const ll_train_group *group;
    const int32_t *shares;
    const uint32_t *panel;
    int32_t biases[4];
} ll_block;

static LL_NOINLINE ll_sums ll_pixel(const ll_block *b, const int8_t *input, int32_t y, int32_t x) {
    const ll_train_layer *l = b->layer;
    const uint32_t in_c = b->group->in_c, tap_words = 8 * ((in_c + 3) / 4);
    const int32_t top = y * l->stride_h - l->pad_top, left = x * l->stride_w - l->pad_left;
    int32_t y0, y1, x0, x1;
    ll_sums s = {{b->biases[0], b->biases[1], b->biases[2], b->biases[3]}};
    ll_taps_in(top, l->in_h, l->kernel_h, l->dilation_h, &y0, &y1);
    ll_taps_in(left, l->in_w, l->kernel_w, l->dilation_w, &x0, &x1);
    for (int32_t i = y0; i < y1; i++)
        for (int32_t j = x0; j < x1; j++) {
            const uint32_t tap = (uint32_t)(i * l->kernel_w + j);
            const int32_t *shares = b->shares + 4 * tap;
            const int32_t pixel = (top + i * l->dilation_h) * l->in_w + left + j * l->dilation_w;
            for (int c = 0; c < 4; c++) s.of[c] -= shares[c];
            ll_run4(input + (ptrdiff_t)pixel * l->in_c + b->group->in_first, in_c, b->panel + tap * tap_words, &s);
        }
    return s;
}

/* A layer of one output pixel: each row of weights is read where it lies. */
static LL_NOINLINE int32_t ll_row(const ll_train_layer *l, const ll_train_group *g, const int8_t *input, uint32_t out) {
    const int32_t top = -l->pad_top, left = -l->pad_left;
    int32_t y0, y1, x0, x1, sum = ll_train_bias(l, g->out_first + out);
    const uint32_t zero = ll_repeat2(-l->in_zero_point);
    ll_taps_in(top, l->in_h, l->kernel_h, l->dilation_h, &y0, &y1);
    ll_taps_in(left, l->in_w, l->kernel_w, l->dilation_w, &x0, &x1);
    for (int32_t i = y0; i < y1; i++)
        for (int32_t j = x0; j < x1; j++) {
            const int32_t pixel = (top + i * l->dilation_h) * l->in_w + left + j * l->dilation_w;
            const int8_t *from = input + (ptrdiff_t)pixel * l->in_c + g->in_first;
            const uint32_t row = out * g->taps + (uint32_t)(i * l->kernel_w + j);
            uint32_t first = 0;
            for (uint32_t in = 0; in < g->in_c; in += 4) {
                const uint32_t last = ll_selected_below(g, in + 4, first), weights = ll_weights4(g, row, in, first, last);
                uint32_t codes = 0;
                if (g->in_c - in >= 4) codes = ll_load4(from + in);
                else
                    for (uint32_t k = 0; k < g->in_c - in; k++) codes |= (uint32_t)(uint8_t)from[in + k] << 8 * k;
                sum = ll_smlad(ll_evens(weights), ll_add2(ll_evens(codes), zero), sum);
                sum = ll_smlad(ll_odds(weights), ll_add2(ll_odds(codes), zero), sum);
                first = last;
            }
        }
    return sum;
}

/* Where sums go: codes with mask, or sums as they are. */
typedef struct {
    const ll_train_conv_params *conv; /* NULL: sums */
    int8_t *codes;
    uint8_t *mask;
    int32_t *sums;
} ll_target;

LL_INLINE void ll_put(const ll_target *t, const ll_plain4 *plain, uint32_t index, uint32_t channel, uint32_t count,
                      const int32_t *sums) {
    uint32_t inside = 0;
    if (plain && count == 4) {
        ll_store4(t->codes + index, ll_codes4(t->conv, plain, sums, &inside));
        if (t->mask) ll_or_bits(t->mask, index, inside);
        return;
    }
    if (!t->conv) {
        for (uint32_t c = 0; c < count; c++) t->sums[index + c] = sums[c];
        return;
    }
    const int32_t *scale = t->conv->scales + 2 * channel;
    for (uint32_t c = 0; c < count; c++, scale += 2) {
        const ll_train_code code = ll_train_scale(t->conv, scale, sums[c]);
        t->codes[index + c] = (int8_t)code.code;
        inside |= code.is_inside << c;
    }
    if (t->mask) ll_or_bits(t->mask, index, inside);
}

/* Every pixel of a block of output channels. */
static LL_NOINLINE void ll_every_pixel(const ll_block *b, const int8_t *input, const ll_target *target, uint32_t channel,
                                       uint32_t count) {
    const ll_train_layer *l = b->layer;
    const int is_plain = target->conv && target->conv->is_plain;
    ll_plain4 scales = {{0, 0, 0, 0}, {1, 1, 1, 1}, {0, 0, 0, 0}};
    if (is_plain) scales = ll_plain4_of(target->conv, channel, count);
    const ll_plain4 *plain = is_plain ? &scales : NULL;
    uint32_t index = channel;
    if (ll_is_pointwise(l)) {
        const uint32_t in_c = b->group->in_c;
        const int8_t *from = input + b->group->in_first;
        ll_sums start;
        for (int c = 0; c < 4; c++) start.of[c] = b->biases[c] - b->shares[c];
        for (uint32_t left = (uint32_t)l->out_h * l->out_w; left; left--, from += l->in_c, index += l->out_c) {
            ll_sums s = start;
            ll_run4(from, in_c, b->panel, &s);
            ll_put(target, plain, index, channel, count, s.of);
        }
        return;
    }
    for (int32_t y = 0; y < l->out_h; y++)
        for (int32_t x = 0; x < l->out_w; x++, index += l->out_c) {
            const ll_sums s = ll_pixel(b, input, y, x);
            ll_put(target, plain, index, channel, count, s.of);
        }
}

static void ll_forward(const ll_train_layer *l, const int8_t *input, const ll_target *target, void *scratch) {
    const uint32_t pixels = (uint32_t)l->out_h * l->out_w;
    uint32_t selected = 0;
    if (target->mask) ll_fill_bytes((int8_t *)target->mask, 0, (pixels * l->out_c + 7) / 8);
    for (uint32_t i = 0; i < l->groups; i++) {
        const ll_train_group g = ll_group_at(l, i, selected);
        selected += g.selected;
        for (uint32_t out = 0; out < g.out_c; out += 4) {
            const uint32_t count = g.out_c - out < 4 ? g.out_c - out : 4, channel = g.out_first + out;
            if (pixels == 1) {
                int32_t sums[4];
                for (uint32_t c = 0; c < count; c++) sums[c] = ll_row(l, &g, input, out + c);
                ll_put(target, NULL, channel, channel, count, sums);
                continue;
            }
            int32_t *shares = scratch;
            ll_block b = {l, &g, shares, (uint32_t *)shares + 4 * g.taps, {0, 0, 0, 0}};
            ll_widen(&g, out, count, l->in_zero_point, shares, (uint32_t *)shares + 4 * g.taps);
            for (uint32_t c = 0; c < count; c++) b.biases[c] = ll_train_bias(l, channel + c);
            ll_every_pixel(&b, input, target, channel, count);
        }
    }
}

void ll_train_conv(const ll_train_conv_params *params, const int8_t *input, int8_t *output, uint8_t *mask, void *scratch) {
    const ll_target target = {params, output, mask, NULL};
    ll_forward(params->layer, input, &target, scratch);
}

void ll_train_conv_sum(const ll_train_layer *layer, const int8_t *input, int32_t *output, void *scratch) {
    const ll_target target = {NULL, NULL, NULL, output};
    ll_forward(layer, input, &target, scratch);
}
