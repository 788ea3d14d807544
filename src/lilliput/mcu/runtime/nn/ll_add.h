/* Element-wise sum of codes, shared by the add kernel and by convolutions that end in a residual add. */
#ifndef LL_ADD_H
#define LL_ADD_H

#include "ll_nn.h"

/* output may be first or second. */
void ll_add_codes(const ll_add_params *params, const int8_t *first, const int8_t *second, int8_t *output, uint32_t count);

#endif
