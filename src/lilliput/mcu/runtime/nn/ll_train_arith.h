/* What the training kernels share: truncation and normalisation of gradients, mask bits, weights from flash and masters. */
#ifndef LL_TRAIN_ARITH_H
#define LL_TRAIN_ARITH_H

#include "ll_arith.h"
#include "ll_train.h"

/* Halfwords of two words: the low ones, the high ones. */
#if LL_DSP
LL_OP3(ll_smlatt, "smlatt") /* c + a.high * b.high */

LL_INLINE uint32_t ll_lows(uint32_t a, uint32_t b) {
    uint32_t r;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
LL_INLINE uint32_t ll_highs(uint32_t a, uint32_t b) {
    uint32_t r;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(r) : "r"(b), "r"(a));
    return r;
}
#else
LL_INLINE uint32_t ll_lows(uint32_t a, uint32_t b) { return (a & 0xFFFFu) | b << 16; }
LL_INLINE uint32_t ll_highs(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xFFFF0000u); }
LL_INLINE int32_t ll_smlatt(uint32_t a, uint32_t b, int32_t c) { return ll_wrap(c, ll_high(a) * ll_high(b)); }
#endif

#define LL_GRADIENT_BITS 15

LL_INLINE uint32_t ll_repeat2(int32_t x) { return (uint32_t)(uint16_t)x * 0x10001u; }

LL_INLINE uint32_t ll_magnitude(int32_t x) { return x < 0 ? 0u - (uint32_t)x : (uint32_t)x; }

/* How many bits a number has: 0 for 0. */
LL_INLINE int32_t ll_bit_length(uint32_t x) { return x ? 32 - __builtin_clz(x) : 0; }

/* x / 2^shift towards zero; shift is 0 to 31. */
LL_INLINE int32_t ll_truncate(int32_t x, int32_t shift) { return (x + ((x >> 31) & (int32_t)((UINT32_C(1) << shift) - 1))) >> shift; }

LL_INLINE int32_t ll_truncate64(int64_t x, int32_t shift) {
    return (int32_t)(x < 0 ? -((-x) >> shift) : x >> shift);
}

/* Gradients are written with the shift that fits so far. Truncations compose, so when larger values turn up, those already written are
 * truncated further, and the result is what one shift for all would have given. rows of width halfwords, step apart. */
void ll_train_shift_more(int16_t *values, uint32_t rows, uint32_t width, uint32_t step, int32_t more);

/* Bits beyond the first `count` are 0 and stay so. */
LL_INLINE void ll_or_bits(uint8_t *mask, uint32_t index, uint32_t bits) {
    uint32_t shifted = bits << (index & 7u);
    mask += index >> 3;
    mask[0] = (uint8_t)(mask[0] | shifted);
    if (shifted >> 8) mask[1] = (uint8_t)(mask[1] | shifted >> 8);
}

LL_INLINE uint32_t ll_bit(const uint8_t *mask, uint32_t index) { return (uint32_t)mask[index >> 3] >> (index & 7u) & 1u; }

/* One group of a layer's channels. */
typedef struct {
    const int8_t *weights;
    const void *masters;
    const uint16_t *channels; /* selected ones of the group, counted in the whole image */
    uint32_t in_c, out_c, taps;
    uint32_t in_first, out_first; /* the group's first channels in the whole images */
    uint32_t selected, first_selected;
    uint32_t master_bytes;
} ll_train_group;

/* The group after a given one; the first with NULL. */
LL_INLINE ll_train_group ll_group_at(const ll_train_layer *l, uint32_t group, uint32_t first_selected) {
    ll_train_group g;
    g.in_c = l->in_c / l->groups, g.out_c = l->out_c / l->groups;
    g.taps = (uint32_t)l->kernel_h * l->kernel_w;
    g.in_first = group * g.in_c, g.out_first = group * g.out_c;
    g.first_selected = first_selected;
    g.selected = 0;
    while (first_selected + g.selected < l->selected && l->channels[first_selected + g.selected] < g.in_first + g.in_c) g.selected++;
    g.channels = l->selected ? l->channels + first_selected : NULL;
    g.weights = l->weights ? l->weights + (size_t)g.out_first * g.taps * g.in_c : NULL;
    g.master_bytes = l->master_bytes;
    g.masters = g.selected ? (const int8_t *)l->masters + (size_t)g.out_c * g.taps * first_selected * l->master_bytes : NULL;
    return g;
}

/* The int8 weight that a master stands for; masters are counted within the group. */
LL_INLINE int32_t ll_master_code(const ll_train_group *g, uint32_t index) {
    if (g->master_bytes == 2) return (((const int16_t *)g->masters)[index] + 128) >> 8;
    return ((const int8_t *)g->masters)[index];
}

/* Four weights of a row (an output channel's at one place of the kernel) from input channel `in` of the group on, as bytes; 0 beyond the
 * group. The selected channels among the four are numbers first to last - 1 of the group's selected ones. */
LL_INLINE uint32_t ll_weights4(const ll_train_group *g, uint32_t row, uint32_t in, uint32_t first, uint32_t last) {
    uint32_t word = 0, index = row * g->selected;
    if (g->weights) {
        const int8_t *from = g->weights + (size_t)row * g->in_c + in;
        if (g->in_c - in >= 4) word = ll_load4(from);
        else
            for (uint32_t i = 0; i < g->in_c - in; i++) word |= (uint32_t)(uint8_t)from[i] << 8 * i;
    }
    for (uint32_t s = first; s < last; s++)
        word |= (uint32_t)(uint8_t)ll_master_code(g, index + s) << 8 * (g->channels[s] - g->in_first - in);
    return word;
}

/* Four of a row's masters, all of them selected, as int16: (0,2) and (1,3). */
LL_INLINE void ll_codes_of_masters(const ll_train_group *g, uint32_t index, uint32_t *evens, uint32_t *odds) {
    if (g->master_bytes == 2) {
        const int16_t *m = (const int16_t *)g->masters + index;
        const uint32_t low = ll_odds(ll_add2(ll_load4(m), 0x00800080u)), high = ll_odds(ll_add2(ll_load4(m + 2), 0x00800080u));
        *evens = ll_lows(low, high), *odds = ll_highs(low, high);
    } else {
        const uint32_t word = ll_load4((const int8_t *)g->masters + index);
        *evens = ll_evens(word), *odds = ll_odds(word);
    }
}

/* The first selected channel of the group that is not below input channel `in`, from number `from` on. */
LL_INLINE uint32_t ll_selected_below(const ll_train_group *g, uint32_t in, uint32_t from) {
    while (from < g->selected && g->channels[from] < g->in_first + in) from++;
    return from;
}

LL_INLINE int32_t ll_train_bias(const ll_train_layer *l, uint32_t channel) {
    if (!l->bias_masters) return l->biases[channel];
    return (l->bias_masters[channel] + ((1 << l->bias_bits) >> 1)) >> l->bias_bits;
}

/* Each output pixel is made of the input pixel at its place. */
LL_INLINE int ll_is_pointwise(const ll_train_layer *l) {
    return l->kernel_h * l->kernel_w == 1 && l->stride_h == 1 && l->stride_w == 1 && l->pad_top == 0 && l->pad_left == 0 &&
           l->in_h == l->out_h && l->in_w == l->out_w;
}

/* Places of the kernel, along one axis, that fall inside an image of `size`, for a window that begins at `start`. */
LL_INLINE void ll_taps_in(int32_t start, int32_t size, int32_t kernel, int32_t dilation, int32_t *first, int32_t *end) {
    *first = start < 0 ? (-start + dilation - 1) / dilation : 0;
    *end = start + (kernel - 1) * dilation < size ? kernel : size > start ? (size - start + dilation - 1) / dilation : 0;
    if (*end < *first) *end = *first;
}

/* The way back: places of the kernel that lead from an input position to output positions, position + pad = out * stride + place * dilation.
 * They lie `place_step` apart, the positions `out_step`; both depend on the layer alone. */
typedef struct {
    int32_t place_step, out_step;
} ll_way;

typedef struct {
    int32_t place, out, count; /* the first place, its output position, and how many there are */
} ll_back;

LL_INLINE ll_way ll_way_of(int32_t stride, int32_t dilation) {
    int32_t a = stride, b = dilation;
    while (b) {
        const int32_t rest = a % b;
        a = b, b = rest;
    }
    const ll_way w = {stride / a, dilation / a};
    return w;
}

LL_INLINE ll_back ll_way_back(const ll_way *w, int32_t position, int32_t stride, int32_t dilation, int32_t kernel, int32_t outputs) {
    ll_back b = {0, 0, 0};
    int32_t at = position; /* pad added */
    while (at % stride) {
        at -= dilation;
        if (++b.place == w->place_step) return b; /* no place does */
    }
    b.out = at / stride;
    if (b.out >= outputs) {
        const int32_t skipped = (b.out - outputs) / w->out_step + 1;
        b.out -= skipped * w->out_step, b.place += skipped * w->place_step;
    }
    if (b.out < 0 || b.place >= kernel) return b;
    const int32_t by_place = (kernel - 1 - b.place) / w->place_step, by_out = b.out / w->out_step;
    b.count = 1 + (by_place < by_out ? by_place : by_out);
    return b;
}

/* Clamped code of a sum, and whether it was inside. */
typedef struct {
    int32_t code;
    uint32_t is_inside;
} ll_train_code;

LL_INLINE ll_train_code ll_train_clamp(int32_t code, int32_t lower, int32_t upper) {
    ll_train_code r = {ll_clamp(code, lower, upper), 0};
    r.is_inside = r.code == code;
    return r;
}

/* A rescaled value of any size, before the zero point is added. */
LL_INLINE ll_train_code ll_train_clamp_wide(int32_t x, int32_t zero_point, int32_t lower, int32_t upper) {
    ll_train_code r = ll_train_clamp(x, lower - zero_point, upper - zero_point);
    r.code += zero_point;
    return r;
}

/* scale: multiplier and shift. */
LL_INLINE ll_train_code ll_train_scale(const ll_train_conv_params *p, const int32_t *scale, int32_t sum) {
    if (p->is_plain) { /* ll_rescale_plain, but not saturated */
        int32_t x = ll_smmulr(2 * sum, scale[0]);
        x += x >> 31;
        x += ll_plain_offset(p->zero_point, scale[1]);
        return ll_train_clamp(x >> scale[1], p->lower, p->upper);
    }
    return ll_train_clamp_wide(ll_rescale(sum, scale[0], scale[1]), p->zero_point, p->lower, p->upper);
}

/* Scales of four channels of a plain layer, in registers' reach. */
typedef struct {
    int32_t multiplier[4], right[4], offset[4];
} ll_plain4;

LL_INLINE ll_plain4 ll_plain4_of(const ll_train_conv_params *p, uint32_t channel, uint32_t count) {
    ll_plain4 plain = {{0, 0, 0, 0}, {1, 1, 1, 1}, {0, 0, 0, 0}};
    for (uint32_t c = 0; c < count; c++) {
        plain.multiplier[c] = p->scales[2 * (channel + c)], plain.right[c] = p->scales[2 * (channel + c) + 1];
        plain.offset[c] = ll_plain_offset(p->zero_point, plain.right[c]);
    }
    return plain;
}

/* Four codes as a word, and a bit for each that was not clamped. */
LL_INLINE uint32_t ll_codes4(const ll_train_conv_params *p, const ll_plain4 *plain, const int32_t *sums, uint32_t *inside) {
    const uint32_t range = (uint32_t)(p->upper - p->lower);
    int32_t code[4];
    uint32_t bits = 0;
    for (int c = 0; c < 4; c++) { /* as ll_rescale_plain */
        int32_t x = ll_smmulr(2 * sums[c], plain->multiplier[c]);
        x += x >> 31;
        code[c] = (x + plain->offset[c]) >> plain->right[c];
        if ((uint32_t)(code[c] - p->lower) <= range) bits |= 1u << c;
    }
    const uint32_t word =
        ll_pack4(ll_saturate8(code[0]), ll_saturate8(code[1]), ll_saturate8(code[2]), ll_saturate8(code[3]));
    *inside = bits;
    return ll_min4(ll_max4(word, ll_repeat4(p->lower)), ll_repeat4(p->upper));
}

#endif
