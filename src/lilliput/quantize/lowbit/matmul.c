/* Products with packed weights: y[b][r] = bias[r] + sum over c of x[b][c] * level(symbol[r][c]).

   Eight symbols of w bits are w bytes, whatever w is. A vector of L lanes of 32 bits takes the bytes of 8 L neighbouring columns, w of
   them to a lane; shifting all lanes by s * w puts the symbols of columns s, 8 + s, 16 + s, ... at the bottom, and one permutation of a
   register that holds the table turns them into floats. The levels repeat in the table, so bits above a symbol need no masking.
   Activations are brought into that order once (lilliput_order) and serve every row; they stay float32. A sum doesn't care about order.

   Groups that have one ladder need no tables: a lane's 8 columns lie in one group, so a block's sum over codes is multiplied by the
   lane's step, and its start by the sum of the lane's activations, which lilliput_order leaves behind each block.

   Formats beyond 4 bits, digits in a base, and groups that no lane fits have a plain path: decode a row, then multiply.
*/
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define HAS_AVX2 1
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_AVX512 1
#endif
#endif
#ifndef HAS_AVX512
#define HAS_AVX512 0
#endif

#define INLINE static inline __attribute__((always_inline))
#if HAS_AVX2
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL /* arrays in place of registers: unrolled, they take a compiler many seconds */
#endif
#define MAX_THREADS 64

typedef struct {
    const uint8_t *codes;
    const void *step, *start; /* start is null where zero is not, and the other way round; step is null for free levels */
    const uint8_t *zero;
    const float *gain;
    int64_t rows, columns, row_bytes, group_size, groups;
    int64_t shared;       /* 1: all rows have the same ladders */
    int64_t ladders;      /* of a set, as the buffers hold them */
    int64_t first_ladder; /* of them, those that symbols index */
    int64_t used_ladders;
    int64_t bits;        /* of a code */
    int64_t symbol_bits; /* of a symbol, or of a word of digits */
    int64_t digits;      /* symbols of a word; 1 for a plain stream */
    int64_t step_half, start_half; /* 1: float16; 0: float32 */
} Weight;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE float half_to_float(uint16_t h) {
#ifdef HAS_AVX2
    return _cvtsh_ss(h);
#else
    union { uint32_t u; float f; } value = {(uint32_t)(h & 0x7fff) << 13};
    value.f *= 0x1p112f; /* moves the exponent's bias from 15 to 127, subnormals included */
    if ((h & 0x7c00) == 0x7c00) value.u |= 0x7f800000;
    value.u |= (uint32_t)(h & 0x8000) << 16;
    return value.f;
#endif
}

INLINE int64_t is_half(const Weight *w, const void *scales) { return scales == w->step ? w->step_half : w->start_half; }

INLINE float scale_at(const Weight *w, const void *scales, int64_t i) {
    return is_half(w, scales) ? half_to_float(((const uint16_t *)scales)[i]) : ((const float *)scales)[i];
}

INLINE int64_t ladder_at(const Weight *w, int64_t row, int64_t group) {
    return ((w->shared ? 0 : row) * w->groups + group) * w->ladders + w->first_ladder;
}

INLINE int64_t is_affine(const Weight *w) { return w->groups > 1 && w->ladders == 1 && w->step; }

INLINE int64_t level_count(const Weight *w) { return w->used_ladders << w->bits; }

/* All levels of a row and group. */
static void fill_table(const Weight *w, int64_t row, int64_t group, float *table) {
    const int64_t first = ladder_at(w, row, group), codes = (int64_t)1 << w->bits;
    const float gain = *w->gain;
    for (int64_t ladder = 0; ladder < w->used_ladders; ladder++, table += codes) {
        const int64_t at = first + ladder;
        const float position = w->zero ? w->zero[at] : scale_at(w, w->start, at);
        if (!w->step) {
            table[0] = position * gain;
            continue;
        }
        const float step = scale_at(w, w->step, at);
        for (int64_t code = 0; code < codes; code++)
            table[code] = (w->zero ? step * ((float)code - position) : position + step * (float)code) * gain;
    }
}

/* The levels of a row and group, repeated to 16 entries; symbols above the last level have 0. */
INLINE void fill_table16(const Weight *w, int64_t row, int64_t group, float *table) {
    memset(table, 0, 16 * sizeof *table);
    fill_table(w, row, group, table);
    for (int64_t entry = (int64_t)1 << w->symbol_bits; entry < 16; entry++)
        table[entry] = table[entry - ((int64_t)1 << w->symbol_bits)];
}

/* Bytes of a block of 8 * lanes columns that ends with the row: beyond the row's end there are zeros. */
INLINE const uint8_t *block_bytes(const uint8_t *row, int64_t offset, int64_t row_bytes, int64_t bytes, uint8_t *buffer) {
    if (offset + bytes <= row_bytes) return row + offset;
    memset(buffer, 0, 64);
    memcpy(buffer, row + offset, row_bytes - offset);
    return buffer;
}

/* --- The same four operations for each width of vector. --- */

#if HAS_AVX512
typedef __m512i Words16;
typedef __m512 Floats16, Table16;

INLINE Words16 words16(const uint8_t *bytes, const int width) {
    if (width == 4) return _mm512_loadu_si512(bytes);
    if (width == 2) return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)bytes));
    if (width == 1) return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
    const __m512i apart = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
    const __m512i spread = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
    const __m512i packed = _mm512_maskz_loadu_epi32(0x0fff, bytes);
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(apart, packed), spread);
}
INLINE Words16 shifted16(Words16 words, const int count) { return _mm512_srli_epi32(words, count); }
INLINE Floats16 looked_up16(Words16 words, Table16 table, const int width) {
    (void)width;
    return _mm512_permutexvar_ps(words, table);
}
INLINE Floats16 zeros16(void) { return _mm512_setzero_ps(); }
INLINE Floats16 load16(const float *x) { return _mm512_loadu_ps(x); }
INLINE void store16(float *x, Floats16 value) { _mm512_storeu_ps(x, value); }
INLINE Floats16 plus16(Floats16 a, Floats16 b) { return _mm512_add_ps(a, b); }
INLINE Floats16 times16(Floats16 a, Floats16 b) { return _mm512_mul_ps(a, b); }
INLINE Floats16 fma16(Floats16 a, Floats16 b, Floats16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float sum16(Floats16 a) { return _mm512_reduce_add_ps(a); }

/* All at once: at row granularity and few columns, tables are a good part of the work. */
INLINE Table16 table16(const Weight *w, int64_t row, int64_t group) {
    const int64_t first = ladder_at(w, row, group);
    const __mmask16 held = (__mmask16)((1u << w->used_ladders) - 1);
    const __m512i entry = _mm512_and_si512(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32((1 << w->symbol_bits) - 1));
    const __m512 code = _mm512_cvtepi32_ps(_mm512_and_si512(entry, _mm512_set1_epi32((1 << w->bits) - 1)));
    const __m512i ladder = _mm512_srl_epi32(entry, _mm_cvtsi32_si128((int)w->bits));
    __m512 step = _mm512_setzero_ps(), position;
#define SCALES(scales) \
    (is_half(w, scales) ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(held, (const uint16_t *)(scales) + first)) \
             : _mm512_maskz_loadu_ps(held, (const float *)(scales) + first))
    if (w->step) step = _mm512_permutexvar_ps(ladder, SCALES(w->step));
    if (w->zero) {
        const __m128i zeros = _mm_maskz_loadu_epi8(held, w->zero + first);
        const __m512 zero = _mm512_permutexvar_ps(ladder, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros)));
        position = _mm512_mul_ps(step, _mm512_sub_ps(code, zero));
    } else {
        position = _mm512_fmadd_ps(step, code, _mm512_permutexvar_ps(ladder, SCALES(w->start)));
    }
    return _mm512_mul_ps(position, _mm512_set1_ps(*w->gain));
}

INLINE Floats16 coded16(Words16 words, const int width) {
    const __m512i entry = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(words, _mm512_cvtepi32_ps(_mm512_and_si512(entry, _mm512_set1_epi32((1 << width) - 1))));
}
INLINE Floats16 same16(float value) { return _mm512_set1_ps(value); }

/* Steps or starts of `count` neighbouring groups, each for `lanes` lanes; 0 for lanes beyond. */
INLINE Floats16 spread16(const Weight *w, const void *scales, int64_t first, int64_t count, int64_t lanes) {
    const __mmask16 held = (__mmask16)((1u << count) - 1);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i group = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(__builtin_ctz((unsigned)lanes)));
    if (scales != w->zero) return _mm512_permutexvar_ps(group, SCALES(scales));
    return _mm512_permutexvar_ps(group, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(held, w->zero + first))));
}
#undef SCALES

#define LANES 16
#define ROWS 4
#define ONLY_NIBBLE_TABLES 0
#define OF(name) name##16
#include "matmul_tile.h"
#endif

#if HAS_AVX2
typedef __m256i Words8;
typedef __m256 Floats8;
typedef struct { __m256 low, high; } Table8;

INLINE Words8 words8(const uint8_t *bytes, const int width) {
    if (width == 4) return _mm256_loadu_si256((const __m256i *)bytes);
    if (width == 2) return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)bytes));
    if (width == 1) return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
    const __m256i apart = _mm256_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5);
    const __m256i spread = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
    const __m256i packed = _mm256_maskload_epi32((const int *)bytes, _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, 0, 0));
    return _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(packed, apart), spread);
}
INLINE Words8 shifted8(Words8 words, const int count) { return _mm256_srli_epi32(words, count); }
INLINE Floats8 looked_up8(Words8 words, Table8 table, const int width) {
    if (width < 4) return _mm256_permutevar8x32_ps(table.low, words);
#if HAS_AVX512
    return _mm256_permutex2var_ps(table.low, words, table.high);
#else
    /* A permutation has 8 entries; the symbol's top bit, moved to the sign, chooses between two. */
    const __m256 top = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, words), _mm256_permutevar8x32_ps(table.high, words), top);
#endif
}
INLINE Floats8 zeros8(void) { return _mm256_setzero_ps(); }
INLINE Floats8 load8(const float *x) { return _mm256_loadu_ps(x); }
INLINE void store8(float *x, Floats8 value) { _mm256_storeu_ps(x, value); }
INLINE Floats8 plus8(Floats8 a, Floats8 b) { return _mm256_add_ps(a, b); }
INLINE Floats8 times8(Floats8 a, Floats8 b) { return _mm256_mul_ps(a, b); }
INLINE Floats8 fma8(Floats8 a, Floats8 b, Floats8 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE float sum8(Floats8 a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
INLINE Floats8 coded8(Words8 words, const int width) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32((1 << width) - 1)));
}
INLINE Floats8 same8(float value) { return _mm256_set1_ps(value); }
INLINE Table8 table8(const Weight *w, int64_t row, int64_t group) {
#if HAS_AVX512
    const __m512 both = table16(w, row, group);
    return (Table8){_mm512_castps512_ps256(both), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(both), 1))};
#else
    float table[16];
    fill_table16(w, row, group, table);
    return (Table8){_mm256_loadu_ps(table), _mm256_loadu_ps(table + 8)};
#endif
}
#else /* Any other processor: arrays of 8, which compilers turn into what vectors there are. */
typedef struct { uint32_t at[8]; } Words8;
typedef struct { float at[8]; } Floats8;
typedef struct { float at[16]; } Table8;
#define EACH for (int lane = 0; lane < 8; lane++)

INLINE Words8 words8(const uint8_t *bytes, const int width) {
    Words8 words = {{0}};
    EACH for (int byte = 0; byte < width; byte++) words.at[lane] |= (uint32_t)bytes[lane * width + byte] << (8 * byte);
    return words;
}
INLINE Words8 shifted8(Words8 words, const int count) {
    EACH words.at[lane] >>= count;
    return words;
}
INLINE Floats8 looked_up8(Words8 words, Table8 table, const int width) {
    (void)width;
    Floats8 result;
    EACH result.at[lane] = table.at[words.at[lane] & 15];
    return result;
}
INLINE Floats8 coded8(Words8 words, const int width) {
    Floats8 result;
    EACH result.at[lane] = (float)(words.at[lane] & ((1u << width) - 1));
    return result;
}
INLINE Floats8 same8(float value) {
    Floats8 result;
    EACH result.at[lane] = value;
    return result;
}
INLINE Floats8 zeros8(void) { return same8(0); }
INLINE Floats8 load8(const float *x) {
    Floats8 result;
    EACH result.at[lane] = x[lane];
    return result;
}
INLINE void store8(float *x, Floats8 value) { EACH x[lane] = value.at[lane]; }
INLINE Floats8 plus8(Floats8 a, Floats8 b) {
    EACH a.at[lane] += b.at[lane];
    return a;
}
INLINE Floats8 times8(Floats8 a, Floats8 b) {
    EACH a.at[lane] *= b.at[lane];
    return a;
}
INLINE Floats8 fma8(Floats8 a, Floats8 b, Floats8 c) {
    EACH c.at[lane] += a.at[lane] * b.at[lane];
    return c;
}
INLINE float sum8(Floats8 a) {
    float sum = 0;
    EACH sum += a.at[lane];
    return sum;
}
INLINE Table8 table8(const Weight *w, int64_t row, int64_t group) {
    Table8 table;
    fill_table16(w, row, group, table.at);
    return table;
}
#endif

INLINE Floats8 spread8(const Weight *w, const void *scales, int64_t first, int64_t count, int64_t lanes) {
    float values[8] = {0};
    for (int64_t group = 0; group < count; group++)
        for (int64_t lane = 0; lane < lanes; lane++)
            values[group * lanes + lane] = scales == w->zero ? w->zero[first + group] : scale_at(w, scales, first + group);
    return load8(values);
}

#define LANES 8
#define ROWS 2
#define ONLY_NIBBLE_TABLES HAS_AVX512 /* splits in groups of 64; compiling more would take seconds */
#define OF(name) name##8
#include "matmul_tile.h"

/* --- The plain path. --- */

/* One row of weights in their own order, of any format. */
static void decode_row(const Weight *w, int64_t row, float *table, float *out, int accumulate) {
    const uint8_t *bytes = w->codes + row * w->row_bytes;
    const uint64_t mask = ((uint64_t)1 << w->symbol_bits) - 1;
    const uint32_t base = (uint32_t)level_count(w);
    if (w->symbol_bits == 8 && w->digits == 1) { /* a symbol is a byte */
        for (int64_t group = 0, column = 0; group < w->groups; group++) {
            fill_table(w, row, group, table);
            for (const int64_t end = smaller(column + w->group_size, w->columns); column < end; column++)
                out[column] = accumulate ? out[column] + table[bytes[column]] : table[bytes[column]];
        }
        return;
    }
    uint64_t held = 0; /* bits that are read and not used */
    uint32_t word = 0;
    int64_t held_bits = 0, left = 0, next_group = 0, at = 0;
    for (int64_t column = 0; column < w->columns; column++) {
        if (column == next_group) {
            fill_table(w, row, column / w->group_size, table);
            next_group += w->group_size;
        }
        if (left == 0) {
            while (held_bits < w->symbol_bits) {
                held |= (uint64_t)bytes[at++] << held_bits;
                held_bits += 8;
            }
            word = (uint32_t)(held & mask);
            held >>= w->symbol_bits;
            held_bits -= w->symbol_bits;
            left = w->digits;
        }
        uint32_t symbol = word;
        if (w->digits > 1) {
            symbol = word % base;
            word /= base;
        }
        left--;
        out[column] = accumulate ? out[column] + table[symbol] : table[symbol];
    }
}

static float dot(const float *a, const float *b, int64_t n) {
    float sums[16] = {0}; /* 16 sums: independent, so that the loop becomes vectors */
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int lane = 0; lane < 16; lane++) sums[lane] += a[i + lane] * b[i + lane];
    float sum = 0;
    for (; i < n; i++) sum += a[i] * b[i];
    for (int lane = 0; lane < 16; lane++) sum += sums[lane];
    return sum;
}

static int plain_product(const Weight *w, const float *x, int64_t batch, const float *bias, float *y, int64_t first, int64_t last) {
    float *table = malloc((size_t)level_count(w) * sizeof *table), *decoded = malloc((size_t)w->columns * sizeof *decoded);
    const int failed = !table || !decoded;
    for (int64_t row = first; row < last && !failed; row++) {
        decode_row(w, row, table, decoded, 0);
        for (int64_t b = 0; b < batch; b++) {
            float *out = y + b * w->rows + row;
            *out = dot(decoded, x + b * w->columns, w->columns) + (bias ? bias[row] : 0);
        }
    }
    free(table);
    free(decoded);
    return failed;
}

/* --- What Python calls. --- */

/* Whether a table serves whole blocks of 8 * lanes columns, or steps serve whole lanes. */
static int fits(const Weight *w, int64_t lanes) {
    const int64_t block = 8 * lanes;
    return w->groups == 1 || w->group_size % block == 0 || (is_affine(w) && w->group_size % 8 == 0 && block % w->group_size == 0);
}

/* How many lanes the activations must be ordered for; 0: their own order. */
int64_t lilliput_lanes(const Weight *w) {
    if (w->digits != 1 || w->symbol_bits > 4) return 0;
    if (HAS_AVX512 && fits(w, 16)) return 16;
    if (HAS_AVX512 && (is_affine(w) || w->symbol_bits != 4)) return 0;
    if (fits(w, 8)) return 8;
    return 0;
}

/* Whether the sums of each lane's activations must follow every block. */
int lilliput_needs_sums(const Weight *w) { return (int)is_affine(w); }

/* The instructions this was compiled for. */
const char *lilliput_instructions(void) {
#if HAS_AVX512
    return "AVX-512";
#elif HAS_AVX2
    return "AVX2";
#else
    return "plain C";
#endif
}

/* Activations (batch, columns) in the order of vectors, zeros behind the last: (batch, blocks of 8 * lanes, 8, lanes), or 9 in place of 8
   where sums are wanted. */
void lilliput_order(const float *x, int64_t batch, int64_t columns, int64_t lanes, int sums, float *ordered) {
    for (int64_t b = 0; b < batch; b++, x += columns)
        for (int64_t block = 0; block < columns; block += 8 * lanes) {
            float *sum = ordered + 8 * lanes;
            for (int64_t lane = 0; sums && lane < lanes; lane++) sum[lane] = 0;
            for (int64_t s = 0; s < 8; s++)
                for (int64_t lane = 0; lane < lanes; lane++) {
                    const int64_t column = block + 8 * lane + s;
                    const float value = column < columns ? x[column] : 0;
                    *ordered++ = value;
                    if (sums) sum[lane] += value;
                }
            if (sums) ordered += lanes;
        }
}

/* Rows of the weight as floats, in the order of vectors where there are lanes; nonzero where memory is short. */
int lilliput_decode(const Weight *w, int64_t lanes, int64_t first, int64_t last, float *out, int accumulate) {
#if HAS_AVX512
    if (lanes == 16) return decode16(w, first, last, out, accumulate);
#endif
    if (lanes == 8) return decode8(w, first, last, out, accumulate);
    float *table = malloc((size_t)level_count(w) * sizeof *table);
    if (!table) return 1;
    for (int64_t row = first; row < last; row++, out += w->columns) decode_row(w, row, table, out, accumulate);
    free(table);
    return 0;
}

typedef struct {
    const Weight *w;
    int64_t lanes, batch, first, last;
    const float *x, *bias;
    float *y;
    int failed;
} Share;

static void *work(void *argument) {
    Share *share = argument;
    const Weight *w = share->w;
#if HAS_AVX512
    if (share->lanes == 16)
        product16(w, share->x, share->batch, share->bias, share->y, share->first, share->last);
    else
#endif
    if (share->lanes == 8)
        product8(w, share->x, share->batch, share->bias, share->y, share->first, share->last);
    else
        share->failed = plain_product(w, share->x, share->batch, share->bias, share->y, share->first, share->last);
    return NULL;
}

/* y (batch, rows) = x (batch, columns; as lilliput_order leaves them where there are lanes) by the weight, plus bias where there is one.
   Nonzero where memory is short. */
int lilliput_product(const Weight *w, int64_t lanes, const float *x, int64_t batch, const float *bias, float *y, int64_t threads) {
    Share shares[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    int started[MAX_THREADS] = {0}, failed = 0;
    threads = smaller(smaller(threads, MAX_THREADS), (w->rows + 3) / 4);
    const int64_t each = threads > 1 ? ((w->rows + threads - 1) / threads + 3) / 4 * 4 : w->rows;
    for (int64_t t = 0; t < threads; t++) {
        const int64_t first = smaller(t * each, w->rows);
        shares[t] = (Share){w, lanes, batch, first, smaller(first + each, w->rows), x, bias, y, 0};
        if (t > 0) started[t] = pthread_create(&ids[t], NULL, work, &shares[t]) == 0;
    }
    for (int64_t t = 0; t < threads; t++) {
        if (started[t])
            pthread_join(ids[t], NULL);
        else
            work(&shares[t]); /* its own share, and those that got no thread */
        failed |= shares[t].failed;
    }
    return failed;
}
