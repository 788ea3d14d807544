/* Products and decoding for one width of vector. The includer's are LANES, ROWS (rows that share each load of activations), OF,
   and ONLY_NIBBLE_TABLES, which leaves out all but symbols of 4 bits with tables. */

#define BATCH 4 /* with ROWS, as many sums as registers hold */

#define Words OF(Words)
#define Floats OF(Floats)
#define Table OF(Table)

/* ROWS rows by `batch` inputs; `width`, `batch` are constants of the caller, so that loops unroll. Rows or inputs that are not there point
   to the last that is. */
INLINE void OF(tile)(const Weight *w, const int width, const int batch, const int64_t row[ROWS], const Table shared[ROWS],
                     const float *const x[BATCH], float sums[ROWS][BATCH]) {
    const int64_t block_bytes_count = (int64_t)LANES * width, blocks = (w->columns + 8 * LANES - 1) / (8 * LANES);
    Floats sum[ROWS][BATCH];
    Table table[ROWS];
    uint8_t buffer[64];
    UNROLL for (int r = 0; r < ROWS; r++) {
        table[r] = shared[r];
        UNROLL for (int b = 0; b < batch; b++) sum[r][b] = OF(zeros)();
    }
    int64_t group = 0, group_end = w->groups == 1 ? blocks : w->group_size / (8 * LANES);
    for (int64_t block = 0; block < blocks; block++) {
        if (block == group_end) {
            group++;
            group_end += w->group_size / (8 * LANES);
            UNROLL for (int r = 0; r < ROWS; r++) table[r] = OF(table)(w, row[r], group);
        }
        Words words[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) words[r] = OF(words)(
            block_bytes(w->codes + row[r] * w->row_bytes, block * block_bytes_count, w->row_bytes, block_bytes_count, buffer),
            width);
        UNROLL for (int s = 0; s < 8; s++) {
            const int64_t at = (block * 8 + s) * LANES;
            Floats weight[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++)
                weight[r] = OF(looked_up)(OF(shifted)(words[r], s * width), table[r], width);
            UNROLL for (int b = 0; b < batch; b++) {
                const Floats inputs = OF(load)(x[b] + at);
                UNROLL for (int r = 0; r < ROWS; r++) sum[r][b] = OF(fma)(weight[r], inputs, sum[r][b]);
            }
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int b = 0; b < batch; b++) sums[r][b] = OF(sum)(sum[r][b]);
}

/* Step and start of each lane of a block, before the gain; groups divide a block or blocks a group. */
INLINE void OF(scales)(const Weight *w, int64_t row, int64_t block, Floats *step, Floats *start) {
    const int64_t group = block * 8 * LANES / w->group_size, first = ladder_at(w, row, group);
    if (w->group_size >= 8 * LANES) {
        const float s = scale_at(w, w->step, first);
        *step = OF(same)(s);
        *start = OF(same)(w->zero ? -s * w->zero[first] : scale_at(w, w->start, first));
        return;
    }
    const int64_t lanes = w->group_size / 8, count = smaller(LANES / lanes, w->groups - group);
    *step = OF(spread)(w, w->step, first, count, lanes);
    *start = w->zero ? OF(times)(OF(same)(-1), OF(times)(*step, OF(spread)(w, w->zero, first, count, lanes)))
                     : OF(spread)(w, w->start, first, count, lanes);
}

/* As `tile`, for groups of one ladder. */
INLINE void OF(affine_tile)(const Weight *w, const int width, const int batch, const int64_t row[ROWS],
                            const float *const x[BATCH], float sums[ROWS][BATCH]) {
    const int64_t block_bytes_count = (int64_t)LANES * width, blocks = (w->columns + 8 * LANES - 1) / (8 * LANES);
    Floats sum[ROWS][BATCH];
    uint8_t buffer[64];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int b = 0; b < batch; b++) sum[r][b] = OF(zeros)();
    for (int64_t block = 0; block < blocks; block++) {
        Words words[ROWS];
        Floats part[ROWS][BATCH];
        UNROLL for (int r = 0; r < ROWS; r++) {
            words[r] = OF(words)(
                block_bytes(w->codes + row[r] * w->row_bytes, block * block_bytes_count, w->row_bytes, block_bytes_count, buffer),
                width);
            UNROLL for (int b = 0; b < batch; b++) part[r][b] = OF(zeros)();
        }
        UNROLL for (int s = 0; s < 8; s++) {
            Floats code[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++) code[r] = OF(coded)(OF(shifted)(words[r], s * width), width);
            UNROLL for (int b = 0; b < batch; b++) {
                const Floats inputs = OF(load)(x[b] + (block * 9 + s) * LANES);
                UNROLL for (int r = 0; r < ROWS; r++) part[r][b] = OF(fma)(code[r], inputs, part[r][b]);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++) {
            Floats step, start;
            OF(scales)(w, row[r], block, &step, &start);
            UNROLL for (int b = 0; b < batch; b++) {
                sum[r][b] = OF(fma)(part[r][b], step, sum[r][b]);
                sum[r][b] = OF(fma)(OF(load)(x[b] + (block * 9 + 8) * LANES), start, sum[r][b]);
            }
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int b = 0; b < batch; b++) sums[r][b] = OF(sum)(sum[r][b]) * *w->gain;
}

INLINE void OF(product_of)(const Weight *w, const int width, const float *x, int64_t batch, const float *bias, float *y,
                           int64_t first, int64_t last) {
    const int64_t affine = !ONLY_NIBBLE_TABLES && is_affine(w), padded = (w->columns + 8 * LANES - 1) / (8 * LANES) * (8 + affine) * LANES;
    for (int64_t top = first; top < last; top += ROWS) {
        int64_t row[ROWS];
        Table table[ROWS] = {{0}};
        for (int r = 0; r < ROWS; r++) {
            row[r] = smaller(top + r, last - 1);
            if (!affine) table[r] = OF(table)(w, row[r], 0);
        }
        for (int64_t left = 0; left < batch; left += BATCH) {
            const float *inputs[BATCH];
            float sums[ROWS][BATCH] = {{0}};
            for (int b = 0; b < BATCH; b++) inputs[b] = x + smaller(left + b, batch - 1) * padded;
            if (affine && batch - left == 1)
                OF(affine_tile)(w, width, 1, row, inputs, sums);
            else if (affine)
                OF(affine_tile)(w, width, BATCH, row, inputs, sums);
            else if (batch - left == 1)
                OF(tile)(w, width, 1, row, table, inputs, sums);
            else
                OF(tile)(w, width, BATCH, row, table, inputs, sums);
            for (int r = 0; r < ROWS && top + r < last; r++)
                for (int b = 0; b < BATCH && left + b < batch; b++)
                    y[(left + b) * w->rows + row[r]] = sums[r][b] + (bias ? bias[row[r]] : 0);
        }
    }
}

static void OF(product)(const Weight *w, const float *x, int64_t batch, const float *bias, float *y, int64_t first, int64_t last) {
    switch (w->symbol_bits) {
#if !ONLY_NIBBLE_TABLES
    case 1: OF(product_of)(w, 1, x, batch, bias, y, first, last); break;
    case 2: OF(product_of)(w, 2, x, batch, bias, y, first, last); break;
    case 3: OF(product_of)(w, 3, x, batch, bias, y, first, last); break;
#endif
    default: OF(product_of)(w, 4, x, batch, bias, y, first, last);
    }
}

INLINE void OF(decode_of)(const Weight *w, const int width, int64_t first, int64_t last, float *out, int accumulate) {
    const int64_t block_bytes_count = (int64_t)LANES * width, blocks = (w->columns + 8 * LANES - 1) / (8 * LANES);
    const int64_t affine = !ONLY_NIBBLE_TABLES && is_affine(w), group_blocks = w->groups == 1 ? blocks : w->group_size / (8 * LANES);
    uint8_t buffer[64];
    for (int64_t row = first; row < last; row++) {
        Table table = OF(table)(w, row, 0);
        for (int64_t block = 0; block < blocks; block++) {
            Floats step = OF(zeros)(), start = step;
            if (affine)
                OF(scales)(w, row, block, &step, &start);
            else if (block > 0 && block % group_blocks == 0)
                table = OF(table)(w, row, block / group_blocks);
            const Words words = OF(words)(
                block_bytes(w->codes + row * w->row_bytes, block * block_bytes_count, w->row_bytes, block_bytes_count, buffer),
                width);
            UNROLL for (int s = 0; s < 8; s++, out += LANES) {
                const Words here = OF(shifted)(words, s * width);
                Floats weight = affine ? OF(times)(OF(fma)(OF(coded)(here, width), step, start), OF(same)(*w->gain))
                                       : OF(looked_up)(here, table, width);
                OF(store)(out, accumulate ? OF(plus)(weight, OF(load)(out)) : weight);
            }
        }
    }
}

static int OF(decode)(const Weight *w, int64_t first, int64_t last, float *out, int accumulate) {
    switch (w->symbol_bits) {
#if !ONLY_NIBBLE_TABLES
    case 1: OF(decode_of)(w, 1, first, last, out, accumulate); break;
    case 2: OF(decode_of)(w, 2, first, last, out, accumulate); break;
    case 3: OF(decode_of)(w, 3, first, last, out, accumulate); break;
#endif
    default: OF(decode_of)(w, 4, first, last, out, accumulate);
    }
    return 0;
}

#undef Words
#undef Floats
#undef Table
#undef BATCH
#undef LANES
#undef ROWS
#undef ONLY_NIBBLE_TABLES
#undef OF
