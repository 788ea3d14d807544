/* Arm semihosting: files and exit by way of the debugger or emulator (Arm IHI "Semihosting for AArch32 and AArch64"). */
#ifndef LL_SEMIHOSTING_H
#define LL_SEMIHOSTING_H

#include <stdint.h>

typedef enum { LL_READ_BINARY = 1, LL_WRITE_BINARY = 5 } ll_open_mode;

/* A file handle, or -1. */
int ll_open(const char *path, ll_open_mode mode);
void ll_close(int handle);
/* 1 if every byte was read (written), 0 if not. */
int ll_read(int handle, void *bytes, uint32_t length);
int ll_write(int handle, const void *bytes, uint32_t length);
/* 1 if the next byte read is the one at this position, 0 if there is none. */
int ll_seek(int handle, uint32_t position);
/* Length of an open file in bytes, or -1. */
int32_t ll_file_bytes(int handle);

/* Text and a number in hexadecimal, to the emulator's standard error. */
void ll_print(const char *text);
void ll_print_hex(uint32_t value);

void ll_exit(uint32_t status) __attribute__((noreturn));

#endif
