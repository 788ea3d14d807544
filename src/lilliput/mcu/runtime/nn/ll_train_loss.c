/* Softmax cross-entropy of int32 logits in fixed point; all integers, divisions exact. */
#include "ll_exp.h"
#include "ll_train_arith.h"

/* How far a logit lies below the largest, Q5.26 nats, at most 2^31 - 1. */
static int32_t ll_nats_below(const ll_train_loss_params *p, int32_t largest, int32_t logit) {
    const uint32_t difference = (uint32_t)largest - (uint32_t)logit;
    const uint64_t product = (uint64_t)(difference > INT32_MAX ? INT32_MAX : difference) * (uint32_t)p->multiplier;
    const int32_t right = 31 - p->shift; /* 1 to 62: logit_multiplier allows no others; the product has 62 bits */
    const uint64_t nats = (product + (UINT64_C(1) << (right - 1))) >> right;
    return nats > INT32_MAX ? INT32_MAX : (int32_t)nats;
}

/* part * 2^31 / total, towards zero, bit by bit: part <= total < 2^62. */
static uint32_t ll_share(uint32_t part, uint64_t total) {
    uint64_t rest = part;
    uint32_t quotient = 0;
    if (rest >= total) quotient = 1, rest -= total;
    for (int i = 0; i < 31; i++) {
        rest <<= 1, quotient <<= 1;
        if (rest >= total) quotient |= 1, rest -= total;
    }
    return quotient;
}

/* ln(total / 2^31), Q5.26, for totals of 2^31 - 1 (taken as 2^31) and more: squaring a number in [1, 2) doubles its logarithm. */
static int32_t ll_logarithm(uint64_t total) {
    int32_t whole = 30;
    if (total < UINT64_C(1) << 31) return 0;
    while (total >> whole > 1) whole++;
    uint64_t mantissa = total >> (whole - 30); /* Q30 */
    int64_t log2 = whole - 31;
    for (int i = 0; i < 26; i++) {
        mantissa = mantissa * mantissa >> 30;
        log2 *= 2;
        if (mantissa >> 31) mantissa >>= 1, log2++;
    }
    return (int32_t)(log2 * 744261118 >> 30); /* ln 2, Q30 */
}

int32_t ll_train_loss(const ll_train_loss_params *params, const int32_t *logits, int16_t *gradient, void *scratch, uint32_t label,
                      int32_t *loss) {
    const uint32_t limit = 1u << params->bits;
    uint64_t total = 0;
    int32_t largest = logits[0], shift = 0;
    (void)scratch;
    for (uint32_t c = 1; c < params->classes; c++)
        if (logits[c] > largest) largest = logits[c];
    for (uint32_t c = 0; c < params->classes; c++)
        total += (uint32_t)ll_exp_of_negative(-ll_nats_below(params, largest, logits[c]));
    const int64_t nats = (int64_t)ll_nats_below(params, largest, logits[label]) + ll_logarithm(total);
    for (uint32_t c = 0; c < params->classes; c++) {
        uint32_t share = ll_share((uint32_t)ll_exp_of_negative(-ll_nats_below(params, largest, logits[c])), total);
        if (c == label) share = (UINT32_C(1) << 31) - share; /* of p - 1, which is not above 0 */
        uint32_t magnitude = share >> shift;
        if (magnitude >= limit) {
            const int32_t more = ll_bit_length(magnitude) - params->bits;
            ll_train_shift_more(gradient, 1, c, 0, more);
            shift += more, magnitude >>= more;
        }
        gradient[c] = (int16_t)(c == label ? -(int32_t)magnitude : (int32_t)magnitude);
    }
    *loss = (int32_t)((nats + 512) >> 10);
    return shift - 31;
}
