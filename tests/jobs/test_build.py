"""The main job on real digits, small: every claim of its run is recomputed here from the files it left."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lilliput.data import load_images
from lilliput.design import Design, SearchSpace, score, solve
from lilliput.errors import BudgetError, ConfigError, DataError, ToolchainError
from lilliput.evidence import Budget, Run
from lilliput.graph import trace
from lilliput.jobs.build import BuildConfig, build
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
        out=str(out),
        macs="60K",
        sram="8KB",
        flash="48KB",
        limit=400,
        epochs=16,
        emulate=10,
        certify=2,
        board=board(),
        quiet=True,
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
    model = Design.from_json(run.result("choose network")["design"]).build()
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
        "certified",
        "design",
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


def test_the_layers_instructions_sum_to_those_of_an_inference(small):
    _, run = small
    (layers,) = (section for section in run.report.sections if section.id == "layers")
    (table,) = layers.blocks
    column = table.columns.index("instructions")
    counts = [row[column] for row in table.rows if row[column] is not None]
    assert len(counts) > 3
    assert sum(counts) == pytest.approx(run.evidence["instructions.per_inference"].value, abs=64 + 16 * len(counts))


def test_what_is_chosen_trained_and_calibrated_does_not_depend_on_the_test_images(small, tmp_path, monkeypatch):
    """With the test images replaced by noise, the same network, weights and C come out."""
    from lilliput.data import ImageSplit
    from lilliput.jobs import build as job

    config, run = small
    real = job.load_data

    def scrambled(options, image_size):
        data = real(options, image_size)
        noise = np.random.default_rng(0).integers(0, 256, data.test.images.shape, dtype=np.uint8)
        return replace(data, test=ImageSplit(noise, data.test.labels))

    monkeypatch.setattr(job, "load_data", scrambled)
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
    options = {"macs": "30K", "epochs": 1, "certify": 0, "quiet": True, "sram": "8KB", "flash": "48KB", "emulate": 12}
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
        "certify": 0,
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
    run = build(replace(config, data="digits", limit=300, epochs=1, certify=0, macs="30K"))
    assert run.path == tmp_path / "run"


def test_without_a_chip_the_report_says_so(tmp_path):
    config = BuildConfig(
        out=str(tmp_path / "run"),
        macs="30K",
        limit=300,
        epochs=1,
        certify=0,
        board="host",
        quiet=True,
        sram="8KB",
        flash="48KB",
    )
    run = build(config)
    assert "accuracy.emulated" not in run.evidence
    assert run.evidence["outputs.mismatching_bytes"].value == 0
    assert "this computer only" in run.report.verdict


def small_design(out_max: int = 24) -> Design:
    space = SearchSpace.inverted_residual(
        16, (1, 2, 2), (3,), 8, stem_min=8, stem_max=8, out_max=out_max, layers_max=2, channels=1, num_classes=10
    )
    return solve(space, Budget(macs=1_000_000, sram_bytes=7_000), rho=2, patches=None, time_limit=0.2)


def test_another_chooser_can_take_the_seat(tmp_path):
    seen = []

    def smallest(data, budget):
        seen.append((data.input_shape, budget))
        return small_design()

    config = BuildConfig(
        out=str(tmp_path / "run"), limit=300, epochs=1, certify=0, board="host", quiet=True, flash="48KB"
    )
    run = build(config, chooser=smallest)
    assert seen == [((1, 16, 16), config.budget())]
    assert Design.from_json(run.result("choose network")["design"]).structure.stem == 8


def test_what_a_chooser_gives_must_fit(tmp_path):
    config = BuildConfig(
        out=str(tmp_path / "run"), limit=300, epochs=1, certify=0, board="host", quiet=True, flash="24KB", sram="64KB"
    )
    with pytest.raises(BudgetError, match=r"the chooser's K1DWK1-.* does not fit: flash_bytes [\d,]+, 24,576 allowed"):
        build(config, chooser=lambda data, budget: small_design(out_max=96))


def test_the_design_is_the_solvers_keeps_its_limits_and_is_shown(small):
    config, run = small
    design = Design.from_json(run.result("choose network")["design"])
    assert score(design.structure, design.space.image_size).rho <= design.problem.rho
    assert config.rho is None
    *refused, chosen = run.result("choose network")["candidates"]
    assert chosen["label"].endswith(f"rho {design.problem.rho:g}")  # the least that fits
    assert all("no network of the space fits" in each["result"] for each in refused)
    assert design.cost().macs == evidence(run)["cost.macs"]["value"] <= 60_000
    page = (run.path / "report.html").read_text()
    assert str(design.structure) in page
    assert "Widths and depths" in page
    planned = run.result("choose network")["planned"]
    assert planned["sram_bytes"] <= Budget.parse(config.sram)
    assert planned["flash_bytes"] <= Budget.parse(config.flash)


def test_the_design_may_choose_a_smaller_input(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (120, 32, 32), np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=np.arange(120) % 2)
    run = build(
        BuildConfig(
            out=str(tmp_path / "run"), data=str(tmp_path / "data.npz"), macs="120K", sram="16KB", flash="48KB",
            resolution="auto", epochs=1, certify=0, board="host", quiet=True,
        )
    )  # fmt: skip
    chosen = run.result("choose network")
    tried = {each["label"].split(",")[0]: each.get("objective") for each in chosen["candidates"]}
    assert {"32x32", "24x24", "16x16"} <= set(tried)
    best = max((value, size) for size, value in tried.items() if value is not None)[1]
    assert best == f"{chosen['image_size']}x{chosen['image_size']}"
    firmware = Firmware(run.path / "artifacts" / "firmware")
    assert firmware.input_shape == (chosen["image_size"], chosen["image_size"], 1)


# Bad input


def test_a_budget_too_small_says_what_binds_and_names_one_that_would_do(tmp_path):
    options = {"limit": 300, "quiet": True, "board": "host", "epochs": 1, "certify": 0}
    config = BuildConfig(out=str(tmp_path / "run"), sram="1800", flash="24KB", macs="10K", **options)
    with pytest.raises(BudgetError, match=r"binding (is|are) .*; try .*, or a smaller image size") as caught:
        build(config)
    assert not (tmp_path / "run").exists()
    flags = dict(re.findall(r"--(sram|flash|macs) (\d+)", str(caught.value)))
    assert flags
    run = build(replace(config, **flags))
    assert run.evidence["outputs.mismatching_bytes"].value == 0


@pytest.mark.slow
def test_where_nothing_fits_whole_the_first_layers_run_in_tiles(tmp_path):
    config = BuildConfig(out=str(tmp_path / "run"), image_size=64, sram="12KB", flash="128KB", macs="2M", rho=0.5, limit=200, epochs=1,
                         certify=0, emulate=2, board=board(), quiet=True)  # fmt: skip
    run = build(config)
    figures = evidence(run)
    assert figures["sram.total"]["value"] <= 12 * 1024
    assert figures["outputs.mismatching_bytes"]["value"] == 0
    design = Design.from_json((run.path / "artifacts" / "design.json").read_text())
    assert design.patches is not None
    report = (run.path / "report.html").read_text()
    assert "without and with tiles" in report
    assert "in patches" in report  # what was tried


def test_a_budget_that_code_and_stack_alone_exceed_says_so(tmp_path):
    config = BuildConfig(out=str(tmp_path / "run"), sram="1KB", flash="48KB", limit=300, quiet=True, board="host")
    with pytest.raises(BudgetError, match=r"--sram 1KB is 1,024 bytes, of which code, stack and variables take 1,280"):
        build(config)


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
        ({"rho": 0.0}, "rho=0.0: must be above 0; try rho=0.5"),
    ],
)
def test_options_out_of_range_are_refused_with_what_is_allowed(options, words):
    with pytest.raises(ConfigError, match=words):
        BuildConfig(**{"out": "x", **options})
