#include "ll_nn.h"

/* out = sum(x * weight) / 64, rounded towards zero, clipped to int8 */
void ll_dot(const int8_t *x, const int8_t *weight, int8_t *out, int rows, int columns) {
    for (int row = 0; row < rows; row++) {
        int32_t sum = 0;
        for (int column = 0; column < columns; column++) sum += x[column] * weight[row * columns + column];
        sum /= 64;
        out[row] = (int8_t)(sum > 127 ? 127 : sum < -128 ? -128 : sum);
    }
}
