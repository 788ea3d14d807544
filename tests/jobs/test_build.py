"""The main job on real digits, small: every claim of its run is recomputed here from the files it left."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lilliput.data import load_images
from lilliput.design import InvertedResidualSpec, choose, members
from lilliput.errors import BudgetError, ConfigError, DataError, ToolchainError
from lilliput.evidence import Budget, Run
from lilliput.graph import trace
from lilliput.jobs.build import BuildConfig, build
from lilliput.jobs.deployment import deployed_cost
from lilliput.mcu import Firmware, find_toolchain
from lilliput.mcu.boards import find_board


def board() -> str:
    try:
        find_toolchain(find_board("mps2-an386"))
    except ToolchainError:
        pytest.skip("no cross compiler and emulator")
    return "mps2-an386"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[BuildConfig, Run]:
    """A run small enough for a test: few images, few epochs, a network of some thousand parameters."""
    out = tmp_path_factory.mktemp("runs") / "nested" / "digits"
    config = BuildConfig(
        out=str(out), macs="60K", sram="8KB", flash="48KB", limit=400, epochs=4, emulate=10, board=board(), quiet=True
    )
    return config, build(config)


def evidence(run: Run) -> dict:
    return json.loads((run.path / "evidence.json").read_text())


def test_the_run_holds_every_figure_with_its_value_unit_and_how(small):
    _, run = small
    figures = evidence(run)
    for name in ("accuracy.float", "accuracy.int8", "accuracy.emulated", "outputs.mismatching_bytes", "sram.arena", "sram.total",
                 "flash.total", "instructions.per_inference", "cost.macs", "cost.params"):  # fmt: skip
        assert {"value", "unit", "how"} <= set(figures[name]), name
    for name in ("accuracy.float", "accuracy.int8", "accuracy.emulated", "instructions.per_inference"):
        assert figures[name]["n"] > 0
    assert figures["outputs.mismatching_bytes"]["value"] == 0
    assert figures["accuracy.emulated"]["how"] == figures["instructions.per_inference"]["how"] == "emulated"


def test_the_budget_holds_as_linked(small):
    config, run = small
    figures = evidence(run)
    assert figures["sram.total"]["value"] <= Budget.parse(config.sram)
    assert figures["flash.total"]["value"] <= Budget.parse(config.flash)
    assert figures["cost.macs"]["value"] <= Budget.parse_count(config.macs)
    parts = figures["sram.static"]["value"] + figures["sram.stack"]["value"]
    assert figures["sram.total"]["value"] == parts
    assert figures["sram.static"]["value"] >= figures["sram.arena"]["value"] + figures["sram.scratch"]["value"]


def test_float_accuracy_and_costs_can_be_recomputed_from_the_files(small):
    config, run = small
    figures = evidence(run)
    data = load_images("digits", image_size=16, limit=config.limit, seed=config.seed)
    spec = InvertedResidualSpec(**run.result("choose network")["spec"])
    model = spec.build()
    model.load_state_dict(load_file(run.path / "artifacts" / "model.safetensors"))
    model.eval()
    images, labels = data.test.tensors()
    with torch.no_grad():
        accuracy = int((model(images).argmax(1) == labels).sum()) / len(labels)
    assert figures["accuracy.float"]["value"] == pytest.approx(accuracy, abs=1e-9)
    assert figures["accuracy.float"]["n"] == len(labels)
    cost = trace(model, images[:1]).cost()
    assert (figures["cost.macs"]["value"], figures["cost.params"]["value"]) == (cost.macs, cost.params)


def test_the_firmware_it_left_runs_again_to_the_same_bytes(small):
    config, run = small
    firmware = Firmware(run.path / "artifacts" / "firmware")
    vectors = run.path / "artifacts" / "firmware" / "vectors"
    codes = np.frombuffer((vectors / "input.bin").read_bytes(), np.int8).reshape(-1, *firmware.input_shape)
    expected = (vectors / "expected.bin").read_bytes()
    assert len(codes) == 8
    assert firmware.run(codes, board="host").output.tobytes() == expected
    assert firmware.run(codes, board=config.board).output.tobytes() == expected


def test_the_report_shows_its_sections_and_needs_no_network(small):
    _, run = small
    page = (run.path / "report.html").read_text()
    assert [section.id for section in run.report.sections] == [
        "memory",
        "accuracy",
        "network",
        "layers",
        "images",
    ]
    for section in run.report.sections:
        assert f'id="{section.id}"' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert run.report.verdict.startswith("fits: ")
    assert not list(run.path.parent.glob("*.partial"))


def test_what_is_chosen_trained_and_calibrated_does_not_depend_on_the_test_images(small, tmp_path, monkeypatch):
    """With the test images replaced by noise, the same network, weights and C come out."""
    from lilliput.data import ImageSplit
    from lilliput.jobs import build as job

    config, run = small
    real = job._load

    def scrambled(options):
        data = real(options)
        noise = np.random.default_rng(0).integers(0, 256, data.test.images.shape, dtype=np.uint8)
        return replace(data, test=ImageSplit(noise, data.test.labels))

    monkeypatch.setattr(job, "_load", scrambled)
    other = build(replace(config, out=str(tmp_path / "run"), board="host"))
    for name in ("model.safetensors", "firmware/model.c", "firmware/weights.c"):
        assert (other.path / "artifacts" / name).read_bytes() == (run.path / "artifacts" / name).read_bytes(), name
    assert other.evidence["accuracy.int8"].value != run.evidence["accuracy.int8"].value


def test_a_sample_for_the_chip_is_drawn_from_all_classes(tmp_path):
    """Folders are read class by class; the first images would all be of the first class."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "pets" / str(label)).mkdir(parents=True)
        for index in range(60):
            pixels = generator.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / str(label) / f"{index}.png")
    options = {"macs": "30K", "epochs": 1, "quiet": True, "sram": "8KB", "flash": "48KB", "emulate": 12}
    run = build(BuildConfig(out=str(tmp_path / "run"), data=str(tmp_path / "pets"), board=board(), **options))
    vectors = run.path / "artifacts" / "firmware" / "vectors" / "input.bin"
    data = load_images(str(tmp_path / "pets"), seed=0)
    assert data.test.labels[:12].tolist() == [0] * 12  # what would have gone wrong
    codes = (data.test.images.astype(np.int16) - 128).astype(np.int8)
    of_image = {image.tobytes(): label for image, label in zip(codes, data.test.labels, strict=True)}
    chunks = np.frombuffer(vectors.read_bytes(), np.int8).reshape(-1, 256)
    assert {int(of_image[chunk.tobytes()]) for chunk in chunks} == {0, 1}
    assert run.evidence["accuracy.emulated"].detail == "a seeded sample of the 24 test images"


def test_resume_refuses_images_that_are_not_those_it_was_begun_with(tmp_path, monkeypatch):
    from lilliput.jobs import build as job

    np.savez(
        tmp_path / "data.npz", x=np.random.default_rng(0).integers(0, 256, (80, 16, 16), np.uint8), y=np.arange(80) % 2
    )
    options = {
        "data": str(tmp_path / "data.npz"),
        "macs": "30K",
        "epochs": 1,
        "quiet": True,
        "flash": "48KB",
        "board": "host",
    }
    config = BuildConfig(out=str(tmp_path / "run"), **options)
    monkeypatch.setattr(job, "_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(config)
    monkeypatch.undo()
    np.savez(
        tmp_path / "data.npz", x=np.random.default_rng(1).integers(0, 256, (80, 16, 16), np.uint8), y=np.arange(80) % 2
    )
    with pytest.raises(ConfigError, match="not those it was begun with"):
        build(replace(config, resume=True))


def test_after_a_users_error_the_corrected_command_finds_the_name_free(tmp_path):
    config = BuildConfig(out=str(tmp_path / "run"), data="digitz", quiet=True, board="host", flash="48KB")
    with pytest.raises(DataError):
        build(config)
    assert list(tmp_path.iterdir()) == []
    run = build(replace(config, data="digits", limit=300, epochs=1, macs="30K"))
    assert run.path == tmp_path / "run"


def test_without_a_chip_the_report_says_so(tmp_path):
    config = BuildConfig(
        out=str(tmp_path / "run"), macs="30K", limit=300, epochs=1, board="host", quiet=True, sram="8KB", flash="48KB"
    )
    run = build(config)
    assert "accuracy.emulated" not in run.evidence
    assert run.evidence["outputs.mismatching_bytes"].value == 0
    assert "this computer only" in run.report.verdict


def test_another_chooser_can_take_the_seat(tmp_path):
    seen = []

    def smallest(data, budget):
        seen.append((data.input_shape, budget))
        family = [spec for spec in members(16, 1, 10) if spec.width == 4 and spec.stages == 2 and spec.blocks == 1]
        return choose(family, data.input_shape, budget, deployed_cost)

    config = BuildConfig(out=str(tmp_path / "run"), limit=300, epochs=1, board="host", quiet=True, flash="48KB")
    run = build(config, chooser=smallest)
    assert seen == [((1, 16, 16), config.budget())]
    assert run.result("choose network")["spec"]["width"] == 4


# Bad input


def test_a_budget_too_small_names_the_smallest_that_would_do(tmp_path):
    config = BuildConfig(out=str(tmp_path / "run"), sram="1KB", flash="4KB", limit=300, quiet=True, board="host")
    with pytest.raises(
        BudgetError, match=r"smallest that would do, IR-.* bytes of SRAM, 1,024 allowed; try .*--sram \d+"
    ):
        build(config)
    assert not (tmp_path / "run").exists()


def test_unknown_data_is_refused_before_anything_is_written_as_whole(tmp_path):
    with pytest.raises(DataError, match="unknown data 'digitz'.*did you mean 'digits'"):
        build(BuildConfig(out=str(tmp_path / "run"), data="digitz", quiet=True, board="host"))
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_named(tmp_path):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.full((20, 20, 3), index * 7 + len(name), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index}.png")
    broken = tmp_path / "pets" / "dog" / "7.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"dog/7\.png"):
        build(
            BuildConfig(out=str(tmp_path / "run"), data=str(tmp_path / "pets"), image_size=16, quiet=True, board="host")
        )


def test_a_missing_toolchain_is_said_at_once_with_the_lines_that_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr("lilliput.mcu.toolchain.find_tool", lambda name: None)
    with pytest.raises(ToolchainError, match=r"apt-get install.*pip install 'lilliput\[mcu\]'"):
        build(BuildConfig(out=str(tmp_path / "run"), quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_an_output_directory_that_exists_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        build(BuildConfig(out=str(tmp_path / "run"), quiet=True, board="host"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sram": "16 potatoes"}, "'16 potatoes'.*KB"),
        ({"macs": "x"}, "count 'x'"),
        ({"epochs": 0}, "epochs=0: must be 1 or more"),
        ({"image_size": 4}, "image_size=4: must be 8 to 256"),
        ({"out": ""}, "must name a directory"),
        ({"seed": 2**70}, "must be below"),
    ],
)
def test_options_out_of_range_are_refused_with_what_is_allowed(options, words):
    with pytest.raises(ConfigError, match=words):
        BuildConfig(**{"out": "x", **options})
