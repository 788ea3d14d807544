/* Counts guest instructions, block by block, as a hook of Unicorn. A hook in Python would take most of the run's time.
   Built as a shared library without any libc; the struct is mirrored in machine.py. */
#include <stdint.h>

struct counter {
    const uint8_t *code; /* copy of the flash */
    uint64_t code_origin;
    uint64_t code_bytes;
    uint64_t start; /* address of the first counted instruction, entered by a call */
    uint64_t stop;  /* address where that call returns */
    uint64_t total;
    uint64_t total_at_start;
    uint64_t outside; /* blocks that are not in the flash and could not be counted */
    uint64_t *counts; /* one for each call */
    uint64_t capacity;
    uint64_t calls;
    uint64_t step_end; /* entries of these two functions of a profile build are noted */
    uint64_t step_begin;
    uint64_t *steps;
    uint64_t step_capacity;
    uint64_t step_notes;
};

/* A Thumb instruction is 4 bytes long if the top five bits of its first halfword are 0b11101 or above, else 2. */
static uint64_t instructions(const uint8_t *code, uint64_t bytes) {
    uint64_t count = 0;
    for (uint64_t at = 0; at < bytes; count++) at += code[at + 1] >= 0xE8 ? 4 : 2;
    return count;
}

void ll_count_block(void *engine, uint64_t address, uint32_t bytes, void *user_data) {
    struct counter *counter = user_data;
    (void)engine;
    if (address == counter->start) counter->total_at_start = counter->total;
    if (address == counter->stop && counter->calls < counter->capacity)
        counter->counts[counter->calls++] = counter->total - counter->total_at_start;
    if ((address == counter->step_end || address == counter->step_begin) && counter->step_notes < counter->step_capacity)
        counter->steps[counter->step_notes++] = counter->total;
    const uint64_t offset = address - counter->code_origin;
    if (address < counter->code_origin || offset + bytes > counter->code_bytes)
        counter->outside++;
    else
        counter->total += instructions(counter->code + offset, bytes);
}
