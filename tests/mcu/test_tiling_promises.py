"""What plan() says of tiles: decisions never cost memory, tiles can be planned again, wrong uses are named."""

from types import SimpleNamespace

import numpy as np
import pytest

from lilliput.errors import ConfigError
from lilliput.jobs.deploy_report import _saving
from lilliput.mcu import plan
from lilliput.mcu.tiling import Patches, Rows, Schedule
from lilliput.quantize.qgraph import QuantizedGraph
from mcu.networks import Network, resnet8
from mcu.test_tiling import deep_network


@pytest.mark.parametrize(("seed", "schedule"), [(4, Rows("t3", 1)), (11, Patches("t11", (2, 2)))], ids=str)
def test_fusing_additions_never_costs_memory_in_tiles_either(seed: int, schedule: Schedule) -> None:
    fused, apart = (
        plan(deep_network(seed), schedule=schedule, fuse_add=fuse_add, input="stream") for fuse_add in (True, False)
    )
    assert fused.sram_bytes <= apart.sram_bytes


def test_the_graph_of_tiles_can_be_planned_again() -> None:
    made = plan(resnet8(seed=1), schedule=Rows("t3", 8))
    again = plan(made.qgraph, schedule="smallest")
    assert again.sram_bytes <= made.sram_bytes
    x = np.random.default_rng(0).integers(-128, 128, (1, 32, 32, 3), dtype=np.int8)
    assert np.array_equal(again.run(x), made.whole.run(x))


def small() -> QuantizedGraph:
    net = Network("small", (8, 8, 3), 0)
    return net.graph(net.conv("x", 4, 3))


@pytest.mark.parametrize("schedule", ["whole", "smallest"])
def test_an_input_that_is_an_output_cannot_be_streamed(schedule: str) -> None:
    graph = small()
    with pytest.raises(ConfigError, match="the input of 'small' is one of its outputs.* take 'resident'"):
        plan(QuantizedGraph("small", "x", ("t0", "x"), graph.tensors, graph.ops), input="stream", schedule=schedule)


def test_pixels_that_strides_leave_out_are_not_called_halos() -> None:
    net = Network("strided", (16, 16, 3), 0)
    x = net.conv(net.conv("x", 8, 3), 8, 1, 2, padding=(0, 0, 0, 0))
    graph = net.graph(x)
    made, whole = plan(graph, schedule=Rows(x), input="stream"), plan(graph, input="stream")
    assert (
        whole.macs - made.macs == 8 * 16 * 3 * 9 * 8 == 27_648
    )  # eight rows of the first layer, which no window reads
    assert "27,648 fewer than the whole network's" in made.table()
    words = _saving(SimpleNamespace(plan=made, whole=whole))
    assert "27,648 multiply-accumulates fewer" in words
    assert "done again" not in words
