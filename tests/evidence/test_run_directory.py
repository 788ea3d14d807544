import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from lilliput.errors import ConfigError, DataError
from lilliput.evidence import Evidence, Run, Section, Text, render_report
from lilliput.evidence.atomic import write_text


class Speed(Enum):
    FAST = "fast"


@dataclass(frozen=True)
class Training:
    epochs: int = 3


@dataclass(frozen=True)
class Config:
    data: str = "digits"
    out: Path = Path("runs/digits")
    speed: Speed = Speed.FAST
    widths: tuple[int, ...] = (8, 16)
    training: Training = field(default_factory=Training)
    resume: bool = False


def begin(path, config=None, **options):
    return Run.create(path, job="build", config=config or Config(), seed=7, **options)


def interrupted(path, error=KeyboardInterrupt):
    """A run that finishes 'load' and is cut short in 'train'."""
    with pytest.raises(error), begin(path) as run:  # noqa: PT012 the cut is inside
        with run.step("load") as step:
            step.save({"images": 1797, "shape": (8, 8)})
        run.record(Evidence("data.images", 1797, "images", "counted"))
        with run.step("train") as step:
            step.save("half a network")
            raise error


def test_a_finished_run_reads_back_as_it_was_written(tmp_path):
    with begin(tmp_path / "runs" / "digits") as run:
        with run.step("load") as step:
            assert not step.done
            step.save({"images": np.int64(1797)})
        run.record(Evidence("a.b", 1, "bytes", "counted"), Evidence("a.a", 0.5, "share", "measured", n=2))
        run.write_report(
            [Section("one", "One", blocks=[Text("words")])], verdict="fits", holds=True, highlights=["a.a"]
        )
    assert run.path == tmp_path / "runs" / "digits"
    read = Run.load(run.path)
    assert list(read.evidence.values()) == list(run.evidence.values())
    assert read.report == run.report
    assert read.result("load") == {"images": 1797}
    assert (read.status, read.job, read.seed, read.attempts, read.name) == ("complete", "build", 7, 1, "digits")
    assert read.config == {
        "data": "digits",
        "out": "runs/digits",
        "speed": "fast",
        "widths": [8, 16],
        "training": {"epochs": 3},
        "resume": False,
    }
    assert {"python", "torch", "numpy"} <= read.versions.keys()
    assert sorted(path.name for path in run.path.iterdir()) == [
        *("artifacts", "evidence.json", "figures", "report.html", "report.json", "run.json")
    ]
    assert list(tmp_path.rglob("*.partial")) == []


def test_evidence_json_is_one_object_by_name(tmp_path):
    with begin(tmp_path / "run") as run:
        run.record(Evidence("accuracy.float", 0.99, "share", "measured", n=360))
    figures = json.loads((run.path / "evidence.json").read_text())
    assert figures["accuracy.float"] == {"value": 0.99, "unit": "share", "how": "measured", "n": 360}
    assert figures.keys() == {"$schema", "accuracy.float"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_cut_short_leaves_only_its_partial_directory(tmp_path, error):
    interrupted(tmp_path / "digits", error)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.partial"]
    facts = json.loads((tmp_path / "digits.partial" / "run.json").read_text())
    assert facts["status"] == ("interrupted" if error is KeyboardInterrupt else "failed")
    assert facts["error"].startswith(error.__name__)
    assert facts["steps"]["train"]["done"] is False
    assert "result" not in facts["steps"]["train"]
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_users_error_before_anything_was_made_leaves_the_name_free(tmp_path):
    interrupted(tmp_path / "digits", ConfigError)
    assert list(tmp_path.iterdir()) == []


def test_a_users_error_after_something_was_made_keeps_it(tmp_path):
    with pytest.raises(ConfigError), begin(tmp_path / "digits") as run:  # noqa: PT012 the cut is inside
        run.artifact("weights.bin").write_bytes(b"hours of work")
        raise ConfigError("too late")
    assert [path.name for path in tmp_path.iterdir()] == ["digits.partial"]
    assert (tmp_path / "digits.partial" / "artifacts" / "weights.bin").exists()


def test_a_resumed_run_skips_what_was_done_and_keeps_what_was_found(tmp_path):
    interrupted(tmp_path / "digits")
    first_seconds = json.loads((tmp_path / "digits.partial" / "run.json").read_text())["seconds"]
    with begin(tmp_path / "digits", Config(resume=True, out=Path("elsewhere")), resume=True) as run:
        with run.step("load") as step:
            assert step.done
            assert step.result == {"images": 1797, "shape": [8, 8]}
        with run.step("train") as step:
            assert not step.done
            assert step.result is None
            step.save(1)
    read = Run.load(tmp_path / "digits")
    assert (read.attempts, read.status, read.error) == (2, "complete", None)
    assert read.evidence["data.images"].value == 1797
    assert read.seconds > first_seconds
    assert not (tmp_path / "digits.partial").exists()


def test_a_first_attempt_sees_the_result_in_the_form_a_resumed_one_will(tmp_path):
    with begin(tmp_path / "run") as run:
        with run.step("load") as step:
            step.save({"shape": (8, 8), "at": Path("a/b"), "config": Training()})
            assert step.result == {"shape": [8, 8], "at": "a/b", "config": {"epochs": 3}}
        assert run.result("load") == step.result


def test_a_resumed_run_may_record_a_figure_anew(tmp_path):
    interrupted(tmp_path / "digits")
    with begin(tmp_path / "digits", resume=True) as run:
        run.record(Evidence("data.images", 1700, "images", "counted"))
    assert Run.load(run.path).evidence["data.images"].value == 1700


def test_resume_without_an_unfinished_run_begins_one(tmp_path):
    with begin(tmp_path / "digits", resume=True) as run:
        assert run.attempts == 1
    assert run.path.is_dir()


def test_the_steps_add_up_over_attempts(tmp_path):
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "run") as run, run.step("train"):  # noqa: PT012
        time.sleep(0.05)
        raise KeyboardInterrupt
    with begin(tmp_path / "run", resume=True) as run, run.step("train"):
        time.sleep(0.05)
    assert 0.1 <= run.steps["train"].seconds <= run.seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": Config(training=Training(epochs=4))}, "config field 'training.epochs' was 3 and is 4"),
        ({"config": Config(widths=(8,))}, r"config field 'widths' was \[8, 16\] and is \[8\]"),
        ({"config": {"data": "digits"}}, "config field 'speed' was \"fast\" and is absent"),
        ({"seed": 8}, "seed was 7 and is 8"),
        ({"job": "certify"}, "job was build and is certify"),
    ],
)
def test_a_run_is_not_resumed_with_another_config(tmp_path, change, message):
    interrupted(tmp_path / "digits")
    before = (tmp_path / "digits.partial" / "run.json").read_bytes()
    with pytest.raises(
        ConfigError, match=f"digits.partial cannot be resumed: {message}; give what it was begun with, or remove"
    ):
        Run.create(tmp_path / "digits", **({"job": "build", "config": Config(), "seed": 7, "resume": True} | change))
    assert (tmp_path / "digits.partial" / "run.json").read_bytes() == before


def test_a_run_of_another_version_is_not_resumed(tmp_path):
    interrupted(tmp_path / "digits")
    facts = tmp_path / "digits.partial" / "run.json"
    facts.write_text(facts.read_text().replace('"lilliput": "', '"lilliput": "0.0.'))
    with pytest.raises(ConfigError, match=r"cannot be resumed: Lilliput's version was 0\.0\..* and is"):
        begin(tmp_path / "digits", resume=True)


def test_a_name_that_is_taken_is_never_written_over(tmp_path, written):
    before = {path: path.read_bytes() for path in written(tmp_path / "run").rglob("*") if path.is_file()}
    for resume in (False, True):
        with pytest.raises(
            ConfigError, match="run exists already, and a run is never written over; give another name, or remove it"
        ):
            begin(tmp_path / "run", resume=resume)
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "run.partial").exists()


def test_a_name_taken_while_the_job_ran_is_not_written_over(tmp_path):
    with pytest.raises(ConfigError, match="exists already"), begin(tmp_path / "run"):
        (tmp_path / "run").mkdir()
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "run.partial" / "run.json").exists()


def test_an_unfinished_run_in_the_way_is_named_with_both_ways_out(tmp_path):
    interrupted(tmp_path / "digits")
    with pytest.raises(
        ConfigError, match=r"digits.partial is an unfinished run; continue it with --resume, or remove it"
    ):
        begin(tmp_path / "digits")


def test_a_second_process_cannot_write_the_same_run(tmp_path):
    with begin(tmp_path / "digits"), pytest.raises(ConfigError, match="is being written by another process"):
        begin(tmp_path / "digits", resume=True)


def test_a_killed_process_leaves_a_run_that_can_be_resumed(tmp_path):
    code = """
import sys, time
from lilliput.evidence import Run
with Run.create(sys.argv[1], job="build", config={"epochs": 3}, seed=1) as run:
    with run.step("load") as step:
        step.save(1797)
    (run.path / ".run.json.1.tmp").write_text("half")
    print("loaded", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "loaded\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with Run.create(tmp_path / "run", job="build", config={"epochs": 3}, seed=1, resume=True) as run:
        assert run.result("load") == 1797
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize("path", ["", ".", "..", "runs/x.partial"])
def test_a_path_without_a_usable_name_is_refused(path):
    with pytest.raises(ConfigError, match=r"must be a name that does not end in .partial; try 'runs/build'"):
        begin(path)


def test_a_file_in_the_place_of_a_parent_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"file/run.partial cannot be made: .*; give another name|a file is in the way"
    ):
        begin(tmp_path / "file" / "run")
    (tmp_path / "run.partial").write_text("")
    with pytest.raises(ConfigError, match="run.partial: a file is in the way"):
        begin(tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": object()}, "config.model: a object cannot be kept as JSON"),
        ({"rate": float("inf")}, "config.rate=inf: must be finite"),
        ({"nested": [{"a": {1, 2}}]}, r"config.nested\[0\].a: a set cannot be kept"),
        ({1: "a"}, "config: key 1 must be text"),
        (7, "config: a int has no named fields; give a dataclass or a mapping"),
    ],
)
def test_a_config_json_cannot_hold_is_refused_by_field_before_anything_is_written(tmp_path, config, message):
    with pytest.raises(ConfigError, match=message):
        Run.create(tmp_path / "run", job="build", config=config)
    assert list(tmp_path.iterdir()) == []


def test_one_name_has_one_value(tmp_path):
    with begin(tmp_path / "run") as run:
        run.record(Evidence("a.b", 1, "bytes", "counted"))
        run.record(Evidence("a.b", 1, "bytes", "counted"))
        with pytest.raises(ConfigError, match="evidence 'a.b': is 1 already, and now 2"):
            run.record(Evidence("a.b", 2, "bytes", "counted"))


def test_a_step_has_a_name_of_its_own_and_a_result_only_when_done(tmp_path):
    with begin(tmp_path / "run") as run:
        with run.step("load"):
            pass
        with pytest.raises(ConfigError, match="step 'load': this run has one of that name already"), run.step("load"):
            pass
        with pytest.raises(ConfigError, match="step 'train' has no result: finished steps are load"):
            run.result("train")
        assert run.result("load") is None


def test_a_step_that_failed_and_was_caught_is_told_as_not_done(tmp_path):
    with begin(tmp_path / "run") as run:
        try:
            with run.step("emulate") as step:
                step.save("half an answer")
                raise RuntimeError("no emulator")
        except RuntimeError:
            assert run.steps["emulate"].result is None
    assert json.loads((run.path / "run.json").read_text())["steps"]["emulate"]["done"] is False


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", ""])
def test_an_artifact_stays_inside_its_run(tmp_path, name):
    with begin(tmp_path / "run") as run, pytest.raises(ConfigError, match=r"must be a relative name without '..'"):
        run.artifact(name)


def test_an_artifact_moves_with_its_run(tmp_path):
    with begin(tmp_path / "run") as run:
        run.artifact("firmware/src/model.c").write_text("int x;")
    assert (tmp_path / "run" / "artifacts" / "firmware" / "src" / "model.c").read_text() == "int x;"


def test_a_report_shows_only_evidence_that_was_recorded(tmp_path):
    with begin(tmp_path / "run") as run:
        run.record(Evidence("a.b", 1, "bytes", "counted"))
        with pytest.raises(
            ConfigError, match="report shows evidence 'a.c', which the run has not recorded; it has a.b"
        ):
            run.write_report([], highlights=["a.c"])


def test_loading_what_is_no_finished_run_says_what_it_is(tmp_path):
    with pytest.raises(DataError, match=r"nothing: is not a finished run; there is no such directory"):
        Run.load(tmp_path / "nothing")
    interrupted(tmp_path / "digits")
    with pytest.raises(
        DataError, match=r"digits: is not a finished run; .*digits.partial is unfinished: continue it with --resume"
    ):
        Run.load(tmp_path / "digits")
    with pytest.raises(DataError, match=r"digits.partial: the run is not finished \(status 'interrupted'\)"):
        Run.load(tmp_path / "digits.partial")


def test_a_page_drawn_again_is_the_page_that_was_written(example, tmp_path):
    assert render_report(Run.load(example.path)) == (example.path / "report.html").read_text(encoding="utf-8")


def test_a_relative_path_is_made_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with begin("runs/digits") as run:
        pass
    assert (tmp_path / "runs" / "digits" / "run.json").exists()
    assert Run.load("runs/digits").name == run.name == "digits"


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    for function in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="No space left"):
                write_text(path, "new")
        assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("run.json", "old")]


def test_a_full_disk_does_not_hide_what_went_wrong_first(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeError, match="the first fault") as caught, begin(tmp_path / "run"):  # noqa: PT012
        monkeypatch.setattr(os, "fsync", fail)
        raise RuntimeError("the first fault")
    assert "could not be written" in caught.value.__notes__[0]
