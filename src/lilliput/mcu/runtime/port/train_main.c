/* Adapts on a stream of samples: each of input.bin has a label, or -1 to be predicted only, and a learning rate's factor. Writes what came
 * of each to output.bin and what it took to stats.bin. Goes on from params.bin where there is one, and leaves params_out.bin: on a device
 * these would be a page of flash. */
#include "model.h"
#include "port.h"
#include "semihosting.h"

#define HEAD_BYTES 8u /* label, rate */

static struct {
    int32_t label, rate;
} sample;
static struct {
    int32_t loss;
    uint32_t predicted;
} result;

void ll_model_run(void);

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

static const int8_t *input_place(void) { return 0; }
#else
static const int8_t *input_place(void) { return ll_model_input(); }
#endif

/* What is counted: one prediction or one step. */
void ll_model_run(void) {
    result.loss = -1;
    if (sample.label < 0) {
        ll_model_predict(input_place());
    } else {
        ll_model_set_rate((uint32_t)sample.rate);
        result.loss = ll_model_train_step(input_place(), (uint32_t)sample.label);
    }
    result.predicted = ll_model_predicted();
}

static int restore(void) {
    uint8_t *image = ll_model_get_params(); /* nothing has been learnt yet that could be lost: no other memory is needed */
    const int file = ll_open("params.bin", LL_READ_BINARY);
    if (file < 0) return 1;
    const int is_read = ll_file_bytes(file) == (int32_t)LL_MODEL_PARAMS_BYTES && ll_read(file, image, LL_MODEL_PARAMS_BYTES);
    ll_close(file);
    return is_read && ll_model_set_params(image);
}

static int save(void) {
    const int file = ll_open("params_out.bin", LL_WRITE_BINARY);
    if (file < 0 || !ll_write(file, ll_model_get_params(), LL_MODEL_PARAMS_BYTES)) return 0;
    ll_close(file);
    return 1;
}

int main(void) {
    const uint32_t sample_bytes = HEAD_BYTES + LL_MODEL_INPUT_BYTES;
    const int input = ll_open("input.bin", LL_READ_BINARY);
    const int32_t input_bytes = input < 0 ? -1 : ll_file_bytes(input);
    if (input_bytes <= 0 || (uint32_t)input_bytes % sample_bytes != 0) return LL_EXIT_INPUT;
    const int output = ll_open("output.bin", LL_WRITE_BINARY);
    const int stats = ll_open("stats.bin", LL_WRITE_BINARY);
    if (output < 0 || stats < 0) return LL_EXIT_OUTPUT;
    if (!restore()) return LL_EXIT_PARAMS;

    const uint32_t count = (uint32_t)input_bytes / sample_bytes;
    for (uint32_t index = 0; index < count; index++) {
        if (!ll_seek(input, index * sample_bytes) || !ll_read(input, &sample, HEAD_BYTES)) return LL_EXIT_INPUT;
#ifdef LL_MODEL_STREAMS_INPUT
        image_file = input;
        image_start = index * sample_bytes + HEAD_BYTES;
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
        if (!ll_write(output, &result, sizeof result) || !ll_write(stats, &ticks, sizeof ticks)) return LL_EXIT_OUTPUT;
        for (uint32_t c = 0; c < LL_MODEL_CLASSES; c++) {
            const int32_t logit = sample.label < 0 ? ll_model_logits()[c] : 0;
            if (!ll_write(output, &logit, sizeof logit)) return LL_EXIT_OUTPUT;
        }
    }
    if (!save()) return LL_EXIT_OUTPUT;
    const uint32_t trailer[4] = {LL_STATS_MAGIC, count, ll_stack_high_water_bytes(),
                                 (uint32_t)ll_stack_top - (uint32_t)ll_stack_bottom};
    if (!ll_write(stats, trailer, sizeof trailer)) return LL_EXIT_OUTPUT;
    ll_close(stats);
    ll_close(output);
    ll_close(input);
    return LL_EXIT_OK;
}
