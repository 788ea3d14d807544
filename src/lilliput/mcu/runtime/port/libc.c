/* The four functions a compiler may call even in a freestanding program, and the names that the Arm ABI has for some of them. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
int memcmp(const void *a, const void *b, size_t count);

/* Without this GCC turns the loops below into calls to themselves. */
#if defined(__GNUC__) && !defined(__clang__)
#define NO_LOOP_PATTERNS __attribute__((optimize("no-tree-loop-distribute-patterns")))
#else
#define NO_LOOP_PATTERNS
#endif

typedef uint32_t __attribute__((may_alias, aligned(1))) word;

NO_LOOP_PATTERNS void *memcpy(void *restrict to, const void *restrict from, size_t count) {
    uint8_t *out = to;
    const uint8_t *in = from;
    for (; count >= 4; count -= 4, out += 4, in += 4) *(word *)out = *(const word *)in;
    while (count-- > 0) *out++ = *in++;
    return to;
}

NO_LOOP_PATTERNS void *memmove(void *to, const void *from, size_t count) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((uintptr_t)out - (uintptr_t)in >= count) return memcpy(to, from, count);
    while (count-- > 0) out[count] = in[count];
    return to;
}

NO_LOOP_PATTERNS void *memset(void *to, int value, size_t count) {
    uint8_t *out = to;
    const uint32_t pattern = (uint8_t)value * 0x01010101u;
    for (; count >= 4; count -= 4, out += 4) *(word *)out = pattern;
    while (count-- > 0) *out++ = (uint8_t)value;
    return to;
}

NO_LOOP_PATTERNS int memcmp(const void *a, const void *b, size_t count) {
    const uint8_t *x = a, *y = b;
    for (; count > 0; count--, x++, y++)
        if (*x != *y) return *x - *y;
    return 0;
}

/* Clang's; the number is the alignment that it knows of. */
void __aeabi_memclr(void *to, size_t count);
void __aeabi_memclr4(void *to, size_t count);
void __aeabi_memclr8(void *to, size_t count);
void __aeabi_memcpy(void *restrict to, const void *restrict from, size_t count);
void __aeabi_memcpy4(void *restrict to, const void *restrict from, size_t count);
void __aeabi_memcpy8(void *restrict to, const void *restrict from, size_t count);
void __aeabi_memmove(void *to, const void *from, size_t count);
void __aeabi_memmove4(void *to, const void *from, size_t count);
void __aeabi_memmove8(void *to, const void *from, size_t count);

void __aeabi_memclr(void *to, size_t count) { memset(to, 0, count); }
void __aeabi_memclr4(void *to, size_t count) { memset(to, 0, count); }
void __aeabi_memclr8(void *to, size_t count) { memset(to, 0, count); }
void __aeabi_memcpy(void *restrict to, const void *restrict from, size_t count) { memcpy(to, from, count); }
void __aeabi_memcpy4(void *restrict to, const void *restrict from, size_t count) { memcpy(to, from, count); }
void __aeabi_memcpy8(void *restrict to, const void *restrict from, size_t count) { memcpy(to, from, count); }
void __aeabi_memmove(void *to, const void *from, size_t count) { memmove(to, from, count); }
void __aeabi_memmove4(void *to, const void *from, size_t count) { memmove(to, from, count); }
void __aeabi_memmove8(void *to, const void *from, size_t count) { memmove(to, from, count); }
