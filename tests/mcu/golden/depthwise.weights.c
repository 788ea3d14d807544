#include "weights.h"

const int8_t op0_weights[18] = {
    -127, -79, -32, 16, 63, 111, -111, -63, -16, 32, 79, 127, -95, -48, 0, 48, 95, -127
};

const int32_t op0_channels[6] = {
    -117602, 1567955239, 3, -3968, 1567955239, 3
};

const uint32_t op1_weights[2] = {
    33024u, 49408u
};

const int32_t op1_channels[3] = {
    -2050622, 1102556351, 11
};
