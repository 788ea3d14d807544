/* Only in the profile build: when each step of the model ended and when the next one began. Between the two the readings are written to
 * profile.bin, so that a profile needs no room for them and writing counts for no step. */
#include "port.h"
#include "semihosting.h"

/* Functions of their own: an emulator without a timer counts up to their entries instead. */
__attribute__((noinline)) uint64_t ll_profile_end(void) { return ll_ticks(); }
__attribute__((noinline)) uint64_t ll_profile_begin(void) { return ll_ticks(); }

void ll_profile_step(void) {
    static uint64_t readings[2]; /* where the step began, where it ended */
    static int file = -1;
    readings[1] = ll_profile_end();
    if (file < 0) file = ll_open("profile.bin", LL_WRITE_BINARY);
    if (file < 0 || !ll_write(file, readings, sizeof readings)) ll_exit(LL_EXIT_OUTPUT);
    readings[0] = ll_profile_begin();
}
