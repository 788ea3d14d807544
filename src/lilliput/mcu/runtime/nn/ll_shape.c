/* Data movement: copies, borders, repeats. */
#include "ll_arith.h"

static LL_NOINLINE void ll_concat(const ll_concat_params *p, const int8_t **inputs, int8_t *output) {
    for (uint32_t step = 0; step < p->outer; step++) {
        for (uint32_t i = 0; i < p->inputs; i++) {
            ll_copy_bytes(output, inputs[i], p->bytes[i]);
            output += p->bytes[i];
            inputs[i] += p->bytes[i];
        }
    }
}

void ll_concat_1(const ll_concat_params *params, const int8_t *a, int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_concat_2(const ll_concat_params *params, const int8_t *a, const int8_t *b, int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a, b};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_concat_3(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c,
                 int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a, b, c};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_concat_4(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a, b, c, d};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_concat_5(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a, b, c, d, e};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_concat_6(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, const int8_t *f, int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a, b, c, d, e, f};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_concat_7(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, const int8_t *f, const int8_t *g, int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a, b, c, d, e, f, g};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_concat_8(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, const int8_t *f, const int8_t *g, const int8_t *h, int8_t *output, void *scratch) {
    const int8_t *inputs[] = {a, b, c, d, e, f, g, h};
    (void)scratch;
    ll_concat(params, inputs, output);
}

void ll_pad(const ll_pad_params *params, const int8_t *input, int8_t *output, void *scratch) {
    uint32_t row = (uint32_t)params->in_w * params->channels, left = (uint32_t)params->left * params->channels;
    uint32_t right = (uint32_t)params->right * params->channels, width = left + row + right;
    (void)scratch;
    ll_fill_bytes(output, params->zero_point, params->top * width);
    output += params->top * width;
    for (uint32_t y = 0; y < params->in_h; y++, input += row, output += width) {
        ll_fill_bytes(output, params->zero_point, left);
        ll_copy_bytes(output + left, input, row);
        ll_fill_bytes(output + left + row, params->zero_point, right);
    }
    ll_fill_bytes(output, params->zero_point, params->bottom * width);
}

void ll_copy(const ll_copy_params *params, const int8_t *input, int8_t *output, void *scratch) {
    (void)scratch;
    if (input != output) ll_copy_bytes(output, input, params->count);
}

/* Ascending, each word read before it is written: the output may begin at or before the input, in the same memory. */
void ll_copy_rows(const ll_copy_rows_params *params, const int8_t *input, int8_t *output, void *scratch) {
    (void)scratch;
    for (uint32_t y = 0; y < params->rows; y++, input += params->from_bytes, output += params->to_bytes) {
        const int8_t *from = input, *stop = input + params->row_bytes;
        int8_t *to = output;
        for (; stop - from >= 16; from += 16, to += 16) {
            uint32_t a = ll_load4(from), b = ll_load4(from + 4), c = ll_load4(from + 8), d = ll_load4(from + 12);
            ll_store4(to, a);
            ll_store4(to + 4, b);
            ll_store4(to + 8, c);
            ll_store4(to + 12, d);
        }
        for (; stop - from >= 4; from += 4, to += 4) ll_store4(to, ll_load4(from));
        while (from != stop) {
            *to++ = *from++;
            __asm__("" ::: "memory");
        }
    }
}

void ll_upsample_nearest(const ll_upsample_params *params, const int8_t *input, int8_t *output, void *scratch) {
    uint32_t channels = params->channels, row = (uint32_t)params->in_w * params->factor_w * channels;
    (void)scratch;
    for (uint32_t y = 0; y < params->in_h; y++) {
        const int8_t *first = output;
        for (uint32_t x = 0; x < params->in_w; x++, input += channels)
            for (uint32_t again = 0; again < params->factor_w; again++, output += channels) ll_copy_bytes(output, input, channels);
        for (uint32_t again = 1; again < params->factor_h; again++, output += row) ll_copy_bytes(output, first, row);
    }
}
