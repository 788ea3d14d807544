/* Steps of weights from stored gradients, and of biases. */
#include "ll_train_step.h"

void ll_train_weight_step(const ll_train_weight_params *params, const int32_t *gradient, void *scratch, int32_t exponent,
                          ll_train_state *state) {
    const ll_train_layer *l = params->layer;
    const uint32_t taps = (uint32_t)l->kernel_h * l->kernel_w;
    int16_t *fine = l->masters;
    int8_t *coarse = l->masters;
    uint32_t selected = 0;
    (void)scratch;
    for (uint32_t i = 0; i < l->groups; i++) {
        const ll_train_group g = ll_group_at(l, i, selected);
        selected += g.selected;
        for (uint32_t out = 0; out < g.out_c; out++) {
            const ll_pace pace = ll_pace_of(params->factors, g.out_first + out, exponent, state);
            for (uint32_t k = 0; k < taps * g.selected; k++, gradient++) {
                const int32_t delta = ll_delta(*gradient, pace);
                if (params->rule == LL_TRAIN_Q7_8) {
                    *fine = ll_move_q7_8(*fine, delta);
                    fine++;
                } else {
                    const uint32_t random = params->rule == LL_TRAIN_CHANCE ? ll_random(&state->random) : 0;
                    *coarse = ll_move_code(*coarse, delta, params->rule, random);
                    coarse++;
                }
            }
        }
    }
}

static void ll_move_bias(const ll_train_bias_params *p, uint32_t channel, int32_t gradient, int32_t exponent,
                         const ll_train_state *state) {
    const int32_t largest = (1 << 30) - 1, bits = p->layer->bias_bits;
    int32_t *master = p->layer->bias_masters + channel;
    int64_t delta = ll_delta(gradient, ll_pace_of(p->factors, channel, exponent, state));
    if (p->truncates) delta = (int64_t)ll_truncate((int32_t)delta, bits) * (1 << bits);
    delta = *master - delta;
    *master = delta > largest ? largest : delta < -largest ? -largest : (int32_t)delta;
}

/* Sum over pixels of one channel's gradients. */
static int32_t ll_bias_sum(const ll_train_bias_params *p, const int16_t *gradient, uint32_t channel) {
    const ll_train_layer *l = p->layer;
    const uint32_t pixels = (uint32_t)l->out_h * l->out_w;
    gradient += channel;
    if (p->sum_shift == 0) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < pixels; i++, gradient += l->out_c) sum += *gradient;
        return sum;
    }
    int64_t sum = 0;
    for (uint32_t i = 0; i < pixels; i++, gradient += l->out_c) sum += *gradient;
    return ll_truncate64(sum, p->sum_shift);
}

int32_t ll_train_bias_gradient(const ll_train_bias_params *params, const int16_t *gradient, int32_t *output, void *scratch,
                               int32_t exponent) {
    (void)scratch;
    for (uint32_t c = 0; c < params->layer->out_c; c++) output[c] = ll_bias_sum(params, gradient, c);
    return exponent + params->sum_shift;
}

void ll_train_bias_gradient_step(const ll_train_bias_params *params, const int16_t *gradient, void *scratch, int32_t exponent,
                                 const ll_train_state *state) {
    (void)scratch;
    for (uint32_t c = 0; c < params->layer->out_c; c++)
        ll_move_bias(params, c, ll_bias_sum(params, gradient, c), exponent + params->sum_shift, state);
}

void ll_train_bias_step(const ll_train_bias_params *params, const int32_t *gradient, void *scratch, int32_t exponent,
                        const ll_train_state *state) {
    (void)scratch;
    for (uint32_t c = 0; c < params->layer->out_c; c++) ll_move_bias(params, c, gradient[c], exponent, state);
}
