/* Trained tensors at their start, and as they are saved. */
#include "ll_train.h"

void ll_train_start_q7_8(int16_t *masters, const int8_t *codes, uint32_t count) {
    for (; count; count--) *masters++ = (int16_t)(*codes++ * 256);
}

uint32_t ll_train_crc32(const uint8_t *bytes, uint32_t count) {
    static const uint32_t table[16] = {0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
                                       0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    uint32_t crc = 0xFFFFFFFFu; /* four bits at a time */
    for (; count; count--) {
        crc ^= *bytes++;
        crc = crc >> 4 ^ table[crc & 15u];
        crc = crc >> 4 ^ table[crc & 15u];
    }
    return ~crc;
}
