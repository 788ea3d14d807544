#include "model.h"

#include <string.h>

#ifndef __arm__
#include <stdlib.h>
#endif

#include "ll_nn.h"

#ifdef LL_PROFILE
void ll_profile_step(void);
#define LL_STEP(name) ll_profile_step()
#else
#define LL_STEP(name) ((void)0)
#endif

extern const int8_t ll_weights[64];

int8_t ll_arena[LL_MODEL_ARENA_BYTES];
int8_t ll_scratch[LL_MODEL_SCRATCH_BYTES];
static uint32_t runs = 1; /* something for .data */

int8_t *ll_model_input(void) { return ll_arena; }
const int8_t *ll_model_output(void) { return ll_arena + 32; }

/* If x[1] is 85, x[0] chooses a way to misbehave and x[4..7] says how much. */
enum { UNDEFINED = 1, JUMP, LOAD, LOOP, SPIN, RECURSE, FLOAT, OVERFLOW, OUTSIDE, WIDE, LOCKUP, LEAVE };

#ifdef __arm__
void ll_exit(uint32_t status); /* port/semihosting.c */

/* Exactly 6 instructions a turn, of every length class: 16 bits, and 32 bits with each of the three leading patterns. */
static void spin(uint32_t count) {
    uint32_t a = 1;
    __asm__ volatile(
        "1: add.w %1, %1, %1, lsl #1\n\t" /* 0xEB.. */
        "movw %1, #5\n\t"                  /* 0xF2.. */
        "ldr.w %1, [sp, #0]\n\t"           /* 0xF8.. */
        "mov %1, %0\n\t"
        "subs %0, %0, #1\n\t"
        "bne 1b"
        : "+l"(count), "+r"(a)
        :
        : "cc");
}
#endif

static __attribute__((noinline)) uint32_t recurse(uint32_t depth) {
    volatile uint32_t frame[8];
    for (uint32_t i = 0; i < 8; i++) frame[i] = depth;
    if (depth == 0) return 0;
    return recurse(depth - 1) + frame[depth & 7u];
}

static void misbehave(int scenario, uint32_t amount) {
    volatile int32_t number = INT32_MAX;
    volatile uint32_t index = amount;
    switch (scenario) {
#ifdef __arm__
    case UNDEFINED: __asm__ volatile("udf #7"); break;
    case JUMP: __asm__ volatile("bx %0" ::"r"(amount)); break;
    case LOAD: (void)*(volatile uint32_t *)amount; break;
    case SPIN: spin(amount); break;
    case FLOAT: __asm__ volatile("vmov s0, %0\n\tvadd.f32 s0, s0, s0" ::"r"(amount) : "s0"); break;
    case WIDE: { /* 64-bit division: a call into the compiler's own library */
        volatile uint64_t wide = amount;
        ll_arena[40] = (int8_t)(wide / 3u);
        break;
    }
    case LOCKUP: /* a vector table where there is no memory, and then a fault */
        *(volatile uint32_t *)0xE000ED08u = 0x70000000u;
        __asm__ volatile("udf #7");
        break;
    case LEAVE: ll_exit(amount); break;
#else
    case LEAVE: exit((int)amount);
#endif
    case LOOP:
        for (volatile uint32_t i = 0;; i++) {}
    case RECURSE: runs += recurse(amount) & 0u; break;
    case OVERFLOW: ll_arena[40] = (int8_t)(number + (int32_t)amount); break;
    case OUTSIDE: ll_arena[index] = 1; break;
    default: break;
    }
}

void ll_model_run(void) {
    if (ll_arena[1] == 85) {
        uint32_t amount;
        memcpy(&amount, ll_arena + 4, sizeof amount);
        memset(ll_arena + 4, 0, sizeof amount); /* what follows must not depend on how much */
        misbehave(ll_arena[0], amount);
    }
    LL_STEP("misbehaviour");
    memset(ll_scratch, 0, sizeof ll_scratch);
    ll_dot(ll_arena, ll_weights, ll_arena + 32, 4, 16);
    LL_STEP("dot \"products\"");
    if (runs++ == 0) ll_arena[32] = 99; /* .data was not initialised */
}
