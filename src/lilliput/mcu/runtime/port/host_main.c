/* The same model as a program for this computer: inputs on standard input, outputs on standard output. */
#include <stdio.h>

#include "model.h"

#ifdef LL_MODEL_STREAMS_INPUT
#include <string.h>

static int8_t image[LL_MODEL_INPUT_BYTES];

static int8_t *ll_model_input(void) { return image; }

void ll_model_read(uint32_t top, uint32_t left, uint32_t rows, uint32_t columns, int8_t *to) {
    const size_t row = LL_MODEL_INPUT_WIDTH * LL_MODEL_INPUT_CHANNELS, part = columns * LL_MODEL_INPUT_CHANNELS;
    const int8_t *from = image + top * row + left * LL_MODEL_INPUT_CHANNELS;
    for (uint32_t y = 0; y < rows; y++) memcpy(to + y * part, from + y * row, part);
}
#endif

int main(void) {
    for (;;) {
        const size_t count = fread(ll_model_input(), 1, LL_MODEL_INPUT_BYTES, stdin);
        if (count == 0) break;
        if (count != LL_MODEL_INPUT_BYTES) {
            fprintf(stderr, "lilliput: the input is no whole number of %lu bytes\n", (unsigned long)LL_MODEL_INPUT_BYTES);
            return 87;
        }
        ll_model_run();
        if (fwrite(ll_model_output(), 1, LL_MODEL_OUTPUT_BYTES, stdout) != LL_MODEL_OUTPUT_BYTES) return 88;
    }
    return fflush(stdout) == 0 ? 0 : 88;
}
