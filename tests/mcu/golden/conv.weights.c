#include "weights.h"

const uint32_t op0_weights[6] = {
    3766452512u, 262254927u, 2435858128u, 3244257024u, 61313u, 0u
};

const int32_t op0_channels[6] = {
    -58801, 1508885108, 12, -1984, 1508885108, 12
};
