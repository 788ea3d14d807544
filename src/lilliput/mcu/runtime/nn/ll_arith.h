/* The arithmetic the kernels share: pairs of 16-bit products, and the way from a 32-bit sum to an int8 code.
 *
 * Each primitive has a form for the Cortex-M4/M7 DSP instructions and a portable one; both give the same bits. Define LL_PORTABLE to
 * get the portable forms everywhere. Signed right shifts are arithmetic on every compiler this is built with (gcc, clang).
 */
#ifndef LL_ARITH_H
#define LL_ARITH_H

#include "ll_nn.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels read four int8 as one little-endian word"
#endif

#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && !defined(LL_PORTABLE)
#define LL_DSP 1
#else
#define LL_DSP 0
#endif

#define LL_INLINE static inline __attribute__((always_inline))
#define LL_NOINLINE __attribute__((noinline))

LL_INLINE uint32_t ll_load4(const void *from) {
    uint32_t word;
    __builtin_memcpy(&word, from, 4); /* one LDR where unaligned words may be read, bytes elsewhere */
    return word;
}

LL_INLINE void ll_store4(void *to, uint32_t word) { __builtin_memcpy(to, &word, 4); }

/* Short runs; both give the end of what they wrote. The last word overlaps the one before instead of leaving bytes; the empty asm keeps
 * compilers from turning a few bytes into a call of memcpy or memset, and from unrolling. */
LL_INLINE int8_t *ll_copy_bytes(int8_t *to, const int8_t *from, uint32_t count) {
    int8_t *end = to + count;
    if (count >= 4) {
        const int8_t *last = from + count - 4;
        while (from < last) {
            ll_store4(to, ll_load4(from)), to += 4, from += 4;
            __asm__("" ::: "memory");
        }
        ll_store4(end - 4, ll_load4(last));
        return end;
    }
    while (to != end) {
        *to++ = *from++;
        __asm__("" ::: "memory");
    }
    return end;
}

LL_INLINE int8_t *ll_fill_bytes(int8_t *to, int8_t value, uint32_t count) {
    int8_t *end = to + count;
    while (to != end) {
        *to++ = value;
        __asm__("" ::: "memory");
    }
    return end;
}

#if LL_DSP

#define LL_OP3(name, instruction)                                                          \
    LL_INLINE int32_t name(uint32_t a, uint32_t b, int32_t c) {                            \
        int32_t r;                                                                         \
        __asm__(instruction " %0, %1, %2, %3" : "=r"(r) : "r"(a), "r"(b), "r"(c));         \
        return r;                                                                          \
    }
LL_OP3(ll_smlad, "smlad")   /* c + a.low * b.low + a.high * b.high */
LL_OP3(ll_smlabb, "smlabb") /* c + a.low * b.low */
LL_OP3(ll_smlabt, "smlabt") /* c + a.low * b.high */
LL_OP3(ll_smlatb, "smlatb") /* c + a.high * b.low */

LL_INLINE int32_t ll_smmulr(int32_t a, int32_t b) { /* (a * b + 2^31) >> 32 */
    int32_t r;
    __asm__("smmulr %0, %1, %2" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
LL_INLINE uint32_t ll_evens(uint32_t x) { /* bytes 0 and 2, each widened to 16 bits */
    uint32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(x));
    return r;
}
LL_INLINE uint32_t ll_odds(uint32_t x) { /* bytes 1 and 3 */
    uint32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(x));
    return r;
}
LL_INLINE uint32_t ll_add2(uint32_t a, uint32_t b) { /* of two halfwords */
    uint32_t r;
    __asm__("sadd16 %0, %1, %2" : "=r"(r) : "r"(a), "r"(b) : "cc");
    return r;
}
LL_INLINE int32_t ll_saturate8(int32_t x) {
    int32_t r;
    __asm__("ssat %0, #8, %1" : "=r"(r) : "r"(x));
    return r;
}
LL_INLINE uint32_t ll_max4(uint32_t a, uint32_t b) { /* of four signed bytes */
    uint32_t r;
    __asm__("ssub8 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(r) : "r"(a), "r"(b) : "cc");
    return r;
}
LL_INLINE uint32_t ll_min4(uint32_t a, uint32_t b) {
    uint32_t r;
    __asm__("ssub8 %0, %1, %2\n\tsel %0, %2, %1" : "=&r"(r) : "r"(a), "r"(b) : "cc");
    return r;
}
LL_INLINE uint32_t ll_pack4(int32_t a, int32_t b, int32_t c, int32_t d) { /* low bytes, a lowest */
    uint32_t r = (uint32_t)a;
    __asm__("bfi %0, %1, #8, #8\n\tbfi %0, %2, #16, #8\n\tbfi %0, %3, #24, #8" : "+&r"(r) : "r"(b), "r"(c), "r"(d));
    return r;
}

#else

LL_INLINE int32_t ll_low(uint32_t a) { return (int16_t)(uint16_t)a; }
LL_INLINE int32_t ll_high(uint32_t a) { return (int16_t)(uint16_t)(a >> 16); }
LL_INLINE int32_t ll_wrap(int32_t c, int32_t d) { return (int32_t)((uint32_t)c + (uint32_t)d); }

LL_INLINE int32_t ll_smlad(uint32_t a, uint32_t b, int32_t c) {
    return ll_wrap(ll_wrap(c, ll_low(a) * ll_low(b)), ll_high(a) * ll_high(b));
}
LL_INLINE int32_t ll_smlabb(uint32_t a, uint32_t b, int32_t c) { return ll_wrap(c, ll_low(a) * ll_low(b)); }
LL_INLINE int32_t ll_smlabt(uint32_t a, uint32_t b, int32_t c) { return ll_wrap(c, ll_low(a) * ll_high(b)); }
LL_INLINE int32_t ll_smlatb(uint32_t a, uint32_t b, int32_t c) { return ll_wrap(c, ll_high(a) * ll_low(b)); }
LL_INLINE int32_t ll_smmulr(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b + INT64_C(0x80000000)) >> 32); }
LL_INLINE uint32_t ll_evens(uint32_t x) {
    return (uint32_t)(uint16_t)(int8_t)(uint8_t)x | (uint32_t)(uint16_t)(int8_t)(uint8_t)(x >> 16) << 16;
}
LL_INLINE uint32_t ll_odds(uint32_t x) { return ll_evens(x >> 8); }
LL_INLINE uint32_t ll_add2(uint32_t a, uint32_t b) { return ((a + b) & 0xFFFFu) | ((a >> 16) + (b >> 16)) << 16; }
LL_INLINE int32_t ll_saturate8(int32_t x) { return x < -128 ? -128 : x > 127 ? 127 : x; }
LL_INLINE uint32_t ll_pack4(int32_t a, int32_t b, int32_t c, int32_t d) {
    return (uint32_t)(uint8_t)a | (uint32_t)(uint8_t)b << 8 | (uint32_t)(uint8_t)c << 16 | (uint32_t)(uint8_t)d << 24;
}
LL_INLINE uint32_t ll_pick4(uint32_t a, uint32_t b, int larger) {
    uint32_t r = 0;
    for (int shift = 0; shift < 32; shift += 8) {
        int8_t p = (int8_t)(uint8_t)(a >> shift), q = (int8_t)(uint8_t)(b >> shift);
        r |= (uint32_t)(uint8_t)((p > q) == larger ? p : q) << shift;
    }
    return r;
}
LL_INLINE uint32_t ll_max4(uint32_t a, uint32_t b) { return ll_pick4(a, b, 1); }
LL_INLINE uint32_t ll_min4(uint32_t a, uint32_t b) { return ll_pick4(a, b, 0); }

#endif

LL_INLINE int32_t ll_clamp(int32_t x, int32_t lower, int32_t upper) { return x < lower ? lower : x > upper ? upper : x; }

/* A rescaled value as a code: the zero point added, clamped; any value will do. */
LL_INLINE int8_t ll_code_of(int32_t x, int32_t zero_point, int32_t lower, int32_t upper) {
    return (int8_t)(ll_clamp(x, lower - zero_point, upper - zero_point) + zero_point);
}

LL_INLINE uint32_t ll_repeat4(int8_t x) { return (uint8_t)x * 0x01010101u; }

/* x * 2^31-scaled multiplier, rounded to nearest with ties up: what "saturating rounding doubling high multiply" gives for every
 * multiplier above 0. Its definition divides (x * m + nudge) by 2^31 towards zero, nudge = 2^30 or, for negative products, 1 - 2^30;
 * dividing a negative n by d towards zero is (n + d - 1) >> 31, which makes both cases (x * m + 2^30) >> 31. */
LL_INLINE int32_t ll_multiply_high(int32_t x, int32_t multiplier) {
    return (int32_t)(((int64_t)x * multiplier + (INT64_C(1) << 30)) >> 31);
}

/* x / 2^right, rounded to nearest with ties away from zero; right is 0 to 31. */
LL_INLINE int32_t ll_divide_by_power(int32_t x, int32_t right) {
    int32_t mask = (int32_t)((UINT32_C(1) << right) - 1);
    return (x >> right) + ((x & mask) > (mask >> 1) + (x < 0));
}

/* Any multiplier and shift. */
LL_INLINE int32_t ll_rescale(int32_t x, int32_t multiplier, int32_t shift) {
    int32_t left = shift > 0 ? shift : 0;
    return ll_divide_by_power(ll_multiply_high((int32_t)((uint32_t)x << left), multiplier), left - shift);
}

/* The same for a plain scale (see ll_scaling), from twice the sum, in seven instructions. (2x * m + 2^31) >> 32 is ll_multiply_high(x, m);
 * adding -1 to negatives and half the divisor rounds ties away from zero, for right >= 1; and the zero point goes in before the shift.
 * odd = 2 * zero_point + 1, so (odd << right) >> 1 is zero_point << right plus half the divisor. */
LL_INLINE int32_t ll_rescale_plain(int32_t twice, int32_t multiplier, int32_t right, int32_t offset) {
    int32_t x = ll_smmulr(twice, multiplier);
    x += x >> 31;
    x += offset;
    return ll_saturate8(x >> right);
}

LL_INLINE int32_t ll_plain_offset(int32_t zero_point, int32_t right) {
    return (int32_t)((uint32_t)(2 * zero_point + 1) << right) >> 1;
}

#endif
