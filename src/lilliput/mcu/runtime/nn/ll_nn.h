/* Int8 neural-network kernels for Cortex-M, in C99: no heap, no libm, no recursion, state only in what the caller passes.
 *
 * Images are int8 in (height, width, channel) order, batch 1. Every kernel is called as
 *     kernel(&params, inputs..., output, scratch)
 * where scratch is 4-byte aligned and as large as the generator says (0 bytes: any pointer, also NULL). Inputs and outputs need no
 * alignment. Nothing outside the named buffers is read or written. The arithmetic is TensorFlow Lite's int8 specification, to the bit.
 */
#ifndef LL_NN_H
#define LL_NN_H

#include <stddef.h>
#include <stdint.h>

#ifdef LL_COUNT_MACS
extern uint64_t ll_macs; /* multiply-accumulates with a weight of the network, since the program started */
#define LL_COUNT(n) (ll_macs += (uint64_t)(n))
#else
#define LL_COUNT(n) ((void)0)
#endif

/* The generated model names each step after it. In a profile build that is a reading of the clock, in firmware it is nothing. */
#ifdef LL_PROFILE
void ll_profile_step(void);
#define LL_STEP(name) ll_profile_step()
#else
#define LL_STEP(name) ((void)0)
#endif

/* How sums become codes, for layers with one multiplier a channel. A channel is three words: bias, multiplier, shift.
 * plain_scale: every channel has a right shift of 1 to 22 and no sum can leave 31 bits; then the bias word holds 2 * bias and the shift
 * word the right shift. Otherwise the bias word holds the bias and the shift word is signed, above 0 to the left. */
typedef struct {
    const int32_t *channels;
    int32_t zero_point;
    int8_t lower, upper;
    uint8_t is_plain_scale;
} ll_scaling;

/* Convolution over groups of channels; weights as packed by the generator (see ll_conv.c). */
typedef struct {
    ll_scaling scaling;
    const uint32_t *weights;
    uint8_t is_paired; /* weights hold two channels a halfword */
    int8_t in_zero_point;
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, groups;
    uint32_t group_words; /* words of weights of one group */
} ll_conv_params;

/* One input channel a group; multiplier = output channels per input channel. Weights in (channel, row, column) order. */
typedef struct {
    ll_scaling scaling;
    const int8_t *weights;
    int8_t in_zero_point;
    uint16_t in_h, in_w, in_c, out_h, out_w, channel_multiplier;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    uint16_t ring_w, ring_h; /* scratch: ring_h rows of ring_w halfwords, ring_w even */
} ll_depthwise_params;

/* One vector, or a whole image seen as one. */
typedef struct {
    ll_scaling scaling;
    const uint32_t *weights;
    uint8_t is_paired;
    uint16_t out_c;
    uint32_t in_c;
} ll_linear_params;

/* Sum; each input is (x - zero_point) << 20, rescaled; shifts above 0 go left. */
typedef struct {
    int32_t zero_point[3]; /* first, second, output */
    int32_t multiplier[3];
    int32_t shift[3];
    int8_t lower, upper;
    int8_t half; /* the input whose factor is exactly 1/2, if the other's shift is not above 0 and the output's is -1 to -22; else -1 */
    uint32_t count;
} ll_add_params;

typedef struct {
    ll_conv_params conv;
    ll_add_params add; /* first: what the convolution gives; second: the skip */
} ll_conv_add_params;

typedef struct {
    int32_t zero_point[3];
    int32_t multiplier, shift;
    int8_t lower, upper;
    uint8_t is_plain_scale; /* the shift is -1 to -22 */
    uint32_t count, repeat; /* the second input has count / repeat elements */
} ll_mul_params;

typedef struct {
    uint16_t in_h, in_w, channels, out_h, out_w;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    int8_t lower, upper;
} ll_pool_params;

typedef struct {
    uint32_t pixels, channels;
    int32_t in_zero_point, zero_point, multiplier, shift;
    int8_t lower, upper;
} ll_mean_params;

typedef struct {
    uint32_t rows, depth;
    int32_t multiplier, shift, diff_min;
} ll_softmax_params;

typedef struct {
    const int8_t *table; /* of 256, indexed by code + 128 */
    uint32_t count;
} ll_lookup_params;

typedef struct {
    uint32_t outer, inputs;
    uint32_t bytes[8]; /* of each input, per outer step */
} ll_concat_params;

typedef struct {
    uint16_t in_h, in_w, channels, top, left, bottom, right;
    int8_t zero_point;
} ll_pad_params;

typedef struct {
    uint32_t count;
} ll_copy_params;

/* A part of an image, from one that is wider or into one that is wider; input and output are the part's first bytes in them. */
typedef struct {
    uint32_t rows, row_bytes, from_bytes, to_bytes; /* the last two: from one row to the next */
} ll_copy_rows_params;

typedef struct {
    uint16_t in_h, in_w, channels, factor_h, factor_w;
} ll_upsample_params;

void ll_conv(const ll_conv_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_conv_1x1(const ll_conv_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_conv_add(const ll_conv_add_params *params, const int8_t *input, const int8_t *skip, int8_t *output, void *scratch);
void ll_conv_1x1_add(const ll_conv_add_params *params, const int8_t *input, const int8_t *skip, int8_t *output, void *scratch);
void ll_depthwise(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_depthwise_3x3(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_depthwise_5x5(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_depthwise_7x7(const ll_depthwise_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_linear(const ll_linear_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_add(const ll_add_params *params, const int8_t *first, const int8_t *second, int8_t *output, void *scratch);
void ll_mul(const ll_mul_params *params, const int8_t *first, const int8_t *second, int8_t *output, void *scratch);
void ll_avg_pool(const ll_pool_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_max_pool(const ll_pool_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_mean(const ll_mean_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_softmax(const ll_softmax_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_lookup(const ll_lookup_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_pad(const ll_pad_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_copy(const ll_copy_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_copy_rows(const ll_copy_rows_params *params, const int8_t *input, int8_t *output, void *scratch);
void ll_upsample_nearest(const ll_upsample_params *params, const int8_t *input, int8_t *output, void *scratch);

/* Concatenation is one function per number of inputs, so that calls stay typed. */
void ll_concat_1(const ll_concat_params *params, const int8_t *a, int8_t *output, void *scratch);
void ll_concat_2(const ll_concat_params *params, const int8_t *a, const int8_t *b, int8_t *output, void *scratch);
void ll_concat_3(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c,
                 int8_t *output, void *scratch);
void ll_concat_4(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 int8_t *output, void *scratch);
void ll_concat_5(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, int8_t *output, void *scratch);
void ll_concat_6(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, const int8_t *f, int8_t *output, void *scratch);
void ll_concat_7(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, const int8_t *f, const int8_t *g, int8_t *output, void *scratch);
void ll_concat_8(const ll_concat_params *params, const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d,
                 const int8_t *e, const int8_t *f, const int8_t *g, const int8_t *h, int8_t *output, void *scratch);

#endif
