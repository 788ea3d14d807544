"""Whole data sets: the same lines whoever computes them, kept when interrupted, refused when they are of something else."""

import itertools
import json
from types import SimpleNamespace

import joblib
import pytest
import torch

import lilliput.certify.each as each
from certify.certify_cases import mlp
from lilliput.certify import certified_radius, certify_each, local_lipschitz, model_hash, radius_each
from lilliput.errors import ConfigError, DataError
from lilliput.graph import trace


def inputs(count: int = 10) -> torch.Tensor:
    return torch.rand((count, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


MODEL = mlp(4, 8, 3)
QUIET = {"progress": False}


def test_each_line_is_what_a_single_call_gives(tmp_path):
    lines = certify_each(MODEL, inputs(), 0.1, out=tmp_path / "nested" / "c.jsonl", clip=(0, 1), seed=5, **QUIET)
    assert [line["input"] for line in lines] == list(range(10))
    for index, line in enumerate(lines):
        alone = local_lipschitz(MODEL, inputs()[index], 0.1, clip=(0, 1), seed=5 + index)
        assert (line["upper"], line["lower"], line["status"]) == (alone.upper, alone.lower, alone.status)
        assert line["per_output"] == alone.per_output.tolist()
    header, *kept = [json.loads(line) for line in (tmp_path / "nested" / "c.jsonl").read_text().splitlines()]
    assert kept == lines
    assert header["model"] == model_hash(trace(MODEL, inputs(1)))
    assert header["settings"]["eps"] == 0.1


@pytest.mark.parametrize(("backend", "jobs"), [("loky", 2), ("threading", 3), ("sequential", 1)])
def test_every_engine_leaves_the_same_file(tmp_path, backend, jobs):
    y = torch.arange(10) % 3
    radius_each(MODEL, inputs(), y, out=tmp_path / "one.jsonl", **QUIET)
    with joblib.parallel_config(backend=backend, n_jobs=jobs):
        radius_each(MODEL, inputs(), y, out=tmp_path / "many.jsonl", **QUIET)
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_the_default_engine_for_several_jobs_is_processes(tmp_path, monkeypatch):
    seen = []
    real = each._Work.__call__
    monkeypatch.setattr(each._Work, "__call__", lambda *args: seen.append(args) or real(*args))
    certify_each(MODEL, inputs(), 0.1, out=tmp_path / "c.jsonl", n_jobs=2, **QUIET)
    assert seen == []  # this process computed none
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 11


def test_radii_are_those_of_single_calls(tmp_path):
    y = MODEL(inputs()).argmax(1)
    lines = radius_each(MODEL, inputs(), y, out=tmp_path / "r.jsonl", max_eps=0.5, **QUIET)
    alone = [certified_radius(MODEL, x, int(label), max_eps=0.5) for x, label in zip(inputs(), y, strict=True)]
    assert [line["radius"] for line in lines] == alone
    assert min(alone) > 0


def interrupted(tmp_path, monkeypatch, after: int):
    """A file of the first lines, the next one torn."""
    path, real = tmp_path / "c.jsonl", each._Work.__call__
    done = []

    def some(work, graph, index, x, y):
        if index == after:
            raise KeyboardInterrupt
        done.append(index)
        return real(work, graph, index, x, y)

    monkeypatch.setattr(each._Work, "__call__", some)
    with pytest.raises(KeyboardInterrupt):
        certify_each(MODEL, inputs(), 0.1, out=path, **QUIET)
    monkeypatch.setattr(each._Work, "__call__", lambda *args: done.append(args[2]) or real(*args))
    with path.open("a") as file:
        file.write('{"input": 9, "sha2')
    done.clear()
    return path, done


def test_after_an_interruption_only_what_is_missing_is_computed(tmp_path, monkeypatch):
    path, done = interrupted(tmp_path, monkeypatch, after=6)
    lines = certify_each(MODEL, inputs(), 0.1, out=path, **QUIET)
    assert done == [4, 5, 6, 7, 8, 9]  # lines are written four by four
    monkeypatch.undo()
    certify_each(MODEL, inputs(), 0.1, out=tmp_path / "whole.jsonl", **QUIET)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(lines) == 10


def test_more_inputs_can_be_added_and_nothing_is_computed_twice(tmp_path, monkeypatch):
    path = tmp_path / "c.jsonl"
    certify_each(MODEL, inputs(10)[:3], 0.1, out=path, **QUIET)
    before = path.read_bytes()
    certify_each(MODEL, inputs(10)[:3], 0.1, out=path, **QUIET)
    assert path.read_bytes() == before
    certify_each(MODEL, inputs(10), 0.1, out=path, **QUIET)
    assert path.read_bytes().startswith(before)


def test_when_time_is_over_the_rest_is_left_for_the_next_call(tmp_path, monkeypatch):
    path, y = tmp_path / "r.jsonl", torch.arange(10) % 3
    radius_each(MODEL, inputs(), y, out=tmp_path / "whole.jsonl", **QUIET)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert radius_each(MODEL, inputs(), y, out=path, total_time_limit=0, **QUIET) == []
    ticks = itertools.count(0.0)
    monkeypatch.setattr(each, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    lines = radius_each(MODEL, inputs(), y, out=path, total_time_limit=4, **QUIET)
    assert [line["input"] for line in lines] == [0, 1, 2]  # the clock says 1, 2, 3 before each and 4 before the next
    assert whole.startswith(path.read_bytes())
    assert len(radius_each(MODEL, inputs(), y, out=path, **QUIET)) == 10
    assert path.read_bytes() == whole
    with pytest.raises(ConfigError, match="total_time_limit=nan"):
        certify_each(MODEL, inputs(), 0.1, out=path, total_time_limit=float("nan"), **QUIET)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "c.jsonl"
    certify_each(MODEL, inputs(3), 0.1, out=path, **QUIET)
    before = path.read_bytes()
    for model, options, words in (
        (mlp(4, 8, 3, seed=1), {}, "another network"),
        (MODEL, {"method": "ibp"}, "method='crown' and not 'ibp'"),
        (MODEL, {"clip": (0, 1)}, r"clip=None and not \[0.0, 1.0\]"),
        (MODEL, {"seed": 1}, "seed=0 and not 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            certify_each(model, inputs(3), 0.1, out=path, **options, **QUIET)
    with pytest.raises(DataError, match="input 0 is not the one"):
        certify_each(MODEL, inputs(3).flip(0), 0.1, out=path, **QUIET)
    assert path.read_bytes() == before
    path.write_text("hello\n")
    with pytest.raises(DataError, match="is not a file of certificates"):
        certify_each(MODEL, inputs(3), 0.1, out=path, **QUIET)


def test_the_hash_tells_networks_apart_by_structure_and_by_a_single_bit():
    graph = trace(MODEL, inputs(1))
    assert model_hash(graph) == model_hash(trace(mlp(4, 8, 3), inputs(1)))
    assert model_hash(graph) != model_hash(trace(mlp(4, 8, 3, act=torch.nn.Tanh), inputs(1)))
    other = mlp(4, 8, 3)
    other[0].bias.data[0] = torch.nextafter(other[0].bias.data[0], torch.tensor(9.0, dtype=torch.float64))
    assert model_hash(graph) != model_hash(trace(other, inputs(1)))


def test_one_input_without_its_axis_is_refused(tmp_path):
    with pytest.raises(DataError, match="for one, X"):
        certify_each(MODEL, inputs(1)[0], 0.1, out=tmp_path / "c.jsonl", **QUIET)
    with pytest.raises(DataError, match="one class for each of 2 inputs"):
        radius_each(MODEL, inputs(2), torch.zeros(3, dtype=torch.int64), out=tmp_path / "c.jsonl", **QUIET)
