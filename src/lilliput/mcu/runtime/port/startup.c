/* Vector table, reset, faults, and the two measurements that need the hardware: ticks and stack. */
#include "model.h"
#include "port.h"
#include "semihosting.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYST_CSR REGISTER(0xE000E010u)
#define SYST_RVR REGISTER(0xE000E014u)
#define SYST_CVR REGISTER(0xE000E018u)
#define SCB_VTOR REGISTER(0xE000ED08u)
#define SCB_SHCSR REGISTER(0xE000ED24u)
#define SCB_CFSR REGISTER(0xE000ED28u)
#define SCB_HFSR REGISTER(0xE000ED2Cu)
#define SCB_BFAR REGISTER(0xE000ED38u)
#define SCB_CPACR REGISTER(0xE000ED88u)
#define MPU_TYPE REGISTER(0xE000ED90u)
#define MPU_CTRL REGISTER(0xE000ED94u)
#define MPU_RBAR REGISTER(0xE000ED9Cu)
#define MPU_RASR REGISTER(0xE000EDA0u)

/* 128 MB up to where every Cortex-M's SRAM begins. A region that shares a page with the arena would make QEMU thirty times slower. */
#define BELOW_SRAM 0x18000000u
#define BELOW_SRAM_LOG2_BYTES 27u

#define SYSTICK_PERIOD 0x1000000u /* 24 bits */

int main(void);
void ll_reset(void);
void ll_fault(void);
void ll_systick(void);
void ll_report_fault(const uint32_t *frame) __attribute__((noreturn, used));

/* Room the linker must leave above .bss. The real stack is all that is left up to the end of the memory. */
static uint8_t ll_stack_reserve[LL_MODEL_STACK_BYTES + LL_STACK_GUARD_BYTES]
    __attribute__((section(".ll_stack"), used, aligned(8)));

static volatile uint32_t ll_systick_wraps;

typedef void (*ll_vector)(void);

__attribute__((section(".vectors"), used)) static const ll_vector ll_vectors[16] = {
    (ll_vector)ll_stack_top, ll_reset, ll_fault, ll_fault, ll_fault, ll_fault, ll_fault, ll_fault,
    ll_fault,                ll_fault, ll_fault, ll_fault, ll_fault, ll_fault, ll_fault, ll_systick,
};

/* volatile keeps the compiler from making calls to memcpy and memset of these loops: their frames would be painted over. */
void ll_reset(void) {
    SCB_VTOR = (uint32_t)ll_vectors;
    SCB_SHCSR |= 7u << 16; /* memory, bus and usage faults arrive under their own names */
#if defined(__ARM_FP)
    SCB_CPACR |= 0xFu << 20;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    const uint32_t *from = ll_data_load;
    for (volatile uint32_t *to = ll_data_start; to < ll_data_end; to++) *to = *from++;
    for (volatile uint32_t *to = ll_bss_start; to < ll_bss_end; to++) *to = 0;

    uint32_t stack_pointer;
    __asm__ volatile("mov %0, sp" : "=r"(stack_pointer));
    for (volatile uint32_t *to = ll_stack_bottom; (uint32_t)to < stack_pointer; to++) *to = LL_STACK_PAINT;

    if (MPU_TYPE != 0) { /* some emulated boards answer where they have no memory; a runaway stack must end at the end of the SRAM */
        MPU_RBAR = BELOW_SRAM | 1u << 4;
        MPU_RASR = 1u << 28 | (BELOW_SRAM_LOG2_BYTES - 1u) << 1 | 1u; /* no access at all, on */
        MPU_CTRL = 5;                                                 /* on, with the default map for all else */
        __asm__ volatile("dsb\n\tisb" ::: "memory");
    }

    SYST_RVR = SYSTICK_PERIOD - 1u;
    SYST_CVR = 0;
    SYST_CSR = 7; /* processor clock, interrupt, on */
    while (SYST_CVR == 0) {} /* the first reading before the reload is garbage */

    ll_exit((uint32_t)main());
}

void ll_systick(void) { ll_systick_wraps++; }

uint64_t ll_ticks(void) {
    uint32_t wraps, down;
    do { /* at 0 the wrap may or may not have been counted yet */
        wraps = ll_systick_wraps;
        down = SYST_CVR;
    } while (down == 0 || wraps != ll_systick_wraps);
    return (uint64_t)wraps * SYSTICK_PERIOD + (SYSTICK_PERIOD - down);
}

int ll_stack_guard_is_whole(void) {
    for (uint32_t word = 0; word < LL_STACK_GUARD_BYTES / 4u; word++)
        if (ll_stack_bottom[word] != LL_STACK_PAINT) return 0;
    return 1;
}

uint32_t ll_stack_high_water_bytes(void) {
    const uint32_t *lowest = ll_stack_bottom;
    while (lowest < ll_stack_top && *lowest == LL_STACK_PAINT) lowest++;
    return (uint32_t)ll_stack_top - (uint32_t)lowest;
}

__attribute__((naked)) void ll_call_model(void) {
    __asm__ volatile(
        "push {r4, lr}\n\t"
        "bl ll_model_run\n\t"
        ".global ll_model_returned\n\t"
        ".thumb_func\n"
        "ll_model_returned:\n\t"
        "pop {r4, pc}");
}

/* The stack may be what broke: keep its address for the report and start again from the top. */
__attribute__((naked)) void ll_fault(void) {
    __asm__ volatile(
        "mov r0, sp\n\t"
        "ldr r1, =ll_stack_top\n\t"
        "mov sp, r1\n\t"
        "b ll_report_fault\n\t"
        ".ltorg");
}

static void print_register(const char *name, uint32_t value) {
    ll_print(name);
    ll_print_hex(value);
}

void ll_report_fault(const uint32_t *frame) {
    static const struct {
        const char *name;
        uint32_t status;
    } faults[4] = {{"HardFault", LL_EXIT_HARD_FAULT},
                   {"MemManage", LL_EXIT_MEM_MANAGE},
                   {"BusFault", LL_EXIT_BUS_FAULT},
                   {"UsageFault", LL_EXIT_USAGE_FAULT}};
    const char *name = "unexpected interrupt";
    uint32_t status = LL_EXIT_UNEXPECTED_INTERRUPT, number;
    __asm__ volatile("mrs %0, ipsr" : "=r"(number));
    if (number >= 3 && number <= 6) {
        name = faults[number - 3].name;
        status = faults[number - 3].status;
    }
    /* The frame was read before anything here could overwrite it: the top of the stack holds only reset's own frame. */
    const int is_inside = frame >= ll_stack_bottom && frame + 8 <= ll_stack_top;
    const uint32_t pc = is_inside ? frame[6] : 0, lr = is_inside ? frame[5] : 0;
    const int is_stacking = (SCB_CFSR & (1u << 4 | 1u << 12)) != 0; /* it failed while it saved the registers */
    if (!is_inside || is_stacking || !ll_stack_guard_is_whole()) status = LL_EXIT_STACK_OVERRUN;
    ll_print("lilliput fault: ");
    ll_print(name);
    print_register(" number=", number);
    print_register(" pc=", pc);
    print_register(" lr=", lr);
    print_register(" sp=", (uint32_t)frame);
    print_register(" cfsr=", SCB_CFSR);
    print_register(" hfsr=", SCB_HFSR);
    print_register(" bfar=", SCB_BFAR);
    ll_print("\n");
    ll_exit(status);
}
