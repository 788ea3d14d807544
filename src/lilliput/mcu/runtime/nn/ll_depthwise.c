/* Depthwise convolution, one channel after the other, from a ring of input rows widened to 16 bits in scratch.
 *
 * Scratch: ring_h rows of ring_w halfwords, then the channel's weights as halfwords (each kernel row padded to whole pairs with 0), then,
 * for the general kernel, where each kernel row starts in the ring. A row of the ring is a padded input row: the zero point left and right
 * of the image, and whole rows of it above and below. Rows enter the ring just before the first output row that needs them, so the output
 * may overwrite the input wherever it only covers rows that have entered (the generator checks this).
 */
#include "ll_scale.h"

LL_INLINE uint32_t ll_load2(const int16_t *from) { return ll_load4(from); } /* two halfwords, at any even address */
LL_INLINE uint32_t ll_load1(const int16_t *from) { return (uint16_t)*from; }

typedef struct {
    const ll_depthwise_params *p;
    const int8_t *input; /* of this channel */
    int16_t *ring;
    int32_t next; /* padded row that enters next */
    int32_t slot; /* where, counted from 0 */
} ll_ring;

/* Rows up to (not with) `end` enter; those before `start` are left out, as no output needs them any more. */
static LL_NOINLINE void ll_enter_rows(ll_ring *r, int32_t start, int32_t end) {
    const ll_depthwise_params *p = r->p;
    for (; r->next < end; r->next++) {
        if (r->next >= start) {
            int16_t *to = r->ring + r->slot * p->ring_w;
            int32_t y = r->next - p->pad_top, width = p->ring_w, inside = 0;
            if (y >= 0 && y < p->in_h) {
                inside = width - p->pad_left;
                if (inside > p->in_w) inside = p->in_w;
                if (inside < 0) inside = 0;
            }
            int32_t before = inside ? p->pad_left : 0;
            for (int32_t i = 0; i < before; i++) *to++ = p->in_zero_point;
            if (inside) {
                const int8_t *from = r->input + (ptrdiff_t)y * p->in_w * p->in_c;
                ptrdiff_t step = p->in_c;
                int32_t i = inside;
                for (; i >= 4; i -= 4, to += 4) {
                    to[0] = *from, from += step;
                    to[1] = *from, from += step;
                    to[2] = *from, from += step;
                    to[3] = *from, from += step;
                }
                for (; i; i--, from += step) *to++ = *from;
            }
            for (int32_t i = before + inside; i < width; i++) *to++ = p->in_zero_point;
        }
        if (++r->slot == p->ring_h) r->slot = 0;
    }
}

/* Where the padded row lies in the ring; it has entered and not yet been overwritten. */
LL_INLINE const int16_t *ll_row(const ll_ring *r, int32_t row) {
    int32_t slot = r->slot - (r->next - row);
    if (slot < 0) slot += r->p->ring_h;
    return r->ring + slot * r->p->ring_w;
}


/* A code, by the quick way where the whole channel may take it; is_quick is a constant where this is inlined. */
LL_INLINE int8_t ll_code(const ll_scaling *s, const int32_t *constants, int32_t offset, int32_t sum, int is_quick) {
    if (!is_quick) return ll_scale(s, constants, sum);
    return (int8_t)ll_rescale_plain(ll_twice(sum, constants[0]), constants[1], constants[2], offset);
}

LL_INLINE int ll_is_quick(const ll_scaling *s) { return s->is_plain_scale && s->lower == -128 && s->upper == 127; }

/* One output row; two outputs at a time share their loads and the pairs of weights (w0,w1) and (w1,w2). */
LL_INLINE void ll_row_3x3(const int16_t *const *rows, const uint32_t *w, const ll_scaling *s, const int32_t *constants,
                          int8_t *output, uint32_t step, uint32_t count, int stride, int is_quick) {
    const int16_t *r0 = rows[0], *r1 = rows[1], *r2 = rows[2];
    const int32_t own[3] = {constants[0], constants[1], constants[2]};
    int32_t offset = is_quick ? ll_plain_offset(s->zero_point, own[2]) : 0;
    uint32_t w01[3], w12[3];
    for (int i = 0; i < 3; i++) w01[i] = w[2 * i], w12[i] = w[2 * i] >> 16 | w[2 * i + 1] << 16;
    for (; count >= 2; count -= 2, r0 += 2 * stride, r1 += 2 * stride, r2 += 2 * stride) {
        int32_t a = 0, b = 0;
        for (int i = 0; i < 3; i++) {
            const int16_t *x = i == 0 ? r0 : i == 1 ? r1 : r2;
            uint32_t x01 = ll_load2(x), x23 = ll_load2(x + 2);
            a = ll_smlabt(x23, w12[i], ll_smlad(x01, w01[i], a));
            if (stride == 1) b = ll_smlad(x23, w12[i], ll_smlatb(x01, w01[i], b));
            else b = ll_smlabt(ll_load2(x + 4), w12[i], ll_smlad(x23, w01[i], b));
        }
        *output = ll_code(s, own, offset, a, is_quick), output += step;
        *output = ll_code(s, own, offset, b, is_quick), output += step;
    }
    if (count) {
        int32_t a = 0;
        for (int i = 0; i < 3; i++) {
            const int16_t *x = i == 0 ? r0 : i == 1 ? r1 : r2;
            a = ll_smlabt(ll_load2(x + 2), w12[i], ll_smlad(ll_load2(x), w01[i], a));
        }
        *output = ll_code(s, own, offset, a, is_quick);
    }
}

#define LL_ROW_3X3(name, stride, is_quick)                                                                          \
    static LL_NOINLINE void name(const int16_t *const *rows, const uint32_t *w, const ll_scaling *s,                \
                                 const int32_t *constants, int8_t *output, uint32_t step, uint32_t count) {         \
        ll_row_3x3(rows, w, s, constants, output, step, count, stride, is_quick);                                   \
    }
LL_ROW_3X3(ll_row_3x3_s1, 1, 1)
LL_ROW_3X3(ll_row_3x3_s2, 2, 1)
LL_ROW_3X3(ll_row_3x3_s1_any, 1, 0)
LL_ROW_3X3(ll_row_3x3_s2_any, 2, 0)

/* One output row for any kernel: pairs of taps along the row where they are neighbours, single taps where they are dilated. */
LL_INLINE void ll_row_general(const ll_depthwise_params *p, const int16_t *ring, const int32_t *starts, const uint32_t *w,
                              const int32_t *constants, int8_t *output, uint32_t step, int is_quick) {
    const ll_scaling *s = &p->scaling;
    int32_t offset = is_quick ? ll_plain_offset(s->zero_point, constants[2]) : 0;
    int32_t pairs = (p->kernel_w + 1) / 2;
    for (int32_t x = 0; x < p->out_w; x++, ring += p->stride_w, output += step) {
        const uint32_t *weight = w;
        int32_t sum = 0;
        for (int32_t i = 0; i < p->kernel_h; i++) {
            const int16_t *from = ring + starts[i];
            if (p->dilation_w == 1) {
                int32_t left = pairs;
                for (; left >= 2; left -= 2, from += 4, weight += 2)
                    sum = ll_smlad(ll_load2(from + 2), weight[1], ll_smlad(ll_load2(from), weight[0], sum));
                if (left) sum = ll_smlad(ll_load2(from), *weight++, sum);
            } else {
                for (int32_t pair = 0; pair < pairs; pair++, weight++, from += 2 * p->dilation_w) {
                    sum = ll_smlabb(ll_load1(from), *weight, sum);
                    if (2 * pair + 1 < p->kernel_w) sum = ll_smlabt(ll_load1(from + p->dilation_w), *weight, sum);
                }
            }
        }
        *output = ll_code(s, constants, offset, sum, is_quick);
    }
}

static LL_NOINLINE void ll_row_quick(const ll_depthwise_params *p, const int16_t *ring, const int32_t *starts, const uint32_t *w,
                                     const int32_t *constants, int8_t *output, uint32_t step) {
    ll_row_general(p, ring, starts, w, constants, output, step, 1);
}

static LL_NOINLINE void ll_row_any(const ll_depthwise_params *p, const int16_t *ring, const int32_t *starts, const uint32_t *w,
                                   const int32_t *constants, int8_t *output, uint32_t step) {
    ll_row_general(p, ring, starts, w, constants, output, step, 0);
}

/* Weights as pairs of halfwords; a row of odd length ends in (w, 0). */
static LL_NOINLINE const int8_t *ll_widen_weights(const int8_t *from, uint32_t *to, int32_t rows, int32_t columns) {
    for (; rows; rows--) {
        for (int32_t left = columns; left > 0; left -= 2) {
            uint32_t low = (uint16_t)*from++, high = left > 1 ? (uint16_t)*from++ : 0;
            *to++ = low | high << 16;
        }
    }
    return from;
}

LL_INLINE void ll_depthwise_image(const ll_depthwise_params *p, const int8_t *input, int8_t *output, void *scratch, int is_3x3) {
    const ll_scaling *s = &p->scaling;
    const int8_t *weights = p->weights;
    const int32_t *constants = s->channels;
    int32_t span = (p->kernel_h - 1) * p->dilation_h + 1, pairs = (p->kernel_w + 1) / 2;
    uint32_t multiplier = p->channel_multiplier, out_c = p->in_c * multiplier;
    uint32_t *wide = (uint32_t *)scratch + (uint32_t)p->ring_h * p->ring_w / 2;
    int32_t *starts = (int32_t *)(wide + multiplier * (uint32_t)(p->kernel_h * pairs));
    int is_quick = ll_is_quick(s);
    for (uint32_t channel = 0; channel < p->in_c; channel++, constants += 3 * multiplier) {
        ll_ring ring = {p, input + channel, scratch, 0, 0};
        int8_t *row = output + channel * multiplier;
        for (uint32_t m = 0; m < multiplier; m++)
            weights = ll_widen_weights(weights, wide + m * (uint32_t)(p->kernel_h * pairs), p->kernel_h, p->kernel_w);
        for (int32_t y = 0; y < p->out_h; y++, row += (uint32_t)p->out_w * out_c) {
            int32_t top = y * p->stride_h;
            ll_enter_rows(&ring, top, top + span);
            if (is_3x3) {
                const int16_t *rows[3] = {ll_row(&ring, top), ll_row(&ring, top + 1), ll_row(&ring, top + 2)};
                if (is_quick) (p->stride_w == 1 ? ll_row_3x3_s1 : ll_row_3x3_s2)(rows, wide, s, constants, row, out_c, p->out_w);
                else (p->stride_w == 1 ? ll_row_3x3_s1_any : ll_row_3x3_s2_any)(rows, wide, s, constants, row, out_c, p->out_w);
                continue;
            }
            for (int32_t i = 0; i < p->kernel_h; i++)
                starts[i] = (int32_t)(ll_row(&ring, top + i * p->dilation_h) - ring.ring);
            for (uint32_t m = 0; m < multiplier; m++)
                (is_quick ? ll_row_quick : ll_row_any)(p, ring.ring, starts, wide + m * (uint32_t)(p->kernel_h * pairs),
                                                       constants + 3 * m, row + m, out_c);
        }
    }
    LL_COUNT((uint64_t)p->out_h * p->out_w * out_c * p->kernel_h * p->kernel_w);
}

void ll_depthwise(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch) {
    ll_depthwise_image(params, input, output, scratch, 0);
}

/* 3x3, horizontal stride 1 or 2, no dilation, channel multiplier 1. */
void ll_depthwise_3x3(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch) {
    ll_depthwise_image(params, input, output, scratch, 1);
}
