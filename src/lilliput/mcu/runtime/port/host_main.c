/* The same model as a program for this computer: inputs on standard input, outputs on standard output. */
#include <stdio.h>

#include "model.h"

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
