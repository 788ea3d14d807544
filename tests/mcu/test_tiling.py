"""First layers in tiles: the same bytes as the whole network, the published memory, exact counts of what is computed twice."""

import itertools
import random
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from lilliput.errors import BudgetError, ConfigError
from lilliput.mcu import load_tflite, plan
from lilliput.mcu.arena import PackingError
from lilliput.mcu.boards import find_board
from lilliput.mcu.plan import Plan
from lilliput.mcu.tiling import Patches, Rows, Schedule, outlook, splits, tile
from lilliput.mcu.toolchain import find_toolchain
from lilliput.quantize.qgraph import Conv2d, MaxPool2d, Paste, QuantizedGraph
from mcu.networks import Network, ds_cnn, mobilenet_v2, random_network, resnet8, vww
from mcu.test_codegen import needs_cc, needs_gcc_qemu
from quantize.tflite_runtimes import shared_model

GRIDS = [grid for grid in itertools.product(range(1, 5), repeat=2) if grid != (1, 1)]


def codes(graph: QuantizedGraph, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (count, *graph.tensors[graph.input].shape), dtype=np.int8)


def same(first: object, second: object) -> bool:
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    return all(np.array_equal(a, b) for a, b in pairs)


def deep_network(seed: int) -> QuantizedGraph:
    """4 to 9 layers with windows of 1 to 7, strides, uneven sides and paddings, residuals, joins, pools and steps in resolution."""
    rng = random.Random(seed)
    net = Network(f"deep{seed}", (rng.randint(11, 23), rng.randint(9, 20), rng.choice([1, 2, 3])), seed)
    x = net.conv("x", rng.choice([4, 5, 8]), rng.choice([1, 3, 5, 7]), rng.choice([1, 2]))
    for _ in range(rng.randint(3, 8)):
        height, width, channels = net.shape(x)
        kernel = rng.choice([k for k in (1, 3, 3, 5, 7) if k <= min(height, width) + 2])
        kind = rng.choice(["conv", "valid", "depthwise", "depthwise", "residual", "residual", "join", "other"])
        if kind == "conv":
            x = net.conv(x, rng.choice([3, 4, 8]), (kernel, rng.choice([1, 3])), (rng.choice([1, 2]), 1))
        elif kind == "valid" and min(height, width) > 8:
            x = net.conv(
                x,
                rng.choice([4, 6]),
                3,
                rng.choice([1, 2]),
                padding=rng.choice([(0, 0, 0, 0), (0, 1, 2, 0), (1, 0, 0, 1)]),
            )
        elif kind == "depthwise":
            x = net.depthwise(x, kernel, rng.choice([1, 1, 2]) if min(height, width) > 4 else 1)
        elif kind == "residual":
            inner = net.conv(net.depthwise(net.conv(x, 2 * channels), rng.choice([3, 5])), channels)
            x = net.add(*rng.sample([x, inner], 2))
        elif kind == "join":
            x = net.concat(net.pool_same(x, 3), net.pool_same(x, 5))
        elif kind == "other":
            x = rng.choice([net.lookup, net.pad, net.upsample, lambda y: net.mul(y, net.lookup(y))])(x)
    return net.graph(net.linear(net.reshape(net.mean(x), net.shape(x)[2]), 5))


def schedules(graph: QuantizedGraph, rng: random.Random, count: int) -> list[Schedule]:
    found: list[Schedule] = []
    for _ in range(count):
        split = rng.choice(splits(graph))
        height, width, _ = graph.tensors[split].shape
        if rng.random() < 0.5:
            found.append(Rows(split, rng.randint(1, min(height, 5))))
        else:
            found.append(Patches(split, (rng.randint(1, min(height, 4)), rng.randint(1, min(width, 4)))))
    return found


# The same bytes


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_tiles_of_random_networks_give_the_bytes_of_the_whole(first: int) -> None:
    seen = {"graphs": 0, "residuals": 0, "plans": 0, "padding alone": 0}
    for seed in range(first, first + 50):
        graph = deep_network(seed)
        rng = random.Random(seed)
        x = np.concatenate([codes(graph, 1, 3 * seed + each) for each in range(3)])
        expected = graph.run(x)
        assert len(np.unique(expected)) > 1
        for schedule in schedules(graph, rng, 4):
            try:
                tiling = tile(graph, schedule, streams_input=rng.random() < 0.5)
            except ConfigError as error:
                assert "padding alone" in str(error)  # noqa: PT017
                seen["padding alone"] += 1
                continue
            assert same(tiling.graph.run(x), expected), f"seed {seed}: {schedule}"
            assert tiling.halo_macs <= 0 or isinstance(schedule, Patches)
            seen["graphs"] += 1
            seen["residuals"] += any(type(op).__name__ == "Add" and "@" in op.name for op in tiling.graph.ops)
        try:
            made = plan(graph, schedule=schedules(graph, rng, 1)[0], input=rng.choice(["resident", "stream"]))
        except ConfigError:
            continue
        assert same(made.run(x[:1]), expected[:1]), f"seed {seed}: {made.tiling.schedule}"
        seen["plans"] += 1
    assert seen["graphs"] >= 180
    assert seen["residuals"] >= 40
    assert seen["plans"] >= 45
    assert seen["padding alone"] <= 15


def test_tiles_of_networks_with_branches_and_several_outputs_give_the_bytes_of_the_whole() -> None:
    tiled = 0
    for seed in range(120):
        graph = random_network(seed)
        x = codes(graph, 2, seed)
        for split in splits(graph)[:3]:
            for schedule in (Rows(split, 1), Patches(split, (min(2, graph.tensors[split].shape[0]), 1))):
                try:
                    tiling = tile(graph, schedule)
                except ConfigError as error:
                    assert "padding alone" in str(error)  # noqa: PT017
                    continue
                assert same(tiling.graph.run(x), graph.run(x)), f"seed {seed}: {schedule}"
                tiled += 1
    assert tiled >= 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part"), [("vww_96_int8", 0), ("vww_96_int8", 1), ("pretrainedResnet_quant", 0), ("kws_ref_model", 0)]
)
def test_every_legal_plan_of_the_published_models_gives_the_bytes_of_the_whole(name: str, part: int) -> None:
    graph = load_tflite(shared_model(name))
    x = np.concatenate([codes(graph, 1, seed) for seed in range(3)])
    expected = graph.activations(x)
    tried = 0
    for split in splits(graph)[part :: 2 if name.startswith("vww") else 1]:
        height, width, _ = graph.tensors[split].shape
        ways: list[Schedule] = [Patches(split, grid) for grid in GRIDS if grid[0] <= height and grid[1] <= width]
        ways += [Rows(split, rows) for rows in (1, 2, 3) if rows <= height]
        stage = _up_to(graph, split)
        for schedule in ways:
            tiling = tile(stage, schedule)
            assert np.array_equal(tiling.graph.run(x), expected[split]), f"{schedule}"
            tried += 1
    assert tried >= 40


def _up_to(graph: QuantizedGraph, split: str) -> QuantizedGraph:
    """The network as far as its split: what follows reads nothing else."""
    last = next(index for index, op in enumerate(graph.ops) if op.name == split)
    ops = graph.ops[: last + 1]
    names = {graph.input, *(op.name for op in ops)}
    return replace(graph, outputs=(split,), ops=ops, tensors={name: graph.tensors[name] for name in names})


# What is computed twice


def test_halos_of_mobilenet_are_the_published_ones() -> None:
    graph = mobilenet_v2()
    tiling = tile(graph, Patches("t12", (4, 4)), streams_input=True)
    sides = {size for box in tiling.image_boxes for size in box.size}
    assert sides == {62, 69, 75}  # 75 is the published patch; at the borders it is cut
    assert tiling.halo_macs / graph.macs == pytest.approx(0.093, abs=0.0005)
    first = tile(_up_to(graph, "t12"), Patches("t12", (4, 4)))
    assert first.halo_macs / first.whole.macs == pytest.approx(0.306, abs=0.0005)
    assert [box.size for box in tiling.output_boxes] == [(7, 7)] * 16


def test_a_cheap_look_says_what_the_graph_says() -> None:
    for seed in range(24):
        graph = deep_network(seed)
        for schedule in schedules(graph, random.Random(seed), 2):
            for streams in (seed % 2 == 0,):
                try:
                    tiling = tile(graph, schedule, streams_input=streams)
                except ConfigError:
                    continue
                seen = outlook(graph, schedule, streams_input=streams)
                made = plan(graph, schedule=schedule, input="stream" if streams else "resident")
                assert seen.halo_macs == tiling.halo_macs or isinstance(schedule, Rows)
                assert seen.least_bytes <= made.arena_bytes + made.scratch_bytes, f"seed {seed}: {schedule}"


def test_rows_compute_nothing_twice() -> None:
    for make in (vww, resnet8, ds_cnn):
        graph = make(seed=1)
        for split in splits(graph)[::4]:
            for streams in (False, True):
                tiling = tile(graph, Rows(split, 1), streams_input=streams)
                assert tiling.halo_macs == 0
                rows: dict[str, list[int]] = {}
                for op in tiling.graph.ops:
                    if isinstance(op, Conv2d) and "@" in op.name:
                        rows.setdefault(op.name.split("@")[0], []).append(tiling.graph.tensors[op.name].shape[0])
                assert all(sum(each) <= graph.tensors[name].shape[0] for name, each in rows.items())


@needs_cc
@pytest.mark.parametrize("schedule", [Patches("t7", (3, 2)), Rows("t7", 2)], ids=str)
def test_macs_are_what_instrumented_kernels_count(schedule: Schedule, tmp_path) -> None:
    made = plan(resnet8(seed=4), schedule=schedule, input="stream")
    made.emit_c(tmp_path / "firmware")
    main = tmp_path / "count.c"
    main.write_text(
        '#include <stdio.h>\n#include "model.h"\nextern uint64_t ll_macs;\n'
        "void ll_model_read(uint32_t top, uint32_t left, uint32_t rows, uint32_t columns, int8_t *to) {\n"
        "    for (uint32_t i = 0; i < rows * columns * LL_MODEL_INPUT_CHANNELS; i++) to[i] = (int8_t)(i + top + left);\n}\n"
        'int main(void) { ll_model_run(); printf("%llu", (unsigned long long)ll_macs); return 0; }\n'
    )
    sources = [str(path) for path in (tmp_path / "firmware").glob("*.c")]
    sources += [str(path) for path in (tmp_path / "firmware" / "nn").glob("*.c")]
    include = [f"-I{tmp_path / 'firmware'}", f"-I{tmp_path / 'firmware' / 'nn'}"]
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [
        compiler,
        "-std=gnu99",
        "-O1",
        "-DLL_COUNT_MACS",
        *include,
        *sources,
        str(main),
        "-o",
        str(tmp_path / "count"),
    ]
    subprocess.run(command, check=True)
    counted = int(subprocess.run([str(tmp_path / "count")], check=True, capture_output=True, text=True).stdout)
    assert counted == made.macs
    assert (made.halo_macs > 0) == isinstance(schedule, Patches)


# Memory


def test_mobilenet_takes_the_published_bytes_or_fewer() -> None:
    graph = mobilenet_v2()
    assert plan(graph).arena_bytes == 1_204_224
    patched = plan(graph, schedule=Patches("t12", (4, 4)), input="stream")
    assert patched.arena_bytes <= 176_400
    rows = plan(graph, schedule=Rows("t12", 1), input="stream")
    assert rows.arena_bytes <= 176_400
    assert rows.halo_macs == 0


@needs_gcc_qemu
@pytest.mark.slow
def test_a_narrow_mobilenet_runs_on_the_chip_in_a_sixth_of_the_memory(tmp_path) -> None:
    graph = mobilenet_v2(144, width=0.35, seed=2)
    x = codes(graph, 1)
    expected = graph.run(x)
    whole = plan(graph).emit_c(tmp_path / "whole").run(x, toolchain="gcc-qemu")
    split = next(
        name for name in splits(graph) if graph.tensors[name].shape[0] == 18 and graph.tensors[name].shape[2] == 16
    )
    for number, schedule in enumerate((Patches(split, (4, 4)), Rows(split, 1))):
        made = plan(graph, schedule=schedule, input="stream")
        receipt = made.emit_c(tmp_path / f"tiled{number}").run(x, toolchain="gcc-qemu")
        assert np.array_equal(receipt.output, expected)
        assert receipt.arena_bytes == made.arena_bytes
        assert 6 * (receipt.arena_bytes + receipt.scratch_bytes) <= whole.arena_bytes + whole.scratch_bytes
    assert np.array_equal(whole.output, expected)


@needs_gcc_qemu
@pytest.mark.parametrize(("schedule", "most_halo"), [("auto", 0.0), ("patches", 0.15)])
def test_visual_wake_words_link_into_32_kilobytes_and_give_the_same_bytes(
    schedule: str, most_halo: float, tmp_path
) -> None:
    graph = load_tflite(shared_model("vww_96_int8"))
    way = schedule if schedule == "auto" else Patches(splits(graph)[7], (3, 3))
    made = plan(graph, sram="32KB", input="stream", schedule=way)
    firmware = made.emit_c(tmp_path / "firmware")
    script = (tmp_path / "firmware" / "link" / "mps2-an386.ld").read_text()
    assert "32768" in script  # the linker itself holds it to the budget
    x = codes(graph, 2, seed=3)
    receipt = firmware.run(x, toolchain="gcc-qemu")
    assert np.array_equal(receipt.output, graph.run(x))
    assert receipt.sram_bytes <= 32_768
    assert receipt.flash_bytes <= 400 * 1024
    assert made.halo_macs / graph.macs <= most_halo
    assert receipt.stack_bytes <= made.stack_bytes


def test_a_search_never_takes_more_than_the_whole_network() -> None:
    saved = 0
    for seed in range(5):
        graph = deep_network(seed)
        whole = plan(graph, schedule="whole", input="stream")
        found = plan(graph, schedule="smallest", input="stream")
        assert found.sram_bytes <= whole.sram_bytes
        saved += found.sram_bytes < whole.sram_bytes
        limit = (found.sram_bytes + whole.sram_bytes) // 2
        within = plan(graph, sram=limit, input="stream")
        assert within.sram_bytes <= limit
        assert same(within.run(codes(graph, 1)), graph.run(codes(graph, 1)))
    assert saved >= 2


def test_auto_takes_the_whole_network_where_it_fits_and_rows_before_patches() -> None:
    graph = resnet8()
    assert plan(graph, sram="40KB").tiling is None
    assert plan(graph).tiling is None
    rows = plan(graph, sram="26KB", input="stream")
    assert isinstance(rows.tiling.schedule, Rows)
    assert rows.sram_bytes <= 26 * 1024
    tighter = plan(graph, sram=rows.sram_bytes - 1, input="stream")
    assert tighter.sram_bytes < rows.sram_bytes
    least = plan(graph, schedule="smallest", input="stream").sram_bytes
    assert least < 16 * 1024
    with pytest.raises(BudgetError, match=f"needs {least:,} bytes of SRAM at least, with .* try sram={least}"):
        plan(graph, sram=least - 1, input="stream")


# What cannot be


def test_what_cannot_be_cut_is_refused_with_what_can() -> None:
    graph = resnet8()
    assert splits(graph) == ("t0", "t3", "t7", "t11")  # not between a skip and its addition, nor after the pool
    with pytest.raises(ConfigError, match="cannot run tile by tile to 't1': .*; splits: t0, t3, t7, t11"):
        plan(graph, schedule=Rows("t1"))
    with pytest.raises(ConfigError, match="grid 17x1 on 't7', which is 16x16: must be 1 to 16 down"):
        plan(graph, schedule=Patches("t7", (17, 1)))
    with pytest.raises(ConfigError, match="0 rows at a time on 't7', which has 16: must be 1 to 16"):
        plan(graph, schedule=Rows("t7", 0))
    with pytest.raises(ConfigError, match="schedule='tiles'"):
        plan(graph, schedule="tiles")
    with pytest.raises(ConfigError, match="input='camera'"):
        plan(graph, input="camera")


def test_a_vector_cannot_be_streamed() -> None:
    net = Network("mlp", (8,))
    net.linear("x", 4)
    with pytest.raises(ConfigError, match="no image of rows and columns; take 'resident'"):
        plan(net.graph(), input="stream")


def test_a_map_that_a_gate_needs_as_a_whole_is_not_cut_before_it() -> None:
    net = Network("gated", (12, 12, 3), 0)
    first = net.conv("x", 8, 3)
    gated = net.mul(first, net.mean(first))
    net.conv(gated, 4, 3)
    assert splits(net.graph()) == (first,)


# Proofs


@pytest.mark.parametrize("schedule", [Patches("t7", (3, 3)), Rows("t7", 1)], ids=str)
def test_tiles_that_lie_wrongly_are_caught(schedule: Schedule) -> None:
    made = plan(resnet8(seed=5), schedule=schedule, input="stream")
    caught = changed = 0
    for name, first in list(made.offsets.items())[::7]:
        for shift in (1, -1):
            if first + shift >= 0 and first + shift + made.qgraph.tensors[name].bytes <= made.arena_bytes:
                lying = replace(made, offsets={**made.offsets, name: first + shift})
                changed += 1
                try:
                    lying.verify()
                except PackingError:
                    caught += 1
                else:  # what is not caught must be harmless
                    assert _gives_its_bytes(lying)
    assert caught > 0.7 * changed > 10


def _gives_its_bytes(made: Plan) -> bool:
    x = codes(made.qgraph, 1)
    return same(made.run(x), made.whole.run(x))


def test_rows_dropped_too_early_change_the_bytes() -> None:
    tiling = tile(vww(seed=3), Rows("t5", 1))
    ops = list(tiling.graph.ops)
    index, moved = next(
        (i, op) for i, op in enumerate(ops) if isinstance(op, Paste) and op.name.endswith("=") and op.top > 0 and i > 60
    )
    ops[index] = replace(moved, top=moved.top - 1)
    x = codes(tiling.whole, 1)
    assert not same(replace(tiling.graph, ops=tuple(ops)).run(x), tiling.whole.run(x))


def test_a_window_of_padding_alone_is_refused() -> None:
    net = Network("padded", (6, 6, 2), 0)
    x = net.pad(net.pad(net.conv("x", 4, 3)))
    graph = net.graph(x)
    with pytest.raises(ConfigError, match="padding alone"):
        tile(graph, Patches(x, graph.tensors[x].shape[:2]))


def test_pools_are_padded_only_where_the_map_ends() -> None:
    net = Network("pool", (9, 9, 2), 1)
    x = net.pool_same(net.conv("x", 4, 3), 3)
    graph = net.graph(x)
    tiling = tile(graph, Patches(x, (3, 1)))
    pools = [op.padding for op in tiling.graph.ops if isinstance(op, MaxPool2d)]
    assert pools == [(1, 1, 0, 1), (0, 1, 0, 1), (0, 1, 1, 1)]


def test_both_toolchains_stream_the_same_bytes(tmp_path) -> None:
    try:
        find_toolchain(find_board("mps2-an386"), "zig-unicorn")
    except Exception as error:
        pytest.skip(str(error))
    made = plan(ds_cnn(seed=2), schedule=Rows("t2", 2), input="stream")
    firmware = made.emit_c(tmp_path / "firmware")
    x = codes(made.whole, 2)
    receipt = firmware.run(x, toolchain="zig-unicorn")
    assert np.array_equal(receipt.output, made.whole.run(x))
