"""From an int8 network to firmware: a tiny one made here, and the published ones where they are at hand."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.design import SearchSpace, solve
from lilliput.errors import BudgetError, ConfigError, DataError, ToolchainError, UnsupportedOpError
from lilliput.evidence import Budget, Run
from lilliput.jobs.build import BuildConfig, build
from lilliput.jobs.deploy import DeployConfig, deploy
from lilliput.mcu import Firmware, find_toolchain, load_tflite
from lilliput.mcu.boards import find_board
from lilliput.quantize import QuantizedGraph, quantize_int8
from quantize.tflite_runtimes import shared_model


def board() -> str:
    try:
        find_toolchain(find_board("mps2-an386"))
    except ToolchainError:
        pytest.skip("no cross compiler and emulator")
    return "mps2-an386"


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups), nn.ReLU6()]


def network() -> QuantizedGraph:
    """24x24 colour to 4 classes; 4,512 bytes of SRAM whole, stack set aside included, 2,303 at least by tiles of a streamed image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [*conv(3, 8, 3, 2), *conv(8, 8, 3, 1, 8), *conv(8, 16, 1), *conv(16, 16, 3, 2, 16), *conv(16, 16, 1)]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
        return quantize_int8(model, torch.rand(8, 3, 24, 24))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return network().save_tflite(tmp_path_factory.mktemp("models") / "small.tflite")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)


def config(model: Path, out: Path, **options) -> DeployConfig:
    return DeployConfig(**{"model": str(model), "out": str(out), "board": "host", "quiet": True, **options})


def figures(run: Run) -> dict:
    return {
        name: each["value"]
        for name, each in json.loads((run.path / "evidence.json").read_text()).items()
        if name[0] != "$"
    }


def layer_rows(run: Run) -> list[dict]:
    (section,) = (section for section in run.report.sections if section.id == "layers")
    (table,) = section.blocks
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


# The published network


@pytest.fixture(scope="module")
def vww(tmp_path_factory) -> Run:
    """Visual wake words in half the memory that it takes whole, its image never in memory."""
    out = tmp_path_factory.mktemp("runs") / "nested" / "vww"
    options = {"sram": "32KB", "flash": "1MB", "input": "stream", "board": board(), "inputs": 2}
    return deploy(config(shared_model("vww_96_int8"), out, **options))


def test_visual_wake_words_runs_in_32_kb_to_the_same_bytes(vww):
    found = figures(vww)
    assert found["outputs.mismatching_bytes"] == 0
    assert vww.evidence["outputs.mismatching_bytes"].n == 2 * 2 * 2  # inputs, classes, both machines
    assert found["sram.total"] <= 32_768 < found["sram.whole"]
    assert found["sram.input"] == 0
    assert found["sram.total"] == found["sram.static"] + found["sram.stack"]
    assert found["sram.static"] >= found["sram.arena"] + found["sram.scratch"]
    assert found["cost.macs"] == load_tflite(shared_model("vww_96_int8")).macs == 7_489_664
    assert found["macs.total"] == found["cost.macs"] + found["macs.halo"]
    assert vww.report.holds
    assert vww.report.verdict.startswith("fits: ")
    for name, how in {"sram.total": "emulated", "sram.whole": "counted", "macs.halo": "counted"}.items():
        assert vww.evidence[name].how == how


def test_the_layers_of_the_report_add_up_to_the_firmware(vww):
    rows, found = layer_rows(vww), figures(vww)
    graph = load_tflite(shared_model("vww_96_int8"))
    assert [row["tensor"] for row in rows[1:]] == ["/".join(op.name.split("/")[-2:]) for op in graph.ops]
    assert rows[0]["operation"] == "Read"
    assert sum(row["MACs"] for row in rows) == found["macs.total"]
    assert sum(row["halo MACs"] for row in rows) == found["macs.halo"]
    assert [row["MACs"] - row["halo MACs"] for row in rows[1:]] == [graph.op_macs.get(op.name, 0) for op in graph.ops]
    total = sum(row["instructions"] or 0 for row in rows)
    assert total == pytest.approx(
        found["instructions.per_inference"], rel=0.002
    )  # each step is good to 16 instructions
    assert max(row["bytes alive, most"] for row in rows) <= found["sram.arena"]


def test_the_report_is_small_and_needs_no_network(vww):
    page = (vww.path / "report.html").read_text()
    assert [section.id for section in vww.report.sections] == ["memory", "tiles", "layers", "outputs"]
    for words in ("SRAM without tiles", "Memory over time, without and with tiles", "never holds all of it"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert max(path.stat().st_size for path in (vww.path / "figures").iterdir()) < 60_000
    assert [path.name for path in vww.path.parent.iterdir()] == ["vww"]


def test_the_firmware_it_left_runs_again_to_the_same_bytes(vww):
    vectors = vww.path / "artifacts" / "firmware" / "vectors"
    firmware = Firmware(vww.path / "artifacts" / "firmware")
    codes = np.frombuffer((vectors / "input.bin").read_bytes(), np.int8).reshape(-1, 96, 96, 3)
    assert firmware.run(codes, board="host").output.tobytes() == (vectors / "expected.bin").read_bytes()


# A tiny network: schedules and budgets


def test_halos_are_counted_for_the_firmware_and_not_for_the_network(model, tmp_path):
    run = deploy(config(model, tmp_path / "run", input="stream", schedule="smallest"))
    found, graph = figures(run), load_tflite(model)
    assert found["cost.macs"] == graph.macs
    assert found["macs.halo"] > 0
    assert found["macs.total"] == graph.macs + found["macs.halo"]
    assert found["outputs.mismatching_bytes"] == 0
    rows = {row["tensor"]: row for row in layer_rows(run)}
    tiles = rows["relu6_3"]["tiles"]
    assert f"put together from {tiles} tiles" in rows["relu6_3"]["decisions"]
    assert rows["relu6_4"]["tiles"] == 1
    # worked by hand: a 6x6 map in g by g tiles, made by a 3x3 window of stride 2 from 12x12; a tile reads 2 * 6 / g + 1 rows and columns
    # of the map before it, one less at the top and at the left, where the first window is padded
    grid = round(tiles**0.5)
    assert grid**2 == tiles > 1
    side = 12 + grid - 1
    assert rows["relu6_2"]["MACs"] == side * side * 8 * 16
    assert rows["relu6_2"]["halo MACs"] == (side * side - 12 * 12) * 8 * 16


@pytest.mark.parametrize(
    ("options", "has_tiles"),
    [
        ({"sram": "64KB"}, False),
        ({"sram": "3KB", "input": "stream"}, True),
        ({"sram": "64KB", "input": "stream", "schedule": "smallest"}, True),
        ({"sram": "64KB", "input": "stream", "schedule": "whole"}, False),
    ],
)
def test_tiles_are_drawn_where_there_are_any(model, tmp_path, options, has_tiles):
    run = deploy(config(model, tmp_path / "run", **options))
    found = figures(run)
    assert found["outputs.mismatching_bytes"] == 0
    assert found["sram.input"] == (0 if options.get("input") == "stream" else 24 * 24 * 3)
    assert ("tiles" in [section.id for section in run.report.sections]) == has_tiles
    assert (found["sram.planned"] < found["sram.whole"]) == has_tiles
    assert (run.path / "figures" / "tiles.svg").exists() == has_tiles


def test_a_budget_that_cannot_be_leaves_nothing_and_the_one_it_names_links(model, tmp_path):
    options = {"input": "stream", "board": board(), "inputs": 1}
    with pytest.raises(BudgetError, match=r"needs [\d,]+ bytes of SRAM at least, with .*; try sram=\d+") as caught:
        deploy(config(model, tmp_path / "run", sram="2KB", **options))
    assert list(tmp_path.iterdir()) == []
    least = re.search(r"sram=(\d+)", str(caught.value))[1]
    run = deploy(config(model, tmp_path / "run", sram=least, **options))
    assert figures(run)["sram.total"] <= int(least)


def test_flash_that_the_linker_refuses_leaves_the_name_free(model, tmp_path):
    with pytest.raises(BudgetError, match=r"flash is [\d,]+ bytes short"):
        deploy(config(model, tmp_path / "run", flash="4KB", board=board()))
    assert list(tmp_path.iterdir()) == []


def test_without_a_chip_the_report_says_so(model, tmp_path):
    run = deploy(config(model, tmp_path / "run"))
    assert "this computer only" in run.report.verdict
    assert run.report.holds
    assert "sram.total" not in run.evidence
    assert "No chip was emulated" in (run.path / "report.html").read_text()


def test_a_byte_that_differs_is_told(model, tmp_path, monkeypatch):
    honest = Firmware.run

    def lying(self, x, *arguments, **options):
        receipt = honest(self, x, *arguments, **options)
        output = receipt.output.copy()
        output[0, 0] ^= 1
        return replace(receipt, output=output)

    monkeypatch.setattr(Firmware, "run", lying)
    run = deploy(config(model, tmp_path / "run", board=board()))
    assert figures(run)["outputs.mismatching_bytes"] == 2  # one natively, one on the chip
    assert run.report.holds is False
    assert "2 output bytes differ" in run.report.verdict


# What is run


def vectors_of(run: Run) -> bytes:
    return (run.path / "artifacts" / "firmware" / "vectors" / "input.bin").read_bytes()


def test_codes_pixels_and_floats_of_one_image_are_one_input(model, images, tmp_path):
    source = load_tflite(model).tensors["x"]
    codes = (images.astype(np.int16) - 128).astype(np.int8)
    given = {"codes": codes, "pixels": images, "floats": source.dequantize(codes), "one": images[:1]}
    runs = {}
    for name, values in given.items():
        np.save(tmp_path / f"{name}.npy", values[0] if name == "one" else values)
        runs[name] = deploy(config(model, tmp_path / name, verify=str(tmp_path / f"{name}.npy")))
    order = np.random.default_rng(0).permutation(6)  # the seeded sample
    assert (
        vectors_of(runs["codes"]) == vectors_of(runs["pixels"]) == vectors_of(runs["floats"]) == codes[order].tobytes()
    )
    assert vectors_of(runs["one"]) == codes[:1].tobytes()


def test_labels_give_the_accuracy_that_they_say(model, images, tmp_path):
    np.save(tmp_path / "x.npy", images)
    codes = (images.astype(np.int16) - 128).astype(np.int8)
    labels = load_tflite(model).run(codes).argmax(1)
    emulated = np.random.default_rng(1).permutation(6)[:4]
    wrong = emulated.max()  # not among the first four, which a sample is not
    assert wrong >= 4
    labels[wrong] = (labels[wrong] + 1) % 4
    np.save(tmp_path / "y.npy", labels)
    given = {
        "verify": str(tmp_path / "x.npy"),
        "labels": str(tmp_path / "y.npy"),
        "board": board(),
        "emulate": 4,
        "seed": 1,
    }
    run = deploy(config(model, tmp_path / "run", **given))
    found = figures(run)
    assert found["accuracy.int8"] == found["accuracy.host"] == pytest.approx(5 / 6)
    assert found["accuracy.emulated"] == 0.75
    assert run.evidence["accuracy.emulated"].n == 4
    assert run.evidence["accuracy.emulated"].how == "emulated"
    assert "seeded sample" in (run.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            np.zeros((2, 24, 24, 1), np.int8),
            r"int8\[2, 24, 24, 1\] does not suit 'small'; must be \(n, 24, 24, 3\), channels last",
        ),
        (np.zeros((2, 3, 24, 24), np.float32), r"must be \(n, 24, 24, 3\), channels last"),
        (np.zeros((0, 24, 24, 3), np.int8), r"does not suit"),
        (np.zeros((1, 24, 24, 3), np.int32), r"int32.*must be int8 codes, uint8 pixels or floats \(n, 24, 24, 3\)"),
        (np.full((1, 24, 24, 3), np.nan, np.float32), r"has NaN or infinite values"),
        (b"not an array", r"is no \.npy file of numbers"),
        (None, r"x\.npy: cannot be read \(No such file or directory\); give a \.npy file"),
    ],
)
def test_inputs_that_do_not_suit_are_refused_with_what_would(model, tmp_path, values, words):
    path = tmp_path / "x.npy"
    if isinstance(values, bytes):
        path.write_bytes(values)
    elif values is not None:
        np.save(path, values)
    with pytest.raises(DataError, match=words):
        deploy(config(model, tmp_path / "run", verify=str(path)))
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(
    "labels", [np.zeros(5, int), np.full(6, 4), np.full(6, -1), np.zeros(6), np.zeros((6, 1), int)]
)
def test_labels_that_do_not_suit_are_refused(model, images, tmp_path, labels):
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    with pytest.raises(DataError, match="must be 6 whole numbers from 0 to 3, one for each input"):
        deploy(config(model, tmp_path / "run", verify=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy")))


# What is deployed


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Run:
    options = {"limit": 300, "epochs": 1, "certify": 0, "board": "host", "sram": "16KB", "flash": "64KB"}
    space = SearchSpace.inverted_residual(
        16, (1, 2, 2), (3,), 8, stem_min=8, stem_max=8, out_max=24, layers_max=2, channels=1, num_classes=10
    )
    design = solve(space, Budget(macs=1_000_000, sram_bytes=9_000), rho=2, patches=None, time_limit=0.2)
    out = tmp_path_factory.mktemp("runs") / "digits"
    return build(BuildConfig(out=str(out), quiet=True, **options), chooser=lambda data, budget: design)


def test_what_a_build_left_is_deployed_to_the_bytes_that_the_build_saw(built, tmp_path):
    run = deploy(config(built.path, tmp_path / "run"))
    assert run.report.title == "digits on this computer"
    vectors = built.path / "artifacts" / "firmware" / "vectors"
    firmware = Firmware(run.path / "artifacts" / "firmware")
    codes = np.frombuffer((vectors / "input.bin").read_bytes(), np.int8).reshape(-1, *firmware.input_shape)
    assert firmware.run(codes, board="host").output.tobytes() == (vectors / "expected.bin").read_bytes()
    again = deploy(config(run.path, tmp_path / "again"))  # and a deploy leaves what can be deployed
    assert again.evidence["cost.macs"] == run.evidence["cost.macs"]


def test_a_run_that_keeps_no_model_is_refused(built, tmp_path):
    import shutil

    old = shutil.copytree(built.path, tmp_path / "old")
    (old / "artifacts" / "model.tflite").unlink()
    with pytest.raises(DataError, match=r"keeps no artifacts/model\.tflite: .*build it again, or give a \.tflite file"):
        deploy(config(old, tmp_path / "run"))
    with Run.create(tmp_path / "design", job="design"):
        pass
    with pytest.raises(DataError, match="is a run of 'design', which makes no int8 model"):
        deploy(config(tmp_path / "design", tmp_path / "run"))


def test_what_is_no_model_is_refused(tmp_path, model):
    with pytest.raises(DataError, match=r"nowhere\.tflite: there is no such file or run"):
        deploy(config(tmp_path / "nowhere.tflite", tmp_path / "run"))
    (tmp_path / "text.tflite").write_text("a network, honestly")
    with pytest.raises(DataError, match=r"text\.tflite"):
        deploy(config(tmp_path / "text.tflite", tmp_path / "run"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"run\.json"):
        deploy(config(tmp_path / "folder", tmp_path / "run"))
    assert not list(tmp_path.glob("run*"))


def test_only_an_image_can_be_streamed(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vector = quantize_int8(nn.Sequential(nn.Linear(8, 4)).eval(), torch.rand(8, 8))
    path = vector.save_tflite(tmp_path / "vector.tflite")
    with pytest.raises(ConfigError, match="input='stream': the input of 'vector' is 8, no image of rows and columns"):
        deploy(config(path, tmp_path / "run", input="stream"))
    np.save(tmp_path / "x.npy", np.zeros((1, 8), np.uint8))
    with pytest.raises(DataError, match="uint8 is for pixels of images"):
        deploy(config(path, tmp_path / "run", verify=str(tmp_path / "x.npy")))
    assert figures(deploy(config(path, tmp_path / "run")))["outputs.mismatching_bytes"] == 0


def test_two_outputs_are_refused(model, tmp_path, monkeypatch):
    graph = load_tflite(model)
    two = replace(graph, outputs=(graph.ops[-1].name, graph.ops[0].name))
    monkeypatch.setattr("lilliput.mcu.load_tflite", lambda path: two)
    with pytest.raises(UnsupportedOpError, match="has 2 outputs; firmware is made of networks with one"):
        deploy(config(model, tmp_path / "run"))


def test_an_interrupted_run_goes_on_with_the_same_model_alone(model, tmp_path, monkeypatch):
    mine = tmp_path / "mine.tflite"
    mine.write_bytes(model.read_bytes())
    job = config(mine, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("lilliput.jobs.deploy._record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            deploy(job)
    assert [path.name for path in tmp_path.glob("run*")] == ["run.partial"]
    mine.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"mine\.tflite' has changed since it was begun"):
        deploy(replace(job, resume=True))
    mine.write_bytes(model.read_bytes())
    run = deploy(replace(job, resume=True))
    assert run.attempts == 3
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]
    assert figures(run)["outputs.mismatching_bytes"] == 0


def test_a_missing_toolchain_names_what_would_work(model, tmp_path, monkeypatch):
    from lilliput.mcu import toolchain

    find = toolchain.find_tool
    monkeypatch.setattr(toolchain, "find_tool", lambda name: find(name) if name in ("cc", "native") else None)
    with pytest.raises(
        ToolchainError, match=r"apt-get install.*; or run the same C on this computer alone, with --board host"
    ):
        deploy(config(model, tmp_path / "run", board="mps2-an386"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sram": "16 potatoes"}, "'16 potatoes'.*KB"),
        ({"inputs": 0}, "inputs=0: must be 1 or more"),
        ({"emulate": 0}, "emulate=0: must be 1 or more"),
        ({"out": ""}, "must name a directory"),
        ({"labels": "y.npy"}, r"labels='y\.npy' without inputs"),
    ],
)
def test_options_out_of_range_are_refused_with_what_is_allowed(options, words):
    with pytest.raises(ConfigError, match=words):
        DeployConfig(**{"model": "m.tflite", "out": "x", **options})
