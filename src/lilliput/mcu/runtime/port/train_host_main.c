/* The same as a program for this computer: samples on standard input, results on standard output; `image IN OUT` goes on from the saved
 * image IN (- for none) and leaves OUT. */
#include <stdio.h>
#include <string.h>

#include "model.h"

static int8_t image[LL_MODEL_INPUT_BYTES];

#ifdef LL_MODEL_STREAMS_INPUT
void ll_model_read(uint32_t top, uint32_t left, uint32_t rows, uint32_t columns, int8_t *to) {
    const size_t row = LL_MODEL_INPUT_WIDTH * LL_MODEL_INPUT_CHANNELS, part = columns * LL_MODEL_INPUT_CHANNELS;
    const int8_t *from = image + top * row + left * LL_MODEL_INPUT_CHANNELS;
    for (uint32_t y = 0; y < rows; y++) memcpy(to + y * part, from + y * row, part);
}
#endif

static int restore(const char *path) {
    static uint8_t params[LL_MODEL_PARAMS_BYTES + 1];
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    const size_t count = fread(params, 1, sizeof params, file);
    fclose(file);
    return count == LL_MODEL_PARAMS_BYTES && ll_model_set_params(params);
}

static int save(const char *path) {
    FILE *file = fopen(path, "wb");
    if (!file) return 0;
    const size_t count = fwrite(ll_model_get_params(), 1, LL_MODEL_PARAMS_BYTES, file);
    return fclose(file) == 0 && count == LL_MODEL_PARAMS_BYTES;
}

int main(int count, char **arguments) {
    int32_t head[2], result[2 + LL_MODEL_CLASSES];
    if (count > 1 && strcmp(arguments[1], "-") != 0 && !restore(arguments[1])) {
        fprintf(stderr, "lilliput: %s is no image of this model's trained tensors\n", arguments[1]);
        return 89;
    }
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        if (fread(image, 1, sizeof image, stdin) != sizeof image) {
            fprintf(stderr, "lilliput: the input is no whole number of samples\n");
            return 87;
        }
        memset(result, 0, sizeof result);
        result[0] = -1;
        if (head[0] < 0) {
            ll_model_predict(image);
            memcpy(result + 2, ll_model_logits(), LL_MODEL_CLASSES * sizeof(int32_t));
        } else {
            ll_model_set_rate((uint32_t)head[1]);
            result[0] = ll_model_train_step(image, (uint32_t)head[0]);
        }
        result[1] = (int32_t)ll_model_predicted();
        if (fwrite(result, 1, sizeof result, stdout) != sizeof result) return 88;
    }
    if (count > 2 && !save(arguments[2])) return 88;
    return fflush(stdout) == 0 ? 0 : 88;
}
