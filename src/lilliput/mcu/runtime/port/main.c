/* Runs every input of input.bin through the model, writes output.bin, and what each run took to stats.bin. */
#include "model.h"
#include "port.h"
#include "semihosting.h"

#ifdef LL_MODEL_STREAMS_INPUT
static int image_file;
static uint32_t image_start; /* in the file */
static int is_whole = 1;     /* no part was missing */

/* A camera would go here; this one is a file on the host, so that no more of the image is ever in memory than the model asks for. */
void ll_model_read(uint32_t top, uint32_t left, uint32_t rows, uint32_t columns, int8_t *to) {
    const uint32_t row = LL_MODEL_INPUT_WIDTH * LL_MODEL_INPUT_CHANNELS, part = columns * LL_MODEL_INPUT_CHANNELS;
    const uint32_t first = image_start + top * row + left * LL_MODEL_INPUT_CHANNELS;
    const uint32_t runs = columns == LL_MODEL_INPUT_WIDTH ? 1 : rows, length = runs == 1 ? rows * part : part;
    for (uint32_t y = 0; y < runs; y++)
        if (!ll_seek(image_file, first + y * row) || !ll_read(image_file, to + y * part, length)) is_whole = 0;
}
#endif

int main(void) {
    const int input = ll_open("input.bin", LL_READ_BINARY);
    const int32_t input_bytes = input < 0 ? -1 : ll_file_bytes(input);
    if (input_bytes <= 0 || (uint32_t)input_bytes % LL_MODEL_INPUT_BYTES != 0) return LL_EXIT_INPUT;
    const int output = ll_open("output.bin", LL_WRITE_BINARY);
    const int stats = ll_open("stats.bin", LL_WRITE_BINARY);
    if (output < 0 || stats < 0) return LL_EXIT_OUTPUT;

    const uint32_t inferences = (uint32_t)input_bytes / LL_MODEL_INPUT_BYTES;
    for (uint32_t inference = 0; inference < inferences; inference++) {
#ifdef LL_MODEL_STREAMS_INPUT
        image_file = input;
        image_start = inference * LL_MODEL_INPUT_BYTES;
#else
        if (!ll_read(input, ll_model_input(), LL_MODEL_INPUT_BYTES)) return LL_EXIT_INPUT;
#endif
        const uint64_t start = ll_ticks();
#ifdef LL_PROFILE
        ll_profile_step();
        ll_profile_step(); /* nothing lies between these two: what the readings themselves take */
#endif
        ll_call_model();
        const uint64_t ticks = ll_ticks() - start;
        if (!ll_stack_guard_is_whole()) return LL_EXIT_STACK_OVERRUN;
#ifdef LL_MODEL_STREAMS_INPUT
        if (!is_whole) return LL_EXIT_INPUT;
#endif
        if (!ll_write(output, ll_model_output(), LL_MODEL_OUTPUT_BYTES) || !ll_write(stats, &ticks, sizeof ticks))
            return LL_EXIT_OUTPUT;
    }
    const uint32_t trailer[4] = {LL_STATS_MAGIC, inferences, ll_stack_high_water_bytes(),
                                 (uint32_t)ll_stack_top - (uint32_t)ll_stack_bottom};
    if (!ll_write(stats, trailer, sizeof trailer)) return LL_EXIT_OUTPUT;
    ll_close(stats);
    ll_close(output);
    ll_close(input);
    return LL_EXIT_OK;
}
