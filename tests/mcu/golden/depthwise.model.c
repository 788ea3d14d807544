#include "model.h"

#include "nn/ll_nn.h"
#include "weights.h"

/* Both in .bss; aligned for word access, though no kernel needs its tensors aligned. */
int8_t ll_arena[LL_MODEL_ARENA_BYTES] __attribute__((aligned(8)));
int8_t ll_scratch[LL_MODEL_SCRATCH_BYTES] __attribute__((aligned(8)));

/* layers.0: Conv2d -> 4x4x2 */
static const ll_depthwise_params call0 = {.scaling = {.channels = op0_channels, .zero_point = -128, .lower = -128,
    .upper = 127, .is_plain_scale = 1}, .weights = op0_weights, .in_zero_point = -128, .in_h = 4, .in_w = 4, .in_c =
    2, .out_h = 4, .out_w = 4, .channel_multiplier = 1, .kernel_h = 3, .kernel_w = 3, .stride_h = 1, .stride_w = 1,
    .dilation_h = 1, .dilation_w = 1, .pad_top = 1, .pad_left = 1, .ring_w = 8, .ring_h = 3};

/* layers.2: Conv2d -> 4x4x1 */
static const ll_conv_params call1 = {.scaling = {.channels = op1_channels, .zero_point = 127, .lower = -128, .upper =
    127, .is_plain_scale = 1}, .weights = op1_weights, .is_paired = 1, .in_zero_point = -128, .in_h = 4, .in_w = 4,
    .in_c = 2, .out_h = 4, .out_w = 4, .out_c = 1, .kernel_h = 1, .kernel_w = 1, .stride_h = 1, .stride_w = 1,
    .dilation_h = 1, .dilation_w = 1, .pad_top = 0, .pad_left = 0, .groups = 1, .group_words = 2};

int8_t *ll_model_input(void) { return ll_arena + 0; }

const int8_t *ll_model_output(void) { return ll_arena + 0; }

void ll_model_run(void) {
    ll_depthwise_3x3(&call0, ll_arena + 0, ll_arena + 0, ll_scratch);
    LL_STEP("relu6_0");
    ll_conv(&call1, ll_arena + 0, ll_arena + 0, ll_scratch);
    LL_STEP("conv_1");
}
