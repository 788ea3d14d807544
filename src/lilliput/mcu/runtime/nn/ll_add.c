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

LL_INLINE int is_half(const ll_add_params *p, int i) { return p->multiplier[i] == 1 << 30 && p->shift[i] == 0; }

/* (code - zero_point) << 20, rescaled; the code comes as the top byte of a word. The sign mask leaves ties alone where nothing is shifted. */
LL_INLINE int32_t ll_common(const ll_operand *o, uint32_t top_byte) {
    int32_t x = ll_smmulr(((int32_t)top_byte >> 3) - o->doubled_zero, o->multiplier);
    x += (x >> 31) & o->sign_mask;
    return (x + o->half) >> o->right;
}

/* The same where the factor is one half. */
LL_INLINE int32_t ll_common_half(const ll_operand *o, uint32_t top_byte) {
    return ((int32_t)top_byte >> 5) - (o->doubled_zero >> 2);
}

LL_INLINE int32_t ll_sum_code(const ll_operand *a, const ll_operand *b, uint32_t first, uint32_t second, int a_is_half,
                              int32_t multiplier, int32_t right, int32_t offset) {
    int32_t sum = (a_is_half ? ll_common_half(a, first) : ll_common(a, first)) + ll_common(b, second);
    return ll_rescale_plain(2 * sum, multiplier, right, offset);
}

LL_INLINE void ll_add_run(const ll_add_params *p, const int8_t *first, const int8_t *second, int8_t *output, uint32_t count, int i,
                          int j, int a_is_half) {
    ll_operand a = ll_operand_of(p, i), b = ll_operand_of(p, j);
    int32_t multiplier = p->multiplier[2], right = -p->shift[2], offset = ll_plain_offset(p->zero_point[2], right);
    uint32_t lower = ll_repeat4(p->lower), upper = ll_repeat4(p->upper);
    for (; count >= 4; count -= 4, first += 4, second += 4, output += 4) {
        uint32_t x = ll_load4(first), y = ll_load4(second);
        int32_t c0 = ll_sum_code(&a, &b, x << 24, y << 24, a_is_half, multiplier, right, offset);
        int32_t c1 = ll_sum_code(&a, &b, (x & 0xFF00u) << 16, (y & 0xFF00u) << 16, a_is_half, multiplier, right, offset);
        int32_t c2 = ll_sum_code(&a, &b, (x & 0xFF0000u) << 8, (y & 0xFF0000u) << 8, a_is_half, multiplier, right, offset);
        int32_t c3 = ll_sum_code(&a, &b, x & 0xFF000000u, y & 0xFF000000u, a_is_half, multiplier, right, offset);
        ll_store4(output, ll_min4(ll_max4(ll_pack4(c0, c1, c2, c3), lower), upper));
    }
    for (; count; count--) {
        uint32_t x = (uint32_t)(uint8_t)*first++ << 24, y = (uint32_t)(uint8_t)*second++ << 24;
        int32_t code = ll_sum_code(&a, &b, x, y, a_is_half, multiplier, right, offset);
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
    if (!params->is_plain_scale) {
        ll_add_any(params, first, second, output, count);
        return;
    }
    /* Addition commutes, so the half goes first. */
    if (is_half(params, 0)) ll_add_run(params, first, second, output, count, 0, 1, 1);
    else if (is_half(params, 1)) ll_add_run(params, second, first, output, count, 1, 0, 1);
    else ll_add_run(params, first, second, output, count, 0, 1, 0);
}

void ll_add(const ll_add_params *params, const int8_t *first, const int8_t *second, int8_t *output, void *scratch) {
    (void)scratch;
    ll_add_codes(params, first, second, output, params->count);
}
