/* Element-wise sum. Each input is rescaled to a common scale with 20 more bits; mostly the wider input's factor is exactly one half,
 * and then its rescaling is a shift. */
#include "ll_add.h"

#include "ll_arith.h"

typedef struct {
    int32_t doubled_zero; /* zero_point << 21 */
    int32_t multiplier, right, half, sign_mask;
} ll_operand;

LL_INLINE ll_operand ll_operand_of(const ll_add_params *p, int i) {
    int32_t right = -p->shift[i];
    ll_operand o = {p->zero_point[i] * (1 << 21), p->multiplier[i], right, right ? 1 << (right - 1) : 0, right ? -1 : 0};
    return o;
}

/* (code - zero_point) << 20, rescaled; the code comes as the top byte of a word. The sign mask acts where something is shifted out. */
LL_INLINE int32_t ll_common(const ll_operand *o, uint32_t top_byte) {
    int32_t x = ll_smmulr(((int32_t)top_byte >> 3) - o->doubled_zero, o->multiplier);
    x += (x >> 31) & o->sign_mask;
    return (x + o->half) >> o->right;
}

/* What the quick way needs: `half` is the input whose factor is one half, `other` the other. */
typedef struct {
    int32_t half_zero; /* zero_point << 19 */
    ll_operand other;
    int32_t multiplier, right, offset;
} ll_sum;

LL_INLINE int32_t ll_sum_code(const ll_sum *s, uint32_t half, uint32_t other) {
    int32_t sum = ((int32_t)half >> 5) - s->half_zero + ll_common(&s->other, other);
    return ll_rescale_plain(2 * sum, s->multiplier, s->right, s->offset);
}

static LL_NOINLINE void ll_add_quick(const ll_add_params *p, const int8_t *half, const int8_t *other, int8_t *output,
                                     uint32_t count, int half_index) {
    int32_t right = -p->shift[2];
    ll_sum s = {p->zero_point[half_index] * (1 << 19), ll_operand_of(p, 1 - half_index), p->multiplier[2], right,
                ll_plain_offset(p->zero_point[2], right)};
    for (; count >= 4; count -= 4, half += 4, other += 4, output += 4) {
        uint32_t x = ll_load4(half), y = ll_load4(other);
        int32_t c0 = ll_sum_code(&s, x << 24, y << 24);
        int32_t c1 = ll_sum_code(&s, (x & 0xFF00u) << 16, (y & 0xFF00u) << 16);
        int32_t c2 = ll_sum_code(&s, (x & 0xFF0000u) << 8, (y & 0xFF0000u) << 8);
        int32_t c3 = ll_sum_code(&s, x & 0xFF000000u, y & 0xFF000000u);
        uint32_t word = ll_pack4(c0, c1, c2, c3);
        ll_store4(output, ll_min4(ll_max4(word, ll_repeat4(p->lower)), ll_repeat4(p->upper)));
    }
    for (; count; count--) {
        int32_t code = ll_sum_code(&s, (uint32_t)(uint8_t)*half++ << 24, (uint32_t)(uint8_t)*other++ << 24);
        *output++ = (int8_t)ll_clamp(code, p->lower, p->upper);
    }
}

static LL_NOINLINE void ll_add_any(const ll_add_params *p, const int8_t *first, const int8_t *second, int8_t *output,
                                   uint32_t count) {
    for (; count; count--) {
        int32_t a = ll_rescale((*first++ - p->zero_point[0]) * (1 << 20), p->multiplier[0], p->shift[0]);
        int32_t b = ll_rescale((*second++ - p->zero_point[1]) * (1 << 20), p->multiplier[1], p->shift[1]);
        int32_t code = ll_rescale((int32_t)((uint32_t)a + (uint32_t)b), p->multiplier[2], p->shift[2]);
        *output++ = ll_code_of(code, p->zero_point[2], p->lower, p->upper);
    }
}

void ll_add_codes(const ll_add_params *params, const int8_t *first, const int8_t *second, int8_t *output, uint32_t count) {
    /* Addition commutes, so either may be the half. */
    if (params->half == 0) ll_add_quick(params, first, second, output, count, 0);
    else if (params->half == 1) ll_add_quick(params, second, first, output, count, 1);
    else ll_add_any(params, first, second, output, count);
}

void ll_add(const ll_add_params *params, const int8_t *first, const int8_t *second, int8_t *output, void *scratch) {
    (void)scratch;
    ll_add_codes(params, first, second, output, params->count);
}
