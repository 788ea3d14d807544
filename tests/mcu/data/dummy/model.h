/* A hand-written model in the shape of an emitted one: 4 dot products, and a way to misbehave on purpose. */
#ifndef LL_MODEL_H
#define LL_MODEL_H

#include <stdint.h>

#define LL_MODEL_INPUT_BYTES 16u /* 4 x 4 x 1: height x width x channel */
#define LL_MODEL_OUTPUT_BYTES 4u
#define LL_MODEL_ARENA_BYTES 48
#define LL_MODEL_SCRATCH_BYTES 24
#ifndef LL_MODEL_STACK_BYTES
#define LL_MODEL_STACK_BYTES 512
#endif

extern int8_t ll_arena[], ll_scratch[];

int8_t *ll_model_input(void);
const int8_t *ll_model_output(void);
void ll_model_run(void);

#endif
