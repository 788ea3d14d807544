"""Plans for people: hundreds of steps of tiles become one line for each operation of the whole network."""

import pytest

from lilliput.mcu import Plan, plan
from lilliput.mcu.listing import by_operation
from lilliput.mcu.tiling import Patches, Rows
from lilliput.quantize.qgraph import Crop, Paste
from mcu.networks import Network, resnet8, vww


def residual() -> Network:
    """12x12 to 6x6 with a skip: t0 3x3/2, t1 depthwise 3x3, t2 1x1, t3 the sum, then the classifier."""
    net = Network("residual", (12, 12, 3), seed=1)
    x = net.conv("x", 4, 3, 2)
    y = net.add(x, net.conv(net.depthwise(x), 4))
    net.linear(net.reshape(net.mean(y), 4), 2)
    return net


TILED = [
    (Patches("t3", (2, 3)), "resident"),
    (Patches("t3", (3, 3)), "stream"),
    (Rows("t3", 1), "stream"),
    (Rows("t3", 2), "resident"),
]


@pytest.fixture(params=TILED, ids=str)
def planned(request) -> Plan:
    schedule, image = request.param
    return plan(residual().graph(), schedule=schedule, input=image)


def test_a_tiled_plan_has_one_entry_for_each_operation_in_running_order(planned):
    rows = [row for row in by_operation(planned) if row.kind != "Read"]
    assert sorted(row.name for row in rows) == sorted(op.name for op in residual().graph().ops)
    assert [row.shape for row in rows] == [planned.whole.tensors[row.name].shape for row in rows]
    position = {row.name: index for index, row in enumerate(rows)}
    assert all(position[name] < position[op.name] for op in planned.whole.ops for name in op.inputs if name in position)


def test_entries_sum_to_the_plan_and_halos_are_what_a_layer_does_twice(planned):
    rows = by_operation(planned)
    assert sum(row.macs for row in rows) == planned.macs
    assert sum(row.halo_macs for row in rows) == planned.halo_macs
    once = residual().graph().op_macs
    assert {row.name: row.macs - row.halo_macs for row in rows if row.macs} == dict(once)
    assert max(row.live_bytes for row in rows) == max(step.live_bytes for step in planned.steps)


def test_the_halo_of_a_layer_is_the_one_worked_by_hand():
    # t3 is 6x6 and its 2x3 tiles are 3x2; t1 and t2 make just these, t0 one pixel more wherever the map goes on:
    # heights 4 + 4; widths 3 + 4 + 3
    rows = {row.name: row for row in by_operation(plan(residual().graph(), schedule=Patches("t3", (2, 3))))}
    assert rows["t0"].halo_macs == (8 * 10 - 36) * 4 * 27
    assert rows["t1"].halo_macs == rows["t2"].halo_macs == 0
    assert [rows[name].tiles for name in ("t0", "t1", "t2", "t4")] == [6, 6, 6, 1]


def test_instructions_of_tiles_are_summed_with_those_that_move_rows(planned):
    counts = {step.output: 1000.0 + index for index, step in enumerate(planned.steps) if not step.is_alias}
    rows = by_operation(planned, counts)
    assert sum(row.instructions or 0 for row in rows) == sum(counts.values())
    moved = [step.output for step in planned.steps if isinstance(step.op, (Crop, Paste)) and not step.is_alias]
    assert sum(row.moving_instructions for row in rows) == sum(counts[name] for name in moved)
    assert all(row.instructions is None for row in by_operation(planned))


def test_an_addition_that_another_layer_does_says_so(planned):
    rows = {row.name: row for row in by_operation(planned)}
    assert any(step.fused_add is not None for step in planned.steps)
    assert rows["t3"].tiles == 0
    assert rows["t3"].decisions[0] == "done by t2"
    assert "adds t0" in rows["t2"].decisions


def test_parts_of_a_streamed_image_are_counted_as_reads():
    for schedule in (Patches("t3", (3, 3)), Rows("t3", 1)):
        made = plan(residual().graph(), schedule=schedule, input="stream")
        reads = [step for step in made.steps if isinstance(step.op, Crop) and step.op.inputs == ("x",)]
        assert by_operation(made)[0].kind == "Read"
        assert by_operation(made)[0].tiles == len(reads)
    whole = plan(residual().graph(), schedule="whole", input="stream")
    assert [(row.kind, row.tiles) for row in by_operation(whole)][:2] == [("Read", 1), ("Conv2d", 1)]


def test_the_table_of_a_tiled_plan_is_short_and_states_tiles_halos_and_streaming():
    made = plan(vww(), schedule=Rows("t8", 1), input="stream", sram="64KB")
    lines = made.table().splitlines()
    operations = len(vww().ops)
    assert len(made.steps) > 5 * operations
    assert (
        len(lines) == 2 + 1 + operations + 1 + 7
    )  # titles and a rule, what is read, operations, an empty line, totals
    assert lines[0].split()[:4] == ["operation", "module", "output", "tiles"]
    assert lines[-7].startswith("tiles ")
    assert f"1 row at a time to 't8', in {len(made.steps):,} steps" in lines[-7]
    assert lines[-6].endswith("input 27,648 B streamed: never in memory as a whole)")
    assert lines[-3].endswith(" of 65,536 B")
    assert lines[-1].endswith("0 of them for halos of tiles")
    patches = plan(vww(), schedule=Patches("t8", (4, 4)))
    assert patches.table().splitlines()[-1].endswith(f"{patches.halo_macs:,} of them for halos of tiles")
    assert "input 27,648 B of it" in patches.table()


def test_the_table_of_a_tiled_plan_shows_instructions_beside_multiply_accumulates():
    made = plan(resnet8(), schedule=Patches("t3", (2, 2)))
    counts = {step.output: 100.0 for step in made.steps if not step.is_alias}
    head, _, *lines = made.table(counts).splitlines()
    assert "instructions  per MAC" in head
    row = next(line for line in lines if line.startswith("Conv2d t0 "))
    calls = sum(
        step.op.name.split("@")[0] == "t0" and not step.is_alias and step.output in counts for step in made.steps
    )
    assert f"{100 * calls:,}" in row.split()


def test_an_untiled_plan_keeps_a_line_a_step():
    made = plan(resnet8())
    assert len(made.table().splitlines()) == 2 + len(made.steps) + 1 + 6
    names = [row.name for row in by_operation(made)]
    assert names == [op.name for op in resnet8().ops]
