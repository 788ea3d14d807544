"""Refining that stopped goes on from its file as if it had not, and from no other's. Counted in steps, never by the clock."""

import os
import zipfile

import pytest
import torch
from torch import nn

from certify.certify_cases import mlp
from lilliput.certify import local_lipschitz
from lilliput.errors import ConfigError, DataError

CENTRE = torch.zeros(4, dtype=torch.float64)
DEEP = mlp(4, 14, 14, 2, gain=1.5)
"""At radius 0.5 neither method is done in 8 steps."""


@pytest.fixture(autouse=True)
def _note_after_every_step(monkeypatch):
    monkeypatch.setattr("lilliput.certify.frontier.SECONDS_BETWEEN_NOTES", 0.0)


def stopped_after(notes, path=None, model=DEEP, centre=CENTRE, **options):
    """The first note comes before the first step, so one less is the number of steps."""
    heard = []

    def progress(*entry):
        heard.append(entry)
        if len(heard) == notes:
            raise KeyboardInterrupt

    options = {"eps": 0.5, "method": "bab", "time_limit": 3600.0, "is_interruptible": True} | options
    return local_lipschitz(model, centre, progress=progress, checkpoint=path, **options)


def assert_same(one, other):
    for name in ("upper", "lower", "per_output", "per_output_lower", "witness", "witnesses"):
        assert torch.equal(torch.as_tensor(getattr(one, name)), torch.as_tensor(getattr(other, name))), name
    for low, high in zip(one.jacobian_bounds(), other.jacobian_bounds(), strict=True):
        assert torch.equal(low, high)
    assert [entry[1:] for entry in one.trace] == [entry[1:] for entry in other.trace]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bab", {}),
        ("bab", {"model": mlp(4, 8, 8, 2, act=nn.Tanh, gain=2.0)}),
        ("bab", {"dtype": "float32", "outputs": "margins", "y": 1}),
        ("bab", {"model": mlp(70, 10, 10, 2, gain=3.0), "centre": torch.zeros(70, dtype=torch.float64)}),
        ("exact", {"norm": "1", "clip": (-0.3, 1)}),
    ],
)
def test_interrupted_twice_and_taken_up_it_is_as_if_it_had_not_been(tmp_path, method, options):
    path = tmp_path / "new" / "kept.ckpt"
    first = stopped_after(3, path, method=method, **options)
    second = stopped_after(2, path, method=method, **options)
    third = stopped_after(3, path, method=method, **options)
    assert (first.status, second.status, third.status) == ("stopped", "stopped", "stopped")
    assert first.trace[-1][3] == 0
    assert third.trace[-2][3] > 1  # open: there was something to take up
    whole = stopped_after(3 + 2 + 3, method=method, **options)
    assert_same(third, whole)
    assert third.upper < first.upper


def test_an_interrupt_in_the_middle_of_a_step_undoes_that_step(tmp_path, monkeypatch):
    from lilliput.certify import bab, exact

    for method, module, name in (("bab", bab, "gate_halves"), ("exact", exact, "affine_inputs")):
        path, calls, work = tmp_path / method, [], getattr(module, name)

        def once(*args, work=work, calls=calls, **options):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return work(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(module, name, once)
            cut = stopped_after(1000, path, method=method)
        assert cut.status == "stopped"
        steps = len(cut.trace) - 2
        assert steps > 0
        assert_same(stopped_after(4, path, method=method), stopped_after(1 + steps + 4, method=method))


@pytest.mark.parametrize("method", ["bab", "exact"])
def test_every_stop_is_sound_and_the_end_is_the_end(tmp_path, method):
    model, path = mlp(4, 9, 9, 3, seed=2, gain=1.5), tmp_path / "kept"
    exact = local_lipschitz(model, CENTRE, 0.5, method="exact")
    assert exact.status == "exact"
    upper, lower, stops = float("inf"), 0.0, 0
    while True:
        reached = stopped_after(2, path, model=model, method=method)
        assert (reached.per_output >= exact.per_output * (1 - 1e-12)).all()
        assert (reached.per_output_lower <= exact.per_output * (1 + 1e-12)).all()
        at = torch.func.jacrev(model)(reached.witness).detach().abs().sum(1)
        assert float(at[reached.per_output_lower.argmax()]) == pytest.approx(reached.lower, rel=1e-9)
        assert reached.upper <= upper
        assert reached.lower >= lower
        upper, lower = reached.upper, reached.lower
        if reached.status == "exact":
            break
        stops += 1
    assert stops >= 2
    assert upper == pytest.approx(exact.upper, rel=1e-9)
    heard = []
    again = local_lipschitz(
        model, CENTRE, 0.5, method=method, checkpoint=path, time_limit=3600, progress=lambda *entry: heard.append(entry)
    )
    assert heard == []
    assert_same(again, reached)
    assert again.trace == reached.trace


def test_seconds_of_earlier_calls_count(tmp_path):
    path = tmp_path / "kept"
    first = stopped_after(6, path)
    assert first.trace[-1][0] > 0
    over = local_lipschitz(DEEP, CENTRE, 0.5, method="bab", checkpoint=path, time_limit=first.trace[-2][0])
    assert over.status == "time_limit"
    assert over.upper == first.upper
    more = stopped_after(3, path)
    assert [entry[0] for entry in more.trace] == sorted(entry[0] for entry in more.trace)
    assert_same(more, stopped_after(9))


def test_of_a_batch_each_centre_keeps_what_is_open(tmp_path):
    model, path = mlp(3, 8, 6, 2, seed=7, gain=1.5), tmp_path / "kept"
    centres = torch.tensor([[0.0] * 3, [0.3] * 3, [-0.5] * 3], dtype=torch.float64)
    singles = [local_lipschitz(model, centre, 0.4, method="exact").upper for centre in centres]
    hurried = local_lipschitz(model, centres, 0.4, method="exact", checkpoint=path, time_limit=0)
    assert hurried.status == "time_limit"
    for _ in range(100):
        reached = stopped_after(4, path, model=model, centre=centres, eps=0.4, method="exact")
        assert (reached.upper >= torch.tensor(singles, dtype=torch.float64) * (1 - 1e-9)).all()
        if reached.status == "exact":
            break
    assert reached.upper.tolist() == pytest.approx(singles, rel=1e-9)


def test_while_it_works_it_is_saved_and_a_kill_loses_little(tmp_path, monkeypatch):
    monkeypatch.setattr("lilliput.certify.refining.SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("lilliput.certify.refining._SAVING", 1e9)
    path = tmp_path / "kept"

    class KillError(Exception):
        pass

    heard = []

    def progress(*entry):
        heard.append(entry)
        if len(heard) == 5:
            raise KillError

    with pytest.raises(KillError):
        local_lipschitz(DEEP, CENTRE, 0.5, method="bab", checkpoint=path, time_limit=3600, progress=progress)
    # What was told last is told again.
    assert_same(stopped_after(4, path), stopped_after(8))
    assert os.listdir(tmp_path) == ["kept"]


def test_without_leave_to_end_an_interrupt_is_raised_and_still_nothing_is_lost(tmp_path):
    path = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        stopped_after(5, path, is_interruptible=False)
    assert_same(stopped_after(4, path), stopped_after(9))


def test_another_question_is_refused_and_told(tmp_path):
    path = tmp_path / "kept"
    stopped_after(3, path)
    content = path.read_bytes()
    other = mlp(4, 14, 14, 2, seed=1, gain=1.5)
    for options, words in (
        ({"model": other}, "was begun with another network; ask the same again, give another file, or remove it"),
        ({"centre": CENTRE + 0.1}, "another centre;"),
        ({"eps": 0.4}, "eps=0.5 and not 0.4;"),
        ({"norm": "2"}, "norm='inf' and not '2';"),
        ({"outputs": "margins", "y": 1}, r"outputs='rows' and not 'margins', y=None and not \[1\];"),
        ({"outputs": torch.eye(2)}, "outputs='rows' and not 'matrix [0-9a-f]{16}';"),
        ({"clip": (-1, 1)}, r"clip=None and not \[-1.0, 1.0\];"),
        ({"method": "exact"}, "method='bab' and not 'exact';"),
        ({"dtype": "float32"}, "dtype='float64' and not 'float32';"),
        ({"alpha_steps": 3}, "alpha_steps=20 and not 3;"),
        ({"seed": 1, "eps": 0.1}, "eps=0.5 and not 0.1, seed=0 and not 1;"),
    ):
        with pytest.raises(ConfigError, match=words):
            stopped_after(3, path, **options)
        assert path.read_bytes() == content
    with pytest.raises(ConfigError, match="method='crown' with a checkpoint: it does not refine.*use 'bab', 'exact'"):
        local_lipschitz(DEEP, CENTRE, 0.5, checkpoint=tmp_path / "none")


@pytest.mark.parametrize("method", ["bab", "exact"])
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path, method):
    path = tmp_path / "kept"
    stopped_after(3, path, method=method)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def written(changed):
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in changed.items():
                archive.writestr(name, member)
        return path.read_bytes()

    facts = members["facts.json"]
    damaged = [content[:length] for length in (0, 1, 1000, len(content) // 2, len(content) - 1)]
    damaged += [bytes(flipped), b"hello"]
    damaged += [written({name: member for name, member in members.items() if name != gone}) for gone in [*members][::5]]
    damaged += [
        written(members | {"facts.json": text})
        for text in (b"[]", b"{}", facts.replace(b'"format": 1', b'"format": 2'), facts[:-1])
    ]
    swapped = ("centres.0.npy", "0.reached.0.npy", "0.counts.npy", "0.part.masks.0.npy", "0.part.domains.0.npy")
    damaged += [written(members | {name: members["open.npy"]}) for name in swapped if name in members]
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(DataError, match="cannot be read as a checkpoint .*; remove it to start anew"):
            stopped_after(3, path, method=method)
        assert path.read_bytes() == each
