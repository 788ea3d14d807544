/* Depthwise convolution, one channel after the other, from a ring of input rows widened to 16 bits in scratch.
 *
 * Scratch: ring_h rows of ring_w halfwords; for the general kernel then the channel's weights as halfwords (each kernel row padded to whole
 * pairs with 0) and where each kernel row starts. A row of the ring is a padded input row: the zero point left and right of the image, and
 * whole rows of it above and below. Rows enter the ring just before the first output row that needs them, so the output may overwrite the
 * input wherever it only covers rows that have entered (the generator checks this).
 */
#include "ll_scale.h"

LL_INLINE uint32_t ll_load2(const int16_t *from) { return ll_load4(from); } /* two halfwords, at any even address */
LL_INLINE uint32_t ll_load1(const int16_t *from) { return (uint16_t)*from; }

/* Holds the span of kernel rows for one output row; `slot` is both the oldest row and where the next one enters. */
typedef struct {
    const ll_depthwise_params *p;
    int16_t *first, *end, *slot;
    int32_t next;           /* padded row that enters next */
    int32_t before, inside; /* columns left of the image, and of the image, in a row */
} ll_ring;

/* The columns beside the image keep the zero point from here on. */
static LL_NOINLINE ll_ring ll_new_ring(const ll_depthwise_params *p, int16_t *memory) {
    ll_ring r = {p, memory, memory + (uint32_t)p->ring_h * p->ring_w, memory, 0, p->pad_left, 0};
    r.inside = p->ring_w - p->pad_left;
    if (r.inside > p->in_w) r.inside = p->in_w;
    if (r.inside < 0) r.inside = 0, r.before = p->ring_w;
    for (int16_t *to = r.first; to != r.end; to++) *to = p->in_zero_point;
    return r;
}

/* Rows up to (not with) `end` enter; those before `start` are left out, as no output needs them any more. */
static LL_NOINLINE void ll_enter_rows(ll_ring *r, const int8_t *input, int32_t start, int32_t end) {
    const ll_depthwise_params *p = r->p;
    if (r->next < start) r->next = start;
    for (; r->next < end; r->next++) {
        int16_t *to = r->slot + r->before, *stop = to + r->inside;
        int32_t y = r->next - p->pad_top;
        if (y >= 0 && y < p->in_h) {
            ptrdiff_t step = p->in_c;
            const int8_t *from = input + (ptrdiff_t)y * p->in_w * step;
            for (; stop - to >= 4; to += 4, from += 4 * step) {
                to[0] = from[0], to[1] = from[step];
                to[2] = from[2 * step], to[3] = from[3 * step];
            }
            for (; to != stop; from += step) *to++ = *from;
        } else {
            while (to != stop) *to++ = p->in_zero_point;
        }
        r->slot += p->ring_w;
        if (r->slot == r->end) r->slot = r->first;
    }
}

LL_INLINE int16_t *ll_next_row(const ll_ring *r, int16_t *row) {
    row += r->p->ring_w;
    return row == r->end ? r->first : row;
}

static LL_NOINLINE int8_t ll_any_code(const ll_scaling *s, const int32_t *constants, int32_t sum) {
    return ll_scale(s, constants, sum);
}

/* A code, by the quick way where the whole layer may take it; is_quick is a constant where this is inlined. */
LL_INLINE int8_t ll_code(const ll_scaling *s, const int32_t *constants, int32_t offset, int32_t sum, int is_quick) {
    if (!is_quick) return ll_any_code(s, constants, sum);
    return (int8_t)ll_rescale_plain(ll_twice(sum, constants[0]), constants[1], constants[2], offset);
}

LL_INLINE int ll_is_quick(const ll_scaling *s) { return s->is_plain_scale && s->lower == -128 && s->upper == 127; }

/* What one output row of a 3x3 kernel needs. */
typedef struct {
    const int16_t *rows[3];
    uint32_t w01[3], w12[3]; /* the first two and the last two taps of each kernel row */
    const ll_scaling *scaling;
    const int32_t *constants;
    int32_t offset;
    uint32_t step, count;
} ll_job_3x3;

/* Two outputs at a time share their loads. */
LL_INLINE void ll_row_3x3(const ll_job_3x3 *job, int8_t *output, int stride, int is_quick) {
    const int16_t *r0 = job->rows[0], *r1 = job->rows[1], *r2 = job->rows[2];
    const ll_scaling *s = job->scaling;
    const int32_t own[3] = {job->constants[0], job->constants[1], job->constants[2]};
    const uint32_t w01[3] = {job->w01[0], job->w01[1], job->w01[2]}, w12[3] = {job->w12[0], job->w12[1], job->w12[2]};
    uint32_t step = job->step, count = job->count;
    int32_t offset = job->offset;
    for (; count >= 2; count -= 2, r0 += 2 * stride, r1 += 2 * stride, r2 += 2 * stride) {
        int32_t a = 0, b = 0;
        for (int i = 0; i < 3; i++) {
            const int16_t *x = i == 0 ? r0 : i == 1 ? r1 : r2;
            uint32_t x01 = ll_load2(x), x23 = ll_load2(x + 2);
            a = ll_smlabt(x23, w12[i], ll_smlad(x01, w01[i], a));
            if (stride == 1) b = ll_smlad(x23, w12[i], ll_smlatb(x01, w01[i], b));
            else b = ll_smlabt(ll_load2(x + 4), w12[i], ll_smlad(x23, w01[i], b));
        }
        output[0] = ll_code(s, own, offset, a, is_quick);
        output[step] = ll_code(s, own, offset, b, is_quick);
        output += 2 * step;
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

static LL_NOINLINE void ll_row_3x3_s1(const ll_job_3x3 *job, int8_t *output) { ll_row_3x3(job, output, 1, 1); }
static LL_NOINLINE void ll_row_3x3_s2(const ll_job_3x3 *job, int8_t *output) { ll_row_3x3(job, output, 2, 1); }
static LL_NOINLINE void ll_row_3x3_s1_any(const ll_job_3x3 *job, int8_t *output) { ll_row_3x3(job, output, 1, 0); }
static LL_NOINLINE void ll_row_3x3_s2_any(const ll_job_3x3 *job, int8_t *output) { ll_row_3x3(job, output, 2, 0); }

LL_INLINE uint32_t ll_pair(int8_t low, int8_t high) { return (uint16_t)low | (uint32_t)(uint16_t)high << 16; }

/* 3x3, horizontal stride 1 or 2, no dilation, channel multiplier 1. */
void ll_depthwise_3x3(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch) {
    const ll_depthwise_params *p = params;
    const int8_t *w = p->weights;
    int is_quick = ll_is_quick(&p->scaling);
    void (*row)(const ll_job_3x3 *, int8_t *) = p->stride_w == 1 ? is_quick ? ll_row_3x3_s1 : ll_row_3x3_s1_any
                                                : is_quick       ? ll_row_3x3_s2
                                                                 : ll_row_3x3_s2_any;
    ll_ring ring = ll_new_ring(p, scratch);
    ll_job_3x3 job = {.scaling = &p->scaling, .constants = p->scaling.channels, .step = p->in_c, .count = p->out_w};
    for (uint32_t channel = p->in_c; channel; channel--, input++, job.constants += 3) {
        int8_t *to = output++;
        ring.next = 0;
        for (int i = 0; i < 3; i++, w += 3) job.w01[i] = ll_pair(w[0], w[1]), job.w12[i] = ll_pair(w[1], w[2]);
        if (is_quick) job.offset = ll_plain_offset(p->scaling.zero_point, job.constants[2]);
        for (int32_t y = 0, top = 0; y < p->out_h; y++, top += p->stride_h, to += p->out_w * job.step) {
            ll_enter_rows(&ring, input, top, top + 3);
            job.rows[0] = ring.slot;
            job.rows[1] = ll_next_row(&ring, ring.slot);
            job.rows[2] = ll_next_row(&ring, (int16_t *)job.rows[1]);
            row(&job, to);
        }
    }
    LL_COUNT((uint64_t)p->out_h * p->out_w * p->in_c * 9);
}

/* What one output row of any kernel needs. */
typedef struct {
    const ll_depthwise_params *p;
    const int16_t *ring;
    const int32_t *starts; /* of each kernel row, in the ring */
    const uint32_t *weights;
    const int32_t *constants;
    uint32_t step;
} ll_job;

/* Kernel rows as `pairs` of neighbouring taps; two outputs at a time share the weights. */
LL_INLINE void ll_row_pairs(const ll_job *job, int8_t *output, int32_t pairs, int is_quick) {
    const ll_depthwise_params *p = job->p;
    const ll_scaling *s = &p->scaling;
    int32_t offset = is_quick ? ll_plain_offset(s->zero_point, job->constants[2]) : 0;
    const int16_t *column = job->ring;
    int32_t stride = p->stride_w;
    for (int32_t left = p->out_w; left > 0; left -= 2, column += 2 * stride) {
        const int32_t *start = job->starts, *stop = start + p->kernel_h;
        const uint32_t *w = job->weights;
        int32_t a = 0, b = 0, next = left > 1 ? stride : 0; /* a last single output is computed twice */
        for (; start != stop; start++) {
            const int16_t *x = column + *start;
            for (int32_t i = 0; i < pairs; i++, x += 2) {
                uint32_t taps = *w++;
                a = ll_smlad(ll_load2(x), taps, a);
                b = ll_smlad(ll_load2(x + next), taps, b);
            }
        }
        *output = ll_code(s, job->constants, offset, a, is_quick), output += job->step;
        if (left > 1) *output = ll_code(s, job->constants, offset, b, is_quick), output += job->step;
    }
}

static LL_NOINLINE void ll_row_2_pairs(const ll_job *job, int8_t *output) { ll_row_pairs(job, output, 2, 1); }
static LL_NOINLINE void ll_row_3_pairs(const ll_job *job, int8_t *output) { ll_row_pairs(job, output, 3, 1); }
static LL_NOINLINE void ll_row_4_pairs(const ll_job *job, int8_t *output) { ll_row_pairs(job, output, 4, 1); }

/* Any number of taps, also dilated ones, one by one. */
static LL_NOINLINE void ll_row_any(const ll_job *job, int8_t *output) {
    const ll_depthwise_params *p = job->p;
    for (int32_t x = 0; x < p->out_w; x++, output += job->step) {
        const uint32_t *w = job->weights;
        int32_t sum = 0;
        for (int32_t i = 0; i < p->kernel_h; i++) {
            const int16_t *from = job->ring + job->starts[i] + x * p->stride_w;
            for (int32_t tap = 0; tap < p->kernel_w; tap += 2, w++) {
                sum = ll_smlabb(ll_load1(from), *w, sum), from += p->dilation_w;
                if (tap + 1 < p->kernel_w) sum = ll_smlabt(ll_load1(from), *w, sum), from += p->dilation_w;
            }
        }
        *output = ll_any_code(&p->scaling, job->constants, sum);
    }
}

void ll_depthwise(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch) {
    const ll_depthwise_params *p = params;
    uint32_t multiplier = p->channel_multiplier, pairs = (p->kernel_w + 1u) / 2, words = p->kernel_h * pairs;
    int32_t span = (p->kernel_h - 1) * p->dilation_h + 1;
    ll_ring ring = ll_new_ring(p, scratch);
    uint32_t *wide = (uint32_t *)ring.end;
    int32_t *starts = (int32_t *)(wide + multiplier * words);
    int is_quick = ll_is_quick(&p->scaling) && p->dilation_w == 1 && pairs >= 2 && pairs <= 4;
    void (*row)(const ll_job *, int8_t *) = !is_quick ? ll_row_any : pairs == 2 ? ll_row_2_pairs : pairs == 3 ? ll_row_3_pairs
                                                                                                           : ll_row_4_pairs;
    ll_job job = {p, ring.first, starts, wide, p->scaling.channels, p->in_c * multiplier};
    const int8_t *w = p->weights;
    const int32_t *constants = p->scaling.channels;
    for (uint32_t channel = p->in_c; channel; channel--, input++, output += multiplier) {
        int8_t *to = output;
        ring.next = 0;
        for (uint32_t i = 0; i < multiplier * p->kernel_h; i++) {
            for (uint32_t pair = 0; pair < pairs; pair++, w += 2)
                wide[i * pairs + pair] = 2 * pair + 1 < p->kernel_w ? ll_pair(w[0], w[1]) : ll_pair(*w, 0);
            w -= p->kernel_w % 2;
        }
        for (int32_t y = 0, top = 0; y < p->out_h; y++, top += p->stride_h, to += p->out_w * job.step) {
            ll_enter_rows(&ring, input, top, top + span);
            int16_t *start = ring.slot;
            for (int32_t i = 0; i < p->kernel_h; i++) {
                starts[i] = (int32_t)(start - ring.first);
                for (int32_t skip = p->dilation_h; skip; skip--) start = ll_next_row(&ring, start);
            }
            for (uint32_t m = 0; m < multiplier; m++) {
                job.weights = wide + m * words;
                job.constants = constants + 3 * m;
                row(&job, to + m);
            }
        }
        constants += 3 * multiplier;
    }
    LL_COUNT((uint64_t)p->out_h * p->out_w * p->in_c * multiplier * p->kernel_h * p->kernel_w);
}
