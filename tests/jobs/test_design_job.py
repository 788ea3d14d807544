"""The design job: what it finds, what it leaves, and what it refuses."""

import json

import pytest

from lilliput.design import Design, chip_cost, exact_cost
from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Run
from lilliput.jobs.design import DesignConfig, design

CHIP = {
    "macs": "2M",
    "flash": "40KB",
    "sram": "32KB",
    "rho": 0.6,
    "image_size": 32,
    "classes": 10,
    "jobs": 1,
    "quiet": True,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[DesignConfig, Run]:
    config = DesignConfig(out=str(tmp_path_factory.mktemp("runs") / "chip"), time_limit=0.3, **CHIP)
    return config, design(config)


def test_the_run_holds_the_design_and_its_figures(small):
    _, run = small
    found = Design.from_json((run.path / "artifacts" / "design.json").read_text())
    figures = json.loads((run.path / "evidence.json").read_text())
    cost, chip = exact_cost(found.structure, 32, 10), chip_cost(found.structure, 32, 10, found.patches)
    assert (figures["cost.macs"]["value"], figures["cost.params"]["value"]) == (cost.macs, cost.params)
    assert (figures["chip.sram"]["value"], figures["chip.flash"]["value"]) == (chip.sram_bytes, chip.flash_bytes)
    assert chip.macs <= 2_000_000
    assert chip.flash_bytes <= 40 * 1024
    assert chip.sram_bytes <= 32 * 1024
    assert figures["objective"]["value"] <= figures["relaxation"]["value"]
    assert found.build(10)


def test_the_report_shows_the_staircase_the_stages_the_budget_and_the_trade_offs(small):
    _, run = small
    assert [section.id for section in run.report.sections] == ["design", "trade-offs"]
    page = (run.path / "report.html").read_text()
    for words in (
        "Widths and depths",
        "Entropy by resolution stage",
        "Budget and use",
        "Objective against each budget",
    ):
        assert words in page
    names = {row[0] for block in run.report.sections[1].blocks if hasattr(block, "rows") for row in block.rows}
    assert names == {"multiply-accumulates", "flash", "SRAM", "effectiveness rho"}
    assert run.report.verdict.startswith("found: ")


def test_a_server_budget_takes_the_published_space_and_counter(tmp_path):
    config = DesignConfig(
        out=str(tmp_path / "r"), macs="300M", params="4M", image_size=224, time_limit=0.5, curves=False, quiet=True
    )
    run = design(config)
    found = Design.from_json((run.path / "artifacts" / "design.json").read_text())
    assert (found.space.block.name, found.space.counter) == ("K1KXK1", "reference")
    assert found.space.strides == (2, 2, 2, 2, 1, 2)
    assert found.score.macs <= 300_000_000
    assert found.score.params <= 4_000_000
    assert [section.id for section in run.report.sections] == ["design"]


def test_a_smaller_resolution_may_be_chosen(tmp_path):
    config = DesignConfig(
        out=str(tmp_path / "r"),
        resolution="auto",
        time_limit=0.2,
        curves=False,
        **{**CHIP, "image_size": 48, "macs": "1M"},
    )
    found = Design.from_json((design(config).path / "artifacts" / "design.json").read_text())
    assert found.space.image_size in (48, 36, 24)


def test_a_run_without_a_name_takes_the_next_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"time_limit": 0.1, "curves": False, **CHIP}
    assert [design(DesignConfig(**options)).path.name for _ in range(2)] == ["design", "design-2"]


def test_an_interrupted_job_goes_on_where_it_was(tmp_path, monkeypatch):
    from lilliput.jobs import design as job

    config = DesignConfig(out=str(tmp_path / "r"), time_limit=0.2, **CHIP)
    monkeypatch.setattr(job, "_curves", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        design(config)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["r.partial"]
    before = Run.create(tmp_path / "r", job="design", config=config, seed=0, resume=True)
    solved = before.result("solve")
    before._unlock()
    monkeypatch.setattr(job, "_best", lambda *_: pytest.fail("solved again"))
    run = design(DesignConfig(out=str(tmp_path / "r"), time_limit=0.2, resume=True, **CHIP))
    assert run.result("solve") == solved


# Bad input


def test_what_cannot_fit_leaves_nothing_behind(tmp_path):
    config = DesignConfig(out=str(tmp_path / "r"), **{**CHIP, "sram": "1KB"})
    with pytest.raises(BudgetError, match="no network of the space fits with .* patches .* binding is sram_bytes"):
        design(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no budget: give at least one of --macs, --params, --sram, --flash"),
        ({"macs": "2X"}, "count '2X'"),
        ({"macs": "2M", "image_size": 4}, "image_size=4: must be 8 or more"),
        ({"macs": "2M", "seed": -1}, "seed=-1: must be 0 or more"),
        ({"macs": "2M", "seed": 2**40}, "must be below"),
        ({"macs": "2M", "jobs": 0}, "jobs=0: must be a number of processes"),
        ({"macs": "2M", "out": ""}, "must name a directory"),
    ],
)
def test_options_out_of_range_are_refused_with_what_is_allowed(options, words):
    with pytest.raises(ConfigError, match=words):
        DesignConfig(**options)


def test_options_that_do_not_go_together_are_refused_before_anything_is_made(tmp_path):
    for options, words in (
        ({"strides": (2, 3)}, "strides=\\(2, 3\\): must be 1 or 2"),
        ({"kernels": (4,)}, "kernels=\\(4,\\): must be odd"),
        ({"alpha": (1.0,)}, "must be 4 numbers of at least 0"),
        ({"rho": -1.0}, "rho=-1.0: must be above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            design(DesignConfig(out=str(tmp_path / "r"), **{**CHIP, **options}))
        assert list(tmp_path.iterdir()) == []
