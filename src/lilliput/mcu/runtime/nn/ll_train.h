/* Kernels of a training step, in C99: no heap, no libm, no floating point, state only in what the caller passes.
 *
 * Called as kernel(&params, inputs..., outputs..., scratch, exponents...), scratch 4-byte aligned and as large as the generator says.
 * Gradients are int16 mantissas with one exponent for the tensor: a kernel that makes one returns its exponent. Masks are packed bits, bit i
 * of the flat order in byte i / 8 at place i % 8. Gradients, sums and scratch are 4-byte aligned, activations need not be. The arithmetic is
 * that of lilliput.mcu.training.arithmetic, to the bit, whatever the order in which a kernel works.
 */
#ifndef LL_TRAIN_H
#define LL_TRAIN_H

#include "ll_nn.h"

/* What a step needs besides tensors. */
typedef struct {
    uint32_t rate;   /* run-time factor of the learning rate, 0 to 2^15 */
    uint32_t random; /* state of the xorshift32 stream, never 0 */
} ll_train_state;

/* A convolution or linear layer; weights in (out, row, column, in of the group) order. */
typedef struct {
    const int8_t *weights;    /* in flash, 0 where one is trained; NULL: all are trained */
    void *masters;            /* trained: int16 Q7.8 or int8, (out, row, column, selected of the group); NULL: none */
    const int32_t *biases;    /* in flash; not read where there are masters */
    int32_t *bias_masters;    /* with bias_bits bits behind the point; NULL: biases are not trained */
    const uint16_t *channels; /* selected input channels, ascending */
    uint16_t selected;        /* how many */
    uint8_t master_bytes, bias_bits;
    int16_t in_zero_point;
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, groups;
} ll_train_layer;

/* How sums become codes: per output channel a multiplier and a shift (above 0 to the left). is_plain: all shifts are right ones of 1 to 22
 * bits, held as such, and no sum can leave 31 bits. */
typedef struct {
    const ll_train_layer *layer;
    const int32_t *scales;
    int32_t zero_point;
    int8_t lower, upper;
    uint8_t is_plain;
} ll_train_conv_params;

typedef struct {
    uint32_t pixels, channels;
    const uint16_t *selection;
    uint16_t selected;
} ll_train_keep_params;

typedef struct {
    uint16_t classes;
    int32_t multiplier, shift; /* logits to Q5.26 nats, as a quantized multiplier */
    uint8_t bits;              /* magnitude bits of the gradient */
} ll_train_loss_params;

typedef struct {
    uint32_t pixels, channels;
    uint8_t is_repeated; /* the gradient read has one pixel, which stands for all */
} ll_train_mask_params;

typedef struct {
    uint32_t pixels, channels;
    uint8_t is_repeated;
    const int32_t *factors; /* per channel, with one exponent */
    int32_t factor_exponent;
    uint8_t bits;
} ll_train_scale_params;

typedef struct {
    int32_t factor[2]; /* of the two units, in [2^14, 2^15) */
    int32_t factor_exponent[2];
    uint32_t count;
} ll_train_sum_params;

typedef struct {
    uint16_t in_h, in_w, channels, out_h, out_w;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    const uint16_t *row_weights, *column_weights; /* of each output row and column */
} ll_train_pool_params;

typedef enum { LL_TRAIN_Q7_8, LL_TRAIN_CHANCE, LL_TRAIN_NEAREST, LL_TRAIN_TRUNCATE } ll_train_rule;

/* Steps of a layer's weights; per output channel a factor and its exponent. */
typedef struct {
    const ll_train_layer *layer;
    const int32_t *factors;
    uint8_t rule;      /* ll_train_rule */
    uint8_t sum_shift; /* bits that a sum is shifted by to fit 31 */
    uint8_t is_kept;   /* the input holds the selected channels alone */
} ll_train_weight_params;

typedef struct {
    const ll_train_layer *layer;
    const int32_t *factors;
    uint8_t sum_shift;
    uint8_t truncates; /* steps of whole codes, towards zero */
} ll_train_bias_params;

/* Forward. mask may be NULL where nobody asks for it. */
void ll_train_conv(const ll_train_conv_params *params, const int8_t *input, int8_t *output, uint8_t *mask, void *scratch);
void ll_train_conv_sum(const ll_train_layer *layer, const int8_t *input, int32_t *output, void *scratch);
void ll_train_depthwise(const ll_train_conv_params *params, const int8_t *input, int8_t *output, uint8_t *mask, void *scratch);
void ll_train_add(const ll_add_params *params, const int8_t *first, const int8_t *second, int8_t *output, uint8_t *mask,
                  void *scratch);
void ll_train_mean(const ll_mean_params *params, const int8_t *input, int8_t *output, uint8_t *mask, void *scratch);
void ll_train_keep(const ll_train_keep_params *params, const int8_t *input, int8_t *output, void *scratch);

/* Gradient of the loss with respect to logits; the loss goes to *loss in Q16 nats. */
int32_t ll_train_loss(const ll_train_loss_params *params, const int32_t *logits, int16_t *gradient, void *scratch, uint32_t label,
                      int32_t *loss);

/* Gradients of activations. Where the sizes are equal, output may be the gradient read. */
int32_t ll_train_mask_gradient(const ll_train_mask_params *params, const int16_t *gradient, const uint8_t *mask, int16_t *output,
                               void *scratch, int32_t exponent);
int32_t ll_train_scale_gradient(const ll_train_scale_params *params, const int16_t *gradient, const uint8_t *mask, int16_t *output,
                                void *scratch, int32_t exponent);
int32_t ll_train_add_gradients(const ll_train_sum_params *params, const int16_t *first, const int16_t *second, int16_t *output,
                               void *scratch, int32_t first_exponent, int32_t second_exponent);
int32_t ll_train_pool_dx(const ll_train_pool_params *params, const int16_t *gradient, int16_t *output, void *scratch,
                         int32_t exponent);
int32_t ll_train_conv_dx(const ll_train_layer *layer, const int16_t *gradient, int16_t *output, void *scratch, int32_t exponent);
int32_t ll_train_depthwise_dx(const ll_train_layer *layer, const int16_t *gradient, int16_t *output, void *scratch,
                              int32_t exponent);

/* Gradients of parameters, and steps. */
int32_t ll_train_conv_dw(const ll_train_weight_params *params, const int16_t *gradient, const int8_t *input, int32_t *output,
                         void *scratch, int32_t exponent);
int32_t ll_train_bias_gradient(const ll_train_bias_params *params, const int16_t *gradient, int32_t *output, void *scratch,
                               int32_t exponent);
void ll_train_conv_dw_step(const ll_train_weight_params *params, const int16_t *gradient, const int8_t *input, void *scratch,
                           int32_t exponent, ll_train_state *state);
void ll_train_weight_step(const ll_train_weight_params *params, const int32_t *gradient, void *scratch, int32_t exponent,
                          ll_train_state *state);
void ll_train_bias_gradient_step(const ll_train_bias_params *params, const int16_t *gradient, void *scratch, int32_t exponent,
                                 const ll_train_state *state);
void ll_train_bias_step(const ll_train_bias_params *params, const int32_t *gradient, void *scratch, int32_t exponent,
                        const ll_train_state *state);

/* Masters of int8 codes. */
void ll_train_start_q7_8(int16_t *masters, const int8_t *codes, uint32_t count);

/* CRC-32 of a saved image (IEEE 802.3, as zlib computes it). */
uint32_t ll_train_crc32(const uint8_t *bytes, uint32_t count);

#endif
