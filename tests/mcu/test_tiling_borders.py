"""Rows that strides and dilations leave out, at the borders of a map: what reads up to the border must still find rows there."""

from itertools import product

import numpy as np
import pytest

from lilliput.mcu.tiling import Rows, splits, tile
from lilliput.quantize.qgraph import Clamp, Conv2d, QuantizedGraph
from mcu.networks import Network


def dilated_network(side: int, dilation: int, stride: int, padding: tuple[int, int]) -> QuantizedGraph:
    """A pixel-by-pixel layer, then a window of three taps down whose first or last may fall outside the map."""
    net = Network("dilated", (side, 3, 2), 0)
    x = net.conv("x", 4, (3, 1))
    rows = (side + sum(padding) - 2 * dilation - 1) // stride + 1
    op = Conv2d(
        name="window",
        inputs=(x,),
        stride=(stride, 1),
        dilation=(dilation, 1),
        padding=(padding[0], 0, padding[1], 0),
        clamp=Clamp(lower=-100, upper=100),
        **net._weights((4, 3, 1, 4)),
    )
    return net.graph(net.conv(net._add_op(op, (rows, 3, 4)), 3))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("dilation", "stride"), [(2, 2), (3, 3), (3, 2)])
def test_rows_that_no_tap_falls_on_may_lie_at_a_border(dilation: int, stride: int, streams: bool) -> None:
    tried = 0
    for side, padding in product((7, 8), ((1, 0), (0, 1), (2, 2))):
        graph = dilated_network(side, dilation, stride, padding)
        x = np.random.default_rng(side).integers(-128, 128, (1, side, 3, 2), dtype=np.int8)
        for split, height in product(splits(graph), (1, 2)):
            if height <= graph.tensors[split].shape[0]:
                tiling = tile(graph, Rows(split, height), streams_input=streams)
                assert np.array_equal(tiling.graph.run(x), graph.run(x)), f"side {side}, padding {padding}, {split}"
                assert tiling.halo_macs <= 0
                tried += 1
    assert tried >= 16
