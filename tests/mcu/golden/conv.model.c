#include "model.h"

#include "nn/ll_nn.h"
#include "weights.h"

/* Both in .bss; aligned for word access, though no kernel needs its tensors aligned. */
int8_t ll_arena[LL_MODEL_ARENA_BYTES] __attribute__((aligned(8)));
int8_t ll_scratch[LL_MODEL_SCRATCH_BYTES] __attribute__((aligned(8)));

/* layers.0: Conv2d -> 3x3x2 */
static const ll_conv_params call0 = {.scaling = {.channels = op0_channels, .zero_point = -128, .lower = -128, .upper =
    127, .is_plain_scale = 0}, .weights = op0_weights, .is_paired = 1, .in_zero_point = -128, .in_h = 6, .in_w = 6,
    .in_c = 1, .out_h = 3, .out_w = 3, .out_c = 2, .kernel_h = 3, .kernel_w = 3, .stride_h = 2, .stride_w = 2,
    .dilation_h = 1, .dilation_w = 1, .pad_top = 1, .pad_left = 1, .groups = 1, .group_words = 6};

/* layers.2: Mean -> 1x1x2 */
static const ll_mean_params call1 = {.pixels = 9, .channels = 2, .in_zero_point = -128, .zero_point = -128,
    .multiplier = 958180083, .shift = 18, .lower = -128, .upper = 127};

int8_t *ll_model_input(void) { return ll_arena + 0; }

const int8_t *ll_model_output(void) { return ll_arena + 36; }

void ll_model_run(void) {
    ll_conv(&call0, ll_arena + 0, ll_arena + 36, ll_scratch);
    LL_STEP("relu_0");
    ll_mean(&call1, ll_arena + 36, ll_arena + 36, NULL);
    LL_STEP("avg_pool_0");
}
