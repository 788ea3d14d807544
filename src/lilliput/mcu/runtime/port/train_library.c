/* For a shared library on this computer: where the model asks for parts of an image, they come from one in memory. */
#include "model.h"

#ifdef LL_MODEL_STREAMS_INPUT
#include <string.h>

const int8_t *ll_library_image;

void ll_model_read(uint32_t top, uint32_t left, uint32_t rows, uint32_t columns, int8_t *to) {
    const uint32_t row = LL_MODEL_INPUT_WIDTH * LL_MODEL_INPUT_CHANNELS, part = columns * LL_MODEL_INPUT_CHANNELS;
    const int8_t *from = ll_library_image + top * row + left * LL_MODEL_INPUT_CHANNELS;
    for (uint32_t y = 0; y < rows; y++) memcpy(to + y * part, from + y * row, part);
}
#else
typedef int ll_nothing_to_add;
#endif
