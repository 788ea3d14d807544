#include "weights.h"

const uint32_t op0_weights[2] = {
    3749806409u, 263696767u
};

const int32_t op0_channels[6] = {
    -113506, 1126942899, 6, -37012, 1972149973, 7
};
