#include "semihosting.h"

enum {
    SYS_OPEN = 0x01,
    SYS_CLOSE = 0x02,
    SYS_WRITE0 = 0x04,
    SYS_WRITE = 0x05,
    SYS_READ = 0x06,
    SYS_SEEK = 0x0A,
    SYS_FLEN = 0x0C,
    SYS_EXIT_EXTENDED = 0x20
};

#define STOPPED_APPLICATION_EXIT 0x20026u

static int32_t call(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

int ll_open(const char *path, ll_open_mode mode) {
    uint32_t length = 0;
    while (path[length] != 0) length++;
    const uint32_t block[3] = {(uint32_t)path, (uint32_t)mode, length};
    return (int)call(SYS_OPEN, block);
}

void ll_close(int handle) {
    const uint32_t block[1] = {(uint32_t)handle};
    call(SYS_CLOSE, block);
}

/* Both operations answer with the number of bytes that were NOT moved. */
int ll_read(int handle, void *bytes, uint32_t length) {
    const uint32_t block[3] = {(uint32_t)handle, (uint32_t)bytes, length};
    return call(SYS_READ, block) == 0;
}

int ll_write(int handle, const void *bytes, uint32_t length) {
    const uint32_t block[3] = {(uint32_t)handle, (uint32_t)bytes, length};
    return call(SYS_WRITE, block) == 0;
}

int ll_seek(int handle, uint32_t position) {
    const uint32_t block[2] = {(uint32_t)handle, position};
    return call(SYS_SEEK, block) == 0;
}

int32_t ll_file_bytes(int handle) {
    const uint32_t block[1] = {(uint32_t)handle};
    return call(SYS_FLEN, block);
}

void ll_print(const char *text) { call(SYS_WRITE0, text); }

void ll_print_hex(uint32_t value) {
    char text[11] = "0x00000000";
    for (int i = 9; i >= 2; i--, value >>= 4) text[i] = "0123456789abcdef"[value & 15u];
    call(SYS_WRITE0, text);
}

void ll_exit(uint32_t status) {
    const uint32_t block[2] = {STOPPED_APPLICATION_EXIT, status};
    for (;;) call(SYS_EXIT_EXTENDED, block);
}
