/* Depthwise convolution, one channel after the other, from a ring of input rows widened to 16 bits in scratch.
 *
 * Scratch: ring_h rows of ring_w halfwords, then the channel's filter as halfwords (each of its rows filled up to whole pairs) and, for
 * the general kernel, where each kernel row starts. A row of the ring is a padded input row: the zero point left and right of the image, and
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

LL_INLINE void ll_take_4(int16_t *to, const int8_t *from, ptrdiff_t step) {
    to[0] = from[0], to[1] = from[step];
    to[2] = from[2 * step], to[3] = from[3 * step];
}

static LL_NOINLINE void ll_take_row(int16_t *to, const int8_t *from, ptrdiff_t step, int32_t count) {
    for (; count >= 8; count -= 8, to += 8, from += 8 * step) ll_take_4(to, from, step), ll_take_4(to + 4, from + 4 * step, step);
    if (count & 4) ll_take_4(to, from, step), to += 4, from += 4 * step;
    if (count & 2) to[0] = from[0], to[1] = from[step], to += 2, from += 2 * step;
    if (count & 1) *to = *from;
}

static LL_NOINLINE void ll_fill_row(int16_t *to, int16_t value, int32_t count) {
    for (int16_t *stop = to + count; to != stop;) *to++ = value;
}

/* Rows up to (not with) `end` enter; those before `start` are left out, as no output needs them any more. */
static LL_NOINLINE void ll_enter_rows(ll_ring *r, const int8_t *input, int32_t start, int32_t end) {
    const ll_depthwise_params *p = r->p;
    if (r->next < start) r->next = start;
    for (; r->next < end; r->next++) {
        int32_t y = r->next - p->pad_top;
        if (y >= 0 && y < p->in_h) ll_take_row(r->slot + r->before, input + (ptrdiff_t)y * p->in_w * p->in_c, p->in_c, r->inside);
        else ll_fill_row(r->slot + r->before, p->in_zero_point, r->inside);
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

/* Square kernels of 3, 5 or 7 taps a side, in blocks of four outputs of a row (two, or fewer of four, where a row ends).
 *
 * The filter lies behind the ring, k - 1 of its rows twice, so that k rows from the right one on go with the rows of the ring as they lie
 * in memory, whichever slot is the oldest. A filter row of taps 0 1 2 3 4 is the words (0,1) (2,3) (3,4) and then, for horizontal stride 1,
 * (1,2): outputs at even columns take the first two words and the high half of the third; those at odd columns, whose codes lie one halfword
 * on, the low half of the first, the last word, and the third. Likewise for 3 and 7 taps. The last block may read past the ring's last
 * row, by less than the filter behind it is long; what it computes from there is not stored. */
typedef struct ll_square ll_square;
typedef void (*ll_sums)(ll_square *job, const uint32_t *filter, const int16_t *column); /* in assembly these are not called from C */

/* What the output rows of a channel have in common. The assembly knows the offsets. */
struct ll_square {
    int32_t doubled_bias, multiplier, right, offset;
    uint32_t step, block_bytes;
    const int16_t *ring;
    uint32_t row_bytes;
    uint32_t blocks, rest; /* blocks of four outputs, and single outputs after them */
    ll_sums block_sums, rest_sums;
    int32_t sums[4];
};

/* Words of a filter row. */
LL_INLINE int32_t ll_square_words(int32_t taps, int32_t stride) { return stride == 1 ? taps - 1 : (taps + 1) / 2; }

#if LL_DSP
/* By hand, as the registers are just enough: sums in r4 to r7, codes in r8 to r12, filter words in r2, r3 and where one is free.
 *
 * A function of sums gets r0: codes, r1: filter; the frame is [sp]: for its return address, [sp, #4]: row_bytes, ... and the frame goes on as the caller likes. */
__asm__(".pushsection .text.ll_square_macros, \"ax\", %progbits\n"
        ".syntax unified\n"
        ".thumb\n"
        ".macro ll_dot is_first, kind, sum, codes, taps\n" /* the first product of a sum starts it */
        ".if \\is_first\n"
        ".ifc \\kind, d\n"
        "smuad \\sum, \\codes, \\taps\n"
        ".else\n"
        "smul\\kind \\sum, \\codes, \\taps\n"
        ".endif\n"
        ".else\n"
        "smla\\kind \\sum, \\codes, \\taps, \\sum\n"
        ".endif\n"
        ".endm\n"

        ".macro ll_row_3_1_4 f\n"
        "ldm r0, {r8, r9, r10}\n"
        "ldrd r2, r3, [r1], #8\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, tb, r5, r8, r2\n"
        "ll_dot \\f, d, r6, r9, r2\n"
        "ll_dot \\f, tb, r7, r9, r2\n"
        "smlabt r4, r9, r3, r4\n"
        "smlad r5, r9, r3, r5\n"
        "smlabt r6, r10, r3, r6\n"
        "smlad r7, r10, r3, r7\n"
        ".endm\n"
        ".macro ll_row_3_1_2 f\n"
        "ldrd r8, r9, [r0]\n"
        "ldrd r2, r3, [r1], #8\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, tb, r5, r8, r2\n"
        "smlabt r4, r9, r3, r4\n"
        "smlad r5, r9, r3, r5\n"
        ".endm\n"
        ".macro ll_row_3_2_4 f\n"
        "ldm r0, {r8, r9, r10, r11, r12}\n"
        "ldrd r2, r3, [r1], #8\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, d, r5, r9, r2\n"
        "ll_dot \\f, d, r6, r10, r2\n"
        "ll_dot \\f, d, r7, r11, r2\n"
        "smlabt r4, r9, r3, r4\n"
        "smlabt r5, r10, r3, r5\n"
        "smlabt r6, r11, r3, r6\n"
        "smlabt r7, r12, r3, r7\n"
        ".endm\n"
        ".macro ll_row_3_2_2 f\n"
        "ldm r0, {r8, r9, r10}\n"
        "ldrd r2, r3, [r1], #8\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, d, r5, r9, r2\n"
        "smlabt r4, r9, r3, r4\n"
        "smlabt r5, r10, r3, r5\n"
        ".endm\n"

        ".macro ll_row_5_1_4 f\n"
        "ldm r0, {r8, r9, r10, r11}\n"
        "ldm r1!, {r2, r3, r12}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, tb, r5, r8, r2\n"
        "ll_dot \\f, d, r6, r9, r2\n"
        "ll_dot \\f, tb, r7, r9, r2\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r6, r10, r3, r6\n"
        "ldr r3, [r1], #4\n"
        "smlabt r4, r10, r12, r4\n"
        "smlabt r6, r11, r12, r6\n"
        "smlad r5, r9, r3, r5\n"
        "smlad r7, r10, r3, r7\n"
        "smlad r5, r10, r12, r5\n"
        "smlad r7, r11, r12, r7\n"
        ".endm\n"
        ".macro ll_row_5_1_2 f\n"
        "ldm r0, {r8, r9, r10}\n"
        "ldm r1!, {r2, r3, r11, r12}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, tb, r5, r8, r2\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r5, r9, r12, r5\n"
        "smlabt r4, r10, r11, r4\n"
        "smlad r5, r10, r11, r5\n"
        ".endm\n"
        ".macro ll_row_5_2_4 f\n"
        "ldm r0, {r8, r9, r10, r11}\n"
        "ldm r1!, {r2, r3, r12}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, d, r5, r9, r2\n"
        "ll_dot \\f, d, r6, r10, r2\n"
        "ll_dot \\f, d, r7, r11, r2\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r5, r10, r3, r5\n"
        "smlad r6, r11, r3, r6\n"
        "ldrd r8, r9, [r0, #16]\n"
        "smlabt r4, r10, r12, r4\n"
        "smlabt r5, r11, r12, r5\n"
        "smlabt r6, r8, r12, r6\n"
        "smlad r7, r8, r3, r7\n"
        "smlabt r7, r9, r12, r7\n"
        ".endm\n"
        ".macro ll_row_5_2_2 f\n"
        "ldm r0, {r8, r9, r10, r11}\n"
        "ldm r1!, {r2, r3, r12}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, d, r5, r9, r2\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r5, r10, r3, r5\n"
        "smlabt r4, r10, r12, r4\n"
        "smlabt r5, r11, r12, r5\n"
        ".endm\n"

        ".macro ll_row_7_1_4 f\n"
        "ldm r0, {r8, r9, r10, r11, r12}\n"
        "ldm r1!, {r2, r3, lr}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, tb, r5, r8, r2\n"
        "ll_dot \\f, d, r6, r9, r2\n"
        "ll_dot \\f, tb, r7, r9, r2\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r6, r10, r3, r6\n"
        "smlad r4, r10, lr, r4\n"
        "smlad r6, r11, lr, r6\n"
        "ldm r1!, {r2, r3, lr}\n"
        "smlabt r4, r11, r2, r4\n"
        "smlabt r6, r12, r2, r6\n"
        "smlad r5, r9, r3, r5\n"
        "smlad r7, r10, r3, r7\n"
        "smlad r5, r10, lr, r5\n"
        "smlad r7, r11, lr, r7\n"
        "smlad r5, r11, r2, r5\n"
        "smlad r7, r12, r2, r7\n"
        "ldr lr, [sp, #4]\n"
        ".endm\n"
        ".macro ll_row_7_1_2 f\n"
        "ldm r0, {r8, r9, r10, r11}\n"
        "ldm r1!, {r2, r3, r12}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, tb, r5, r8, r2\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r4, r10, r12, r4\n"
        "ldm r1!, {r2, r3, r12}\n"
        "smlabt r4, r11, r2, r4\n"
        "smlad r5, r9, r3, r5\n"
        "smlad r5, r10, r12, r5\n"
        "smlad r5, r11, r2, r5\n"
        ".endm\n"
        ".macro ll_row_7_2_4 f\n"
        "ldm r0, {r8, r9, r10, r11}\n"
        "ldm r1!, {r2, r3, r12, lr}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, d, r5, r9, r2\n"
        "ll_dot \\f, d, r6, r10, r2\n"
        "ll_dot \\f, d, r7, r11, r2\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r5, r10, r3, r5\n"
        "smlad r6, r11, r3, r6\n"
        "smlad r4, r10, r12, r4\n"
        "smlad r5, r11, r12, r5\n"
        "smlabt r4, r11, lr, r4\n"
        "ldrd r8, r9, [r0, #16]\n"
        "ldr r10, [r0, #24]\n"
        "smlabt r5, r8, lr, r5\n"
        "smlad r6, r8, r12, r6\n"
        "smlabt r6, r9, lr, r6\n"
        "smlad r7, r8, r3, r7\n"
        "smlad r7, r9, r12, r7\n"
        "smlabt r7, r10, lr, r7\n"
        "ldr lr, [sp, #4]\n"
        ".endm\n"
        ".macro ll_row_7_2_2 f\n"
        "ldm r0, {r8, r9, r10, r11}\n"
        "ldm r1!, {r2, r3, r7, r12}\n"
        "ll_dot \\f, d, r4, r8, r2\n"
        "ll_dot \\f, d, r5, r9, r2\n"
        "ldr r8, [r0, #16]\n"
        "smlad r4, r9, r3, r4\n"
        "smlad r5, r10, r3, r5\n"
        "smlad r4, r10, r7, r4\n"
        "smlad r5, r11, r7, r5\n"
        "smlabt r4, r11, r12, r4\n"
        "smlabt r5, r8, r12, r5\n"
        ".endm\n"

        ".macro ll_sums taps, kind\n"
        ".section .text.ll_sums_\\kind, \"ax\", %progbits\n"
        ".p2align 2\n"
        ".global ll_sums_\\kind\n"
        ".type ll_sums_\\kind, %function\n"
        "ll_sums_\\kind:\n"
        "str lr, [sp]\n"
        "ldr lr, [sp, #4]\n"
        "ll_row_\\kind 1\n"
        ".rept \\taps - 1\n"
        "add r0, r0, lr\n"
        "ll_row_\\kind 0\n"
        ".endr\n"
        "ldr pc, [sp]\n"
        ".size ll_sums_\\kind, . - ll_sums_\\kind\n"
        ".endm\n"
        "ll_sums 3, 3_1_4\n"
        "ll_sums 3, 3_1_2\n"
        "ll_sums 3, 3_2_4\n"
        "ll_sums 3, 3_2_2\n"
        "ll_sums 5, 5_1_4\n"
        "ll_sums 5, 5_1_2\n"
        "ll_sums 5, 5_2_4\n"
        "ll_sums 5, 5_2_2\n"
        "ll_sums 7, 7_1_4\n"
        "ll_sums 7, 7_1_2\n"
        "ll_sums 7, 7_2_4\n"
        "ll_sums 7, 7_2_2\n"
        ".purgem ll_sums\n"
        ".purgem ll_dot\n"
        ".purgem ll_row_3_1_4\n"
        ".purgem ll_row_3_1_2\n"
        ".purgem ll_row_3_2_4\n"
        ".purgem ll_row_3_2_2\n"
        ".purgem ll_row_5_1_4\n"
        ".purgem ll_row_5_1_2\n"
        ".purgem ll_row_5_2_4\n"
        ".purgem ll_row_5_2_2\n"
        ".purgem ll_row_7_1_4\n"
        ".purgem ll_row_7_1_2\n"
        ".purgem ll_row_7_2_4\n"
        ".purgem ll_row_7_2_2\n"

        /* r0: the job, r1: filter, r2: output. The frame: return address of the sums, row_bytes, blocks left, output, column, filter, job. */
        ".section .text.ll_square_row, \"ax\", %progbits\n"
        ".p2align 2\n"
        ".global ll_square_row\n"
        ".type ll_square_row, %function\n"
        ".macro ll_code sum\n" /* as ll_rescale_plain; r0 to r3 hold the four constants */
        "add \\sum, r0, \\sum, lsl #1\n"
        "smmulr \\sum, \\sum, r1\n"
        "add \\sum, \\sum, \\sum, asr #31\n"
        "add \\sum, \\sum, r3\n"
        "asr \\sum, \\sum, r2\n"
        "ssat \\sum, #8, \\sum\n"
        ".endm\n"
        "ll_square_row:\n"
        "push {r0, r4-r11, lr}\n"
        "ldrd r4, r5, [r0, #24]\n" /* ring, row_bytes */
        "ldr r6, [r0, #32]\n"
        "mov r12, r0\n"
        "sub sp, sp, #24\n"
        "strd r5, r6, [sp, #4]\n"
        "strd r2, r4, [sp, #12]\n"
        "str r1, [sp, #20]\n"
        "cmp r6, #0\n"
        "beq 2f\n"
        "1:\n"
        "ldr r2, [r12, #40]\n"
        "ldrd r0, r1, [sp, #16]\n"
        "blx r2\n"
        "ldr r12, [sp, #24]\n"
        "ldm r12, {r0, r1, r2, r3, r8, r9}\n"
        "ldrd r10, r11, [sp, #12]\n"
        "ll_code r4\n"
        "ll_code r5\n"
        "ll_code r6\n"
        "ll_code r7\n"
        "ldr r3, [sp, #8]\n"
        "strb r4, [r10]\n"
        "strb r5, [r10, r8]\n"
        "add r10, r10, r8, lsl #1\n"
        "strb r6, [r10]\n"
        "strb r7, [r10, r8]\n"
        "add r10, r10, r8, lsl #1\n"
        "add r11, r11, r9\n"
        "subs r3, r3, #1\n"
        "strd r10, r11, [sp, #12]\n"
        "str r3, [sp, #8]\n"
        "bne 1b\n"
        "2:\n"
        "ldr r10, [r12, #36]\n"
        "cmp r10, #0\n"
        "beq 3f\n"
        "ldr r2, [r12, #44]\n"
        "ldrd r0, r1, [sp, #16]\n"
        "blx r2\n"
        "ldr r12, [sp, #24]\n"
        "ldr r10, [sp, #12]\n"
        "ldr r9, [r12, #36]\n"
        "ldm r12, {r0, r1, r2, r3, r8}\n"
        "ll_code r4\n"
        "strb r4, [r10]\n"
        "cmp r9, #2\n"
        "blt 3f\n"
        "ll_code r5\n"
        "strb r5, [r10, r8]\n"
        "beq 3f\n"
        "ll_code r6\n"
        "strb r6, [r10, r8, lsl #1]\n"
        "3:\n"
        "add sp, sp, #24\n"
        "pop {r0, r4-r11, pc}\n"
        ".size ll_square_row, . - ll_square_row\n"
        ".purgem ll_code\n"

        /* The sums alone, to job->sums, for scales that are not plain. r0: the job, r1: filter, r2: column, r3: the sums. */
        ".section .text.ll_square_sums, \"ax\", %progbits\n"
        ".p2align 2\n"
        ".global ll_square_sums\n"
        ".type ll_square_sums, %function\n"
        "ll_square_sums:\n"
        "push {r0, r4-r11, lr}\n"
        "ldr r4, [r0, #28]\n"
        "mov r0, r2\n"
        "push {r3, r4}\n" /* the return address goes over the first */
        "blx r3\n"
        "ldr r12, [sp, #8]\n"
        "add r12, r12, #48\n"
        "stm r12, {r4, r5, r6, r7}\n"
        "add sp, sp, #8\n"
        "pop {r0, r4-r11, pc}\n"
        ".size ll_square_sums, . - ll_square_sums\n"
        ".popsection\n");

void ll_square_row(const ll_square *job, const uint32_t *filter, int8_t *output);
void ll_square_sums(ll_square *job, const uint32_t *filter, const int16_t *column, ll_sums sums);
#define LL_SUMS(taps, stride) LL_DECLARE_SUMS(taps, stride, 4) LL_DECLARE_SUMS(taps, stride, 2)
#define LL_DECLARE_SUMS(taps, stride, outputs) \
    void ll_sums_##taps##_##stride##_##outputs(ll_square *job, const uint32_t *filter, const int16_t *column);
#else
LL_INLINE void ll_windows(ll_square *job, const uint32_t *filter, const int16_t *column, int taps, int stride, int outputs) {
    for (int i = 0; i < outputs; i++, column += stride) {
        const int16_t *row = column;
        const uint32_t *w = filter;
        int32_t sum = 0;
        for (int y = 0; y < taps; y++, row += job->row_bytes / 2, w += ll_square_words(taps, stride)) {
            for (int x = 0; x + 1 < taps; x += 2) sum = ll_smlad(ll_load2(row + x), w[x / 2], sum);
            sum = ll_smlabt(ll_load1(row + taps - 1), w[taps / 2], sum);
        }
        job->sums[i] = sum;
    }
}

static void ll_square_sums(ll_square *job, const uint32_t *filter, const int16_t *column, ll_sums sums) { sums(job, filter, column); }

#define LL_SUMS(taps, stride) LL_DEFINE_SUMS(taps, stride, 4) LL_DEFINE_SUMS(taps, stride, 2)
#define LL_DEFINE_SUMS(taps, stride, outputs)                                                                               \
    static void ll_sums_##taps##_##stride##_##outputs(ll_square *job, const uint32_t *filter, const int16_t *column) {      \
        ll_windows(job, filter, column, taps, stride, outputs);                                                             \
    }
#endif
LL_SUMS(3, 1)
LL_SUMS(3, 2)
LL_SUMS(5, 1)
LL_SUMS(5, 2)
LL_SUMS(7, 1)
LL_SUMS(7, 2)

LL_INLINE uint32_t ll_pair(int8_t low, int8_t high) { return (uint16_t)low | (uint32_t)(uint16_t)high << 16; }

/* The filter of one channel, as many rows again as the ring can be out of step; `rows` is `taps` too, but keeps the loop a loop. */
LL_INLINE void ll_pack_square(uint32_t *to, const int8_t *w, int32_t taps, int32_t stride, int32_t rows) {
    int32_t words = ll_square_words(taps, stride);
    uint32_t *again = to + taps * words;
    for (int32_t y = 1; y <= rows; y++, w += taps, to += words, again += words) {
        for (int32_t i = 0; i < words; i++) {
            int32_t x = i < taps / 2 ? 2 * i : i == taps / 2 ? taps - 2 : 2 * (i - taps / 2) - 1;
            uint32_t word = ll_pair(w[x], w[x + 1]);
            to[i] = word;
            if (y < rows) again[i] = word;
        }
    }
}

/* One output row under any scale. */
static LL_NOINLINE void ll_square_row_any(ll_square *job, const uint32_t *filter, int8_t *output, const ll_scaling *s,
                                          const int32_t *constants) {
    const int16_t *column = job->ring;
    for (uint32_t block = 0; block <= job->blocks; block++, column += job->block_bytes / 2) {
        int is_whole = block < job->blocks;
        uint32_t outputs = is_whole ? 4 : job->rest;
        if (outputs) ll_square_sums(job, filter, column, is_whole ? job->block_sums : job->rest_sums);
        for (uint32_t i = 0; i < outputs; i++, output += job->step) *output = ll_any_code(s, constants, job->sums[i]);
    }
}

#if !LL_DSP
static void ll_square_row(ll_square *job, const uint32_t *filter, int8_t *output) {
    const int32_t constants[3] = {job->doubled_bias, job->multiplier, job->right};
    int32_t zero_point = job->offset >> job->right; /* half the divisor lies below it */
    const ll_scaling scaling = {constants, zero_point, -128, 127, 1};
    ll_square_row_any(job, filter, output, &scaling, constants);
}
#endif

/* `taps` a side, horizontal stride 1 or 2, no dilation, channel multiplier 1. `taps` is a constant where this is inlined. */
LL_INLINE void ll_depthwise_square(const ll_depthwise_params *p, const int8_t *input, int8_t *output, void *scratch, int32_t taps,
                                   ll_sums sums_4, ll_sums sums_2) {
    const int8_t *w = p->weights;
    const int32_t *constants = p->scaling.channels;
    int is_quick = ll_is_quick(&p->scaling);
    ll_ring ring = ll_new_ring(p, scratch);
    int32_t words = ll_square_words(taps, p->stride_w), ring_w = p->ring_w, in_h = p->in_h;
    uint32_t *filter = (uint32_t *)ring.end;
    ptrdiff_t in_step = (ptrdiff_t)p->in_w * p->in_c, out_step = (ptrdiff_t)p->out_w * p->in_c;
    ll_square job; /* field by field: an initializer would call for a function that clears memory */
    job.step = p->in_c, job.block_bytes = 8u * p->stride_w, job.ring = ring.first, job.row_bytes = 2u * p->ring_w;
    job.blocks = p->out_w / 4u, job.rest = p->out_w % 4u;
    job.block_sums = sums_4, job.rest_sums = job.rest == 3 ? sums_4 : sums_2;
    for (uint32_t channel = p->in_c; channel; channel--, input++, w += taps * taps, constants += 3) {
        int8_t *to = output++;
        int16_t *slot = ring.first;
        const uint32_t *turned = filter + taps * words; /* where the oldest slot is not the first */
        int32_t next = -p->pad_top, stop = next + taps, last = stop + p->out_h * p->stride_h;
        if (p->stride_w == 1) ll_pack_square(filter, w, taps, 1, p->kernel_h);
        else ll_pack_square(filter, w, taps, 2, p->kernel_h);
        if (is_quick) {
            job.doubled_bias = constants[0], job.multiplier = constants[1], job.right = constants[2];
            job.offset = ll_plain_offset(p->scaling.zero_point, constants[2]);
        }
        for (; stop < last; stop += p->stride_h, to += out_step) {
            if (next < stop - taps) next = stop - taps; /* rows that no output needs */
            for (; next < stop; next++) {
                if ((uint32_t)next < (uint32_t)in_h)
                    ll_take_row(slot + ring.before, input + next * in_step, p->in_c, ring.inside);
                else ll_fill_row(slot + ring.before, p->in_zero_point, ring.inside);
                slot += ring_w, turned -= words;
                if (slot == ring.end) slot = ring.first, turned = filter + taps * words;
            }
            const uint32_t *rows = slot == ring.first ? filter : turned;
            if (is_quick) ll_square_row(&job, rows, to);
            else ll_square_row_any(&job, rows, to, &p->scaling, constants);
        }
    }
    LL_COUNT((uint64_t)p->out_h * p->out_w * p->in_c * taps * taps);
}

#define LL_DEPTHWISE(taps)                                                                                              \
    void ll_depthwise_##taps##x##taps(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch) { \
        int is_whole = params->stride_w == 1;                                                                           \
        ll_depthwise_square(params, input, output, scratch, taps, is_whole ? ll_sums_##taps##_1_4 : ll_sums_##taps##_2_4, \
                            is_whole ? ll_sums_##taps##_1_2 : ll_sums_##taps##_2_2);                                    \
    }
LL_DEPTHWISE(3)
LL_DEPTHWISE(5)
LL_DEPTHWISE(7)

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
