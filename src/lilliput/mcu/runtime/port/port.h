/* What the board's start-up code, its main program and the fault handlers agree on. */
#ifndef LL_PORT_H
#define LL_PORT_H

#include <stdint.h>

/* Exit statuses of the image; the emulator hands them to the host. */
#define LL_EXIT_OK 0
#define LL_EXIT_HARD_FAULT 81
#define LL_EXIT_MEM_MANAGE 82
#define LL_EXIT_BUS_FAULT 83
#define LL_EXIT_USAGE_FAULT 84
#define LL_EXIT_UNEXPECTED_INTERRUPT 85
#define LL_EXIT_STACK_OVERRUN 86
#define LL_EXIT_INPUT 87
#define LL_EXIT_OUTPUT 88
#define LL_EXIT_PARAMS 89

/* The stack is painted with this word before main runs; its lowest LL_STACK_GUARD_BYTES must never change. */
#define LL_STACK_PAINT 0xA5C3A5C3u
#define LL_STACK_GUARD_BYTES 32u

#define LL_STATS_MAGIC 0x4C4C5354u /* "TSLL" in memory: the last record of stats.bin */

/* Symbols of the linker script. */
extern uint32_t ll_data_start[], ll_data_end[], ll_data_load[];
extern uint32_t ll_bss_start[], ll_bss_end[];
extern uint32_t ll_stack_bottom[], ll_stack_top[];

/* Ticks of the processor clock since reset, from SysTick and a count of its wraps. */
uint64_t ll_ticks(void);

/* 1 while the guard at the bottom of the stack is whole. */
int ll_stack_guard_is_whole(void);

/* Bytes between the lowest word that was ever written and the top of the stack. */
uint32_t ll_stack_high_water_bytes(void);

#ifdef LL_PROFILE
/* A step of the model has ended. */
void ll_profile_step(void);
#endif

/* Calls ll_model_run. The symbol ll_model_returned marks the instruction it returns to, where an emulator can stop counting. */
void ll_call_model(void);

#endif
