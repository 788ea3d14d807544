#ifndef LL_NN_H
#define LL_NN_H

#include <stdint.h>

void ll_dot(const int8_t *x, const int8_t *weight, int8_t *out, int rows, int columns);

#endif
