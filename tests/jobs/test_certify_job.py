"""Certificates of exported networks and of builds: every figure is checked against the room's functions or the network itself."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from certify.certify_cases import mlp
from certify.digit_networks import digits, trained_mlp
from lilliput.certify import METHODS, certified_radius, local_lipschitz
from lilliput.errors import ConfigError, DataError, GraphError
from lilliput.evidence import Run
from lilliput.jobs.certify import CertifyConfig, certify, parse_fraction


def exported(model: nn.Module, example: torch.Tensor, path) -> str:
    torch.export.save(torch.export.export(model, (example,)), path)
    return str(path)


def config(model: str, tmp_path, **options) -> CertifyConfig:
    return CertifyConfig(**{"model": model, "out": str(tmp_path / "cert"), "quiet": True, **options})


@pytest.fixture(scope="module")
def mlp_files(tmp_path_factory) -> dict[str, str]:
    """The trained network, exported, and an image."""
    folder = tmp_path_factory.mktemp("mlp")
    x, _ = digits(1)
    np.save(folder / "x.npy", x[0].numpy())
    return {"model": exported(trained_mlp(), x, folder / "net.pt2"), "center": str(folder / "x.npy")}


@pytest.fixture(scope="module")
def mlp_run(mlp_files, tmp_path_factory) -> Run:
    return certify(config(**mlp_files, tmp_path=tmp_path_factory.mktemp("run"), eps="8/255", clip="0,1"))


def test_the_figures_are_those_of_the_function(mlp_run):
    x, _ = digits(1)
    found = local_lipschitz(trained_mlp(), x[0], 8 / 255, clip=(0, 1))
    evidence = mlp_run.evidence
    assert evidence["lipschitz.upper"].value == pytest.approx(found.upper, rel=1e-12)
    assert evidence["lipschitz.lower"].value == pytest.approx(found.lower, rel=1e-12)
    assert evidence["lipschitz.gap"].value == pytest.approx(found.upper - found.lower)
    assert (str(evidence["lipschitz.upper"].how), str(evidence["lipschitz.lower"].how)) == ("proved", "measured")
    loosest = local_lipschitz(trained_mlp(), x[0], 8 / 255, clip=(0, 1), method=next(iter(METHODS)))
    assert evidence[f"lipschitz.{next(iter(METHODS))}"].value == pytest.approx(loosest.upper)


def test_the_witness_it_left_is_in_the_ball_and_meets_the_lower_bound(mlp_run):
    x, _ = digits(1)
    point = torch.from_numpy(np.load(mlp_run.path / "artifacts" / "witness.npy"))
    assert (point - x[0]).abs().max() <= 8 / 255 + 1e-12
    jacobian = torch.func.jacrev(trained_mlp())(point).detach()
    assert jacobian.abs().sum(1).max().item() == pytest.approx(mlp_run.evidence["lipschitz.lower"].value)
    with np.load(mlp_run.path / "artifacts" / "jacobian.npz") as kept:
        assert (kept["lower"] <= jacobian.numpy() + 1e-9).all()
        assert (jacobian.numpy() <= kept["upper"] + 1e-9).all()


def test_the_report_has_its_sections_and_a_vector_no_picture(mlp_run):
    assert [section.id for section in mlp_run.report.sections] == ["bounds", "neurons"]
    assert mlp_run.report.verdict.startswith("proved: within l_inf distance 8/255 no output changes faster than ")
    assert "undecided" in (mlp_run.path / "report.html").read_text().lower()


def test_of_an_image_every_element_is_drawn(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).eval()
    path = exported(model, torch.zeros(1, 1, 8, 8), tmp_path / "net.pt2")
    run = certify(config(path, tmp_path, eps="0.1", outputs="margins"))
    assert [section.id for section in run.report.sections] == ["bounds", "neurons", "elements"]
    (figure,) = run.report.sections[2].blocks
    assert "of 64 elements" in figure.alt
    said = int(model(torch.zeros(1, 1, 8, 8)).argmax())
    found = local_lipschitz(model, torch.zeros(1, 8, 8), 0.1, outputs="margins", y=said)
    assert run.evidence["lipschitz.upper"].value == pytest.approx(found.upper)


def test_a_linear_network_is_exact_and_has_no_undecided_neuron(tmp_path):
    model = nn.Linear(3, 2)
    run = certify(config(exported(model, torch.zeros(1, 3), tmp_path / "net.pt2"), tmp_path, norm="2"))
    expected = torch.linalg.vector_norm(model.weight.detach().double(), dim=1).max().item()
    assert run.evidence["lipschitz.upper"].value == pytest.approx(expected, rel=1e-6)
    assert run.evidence["lipschitz.gap"].value == pytest.approx(0, abs=1e-9)
    assert run.evidence["neurons.undecided"].value == 0


class PooledResidual(nn.Module):
    """A convolution, a branch around two more with batch norm, a max pool and an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.stem(x).relu(), 2)
        x = (x + self.norm(self.two(self.one(x).relu()))).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def cnn_file(tmp_path_factory) -> tuple[nn.Module, str]:
    torch.manual_seed(1)
    model = PooledResidual()
    model.norm.running_var.uniform_(0.5, 2)
    model.norm.running_mean.uniform_(-0.3, 0.3)
    path = exported(model.eval(), torch.zeros(1, 1, 8, 8), tmp_path_factory.mktemp("cnn") / "net.pt2")
    return model.double(), path


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_an_exported_network_with_a_residual_and_pools_is_bounded_in_every_norm(cnn_file, tmp_path, norm):
    model, path = cnn_file
    x, _ = digits(1)
    np.save(tmp_path / "x.npy", x[0].reshape(8, 8).numpy())
    run = certify(config(path, tmp_path, center=str(tmp_path / "x.npy"), clip="0,1", eps="0.2", norm=norm))
    assert run.evidence["neurons.undecided"].value > 0
    unit = torch.randn(500, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    length = torch.linalg.vector_norm(unit.flatten(1), ord=float(norm), dim=1).reshape(-1, 1, 1, 1)
    points = (x[0].reshape(1, 8, 8) + 0.2 * unit / length).clamp(0, 1).requires_grad_()
    outputs = model(points).sum(0)
    rows = torch.stack([torch.autograd.grad(o, points, retain_graph=True)[0].flatten(1) for o in outputs], 1)
    sizes = torch.linalg.vector_norm(rows, ord={"inf": 1.0, "1": torch.inf, "2": 2.0}[norm], dim=-1)
    upper, lower = (run.evidence[f"lipschitz.{name}"].value for name in ("upper", "lower"))
    assert 0.9 * sizes.max() <= lower <= upper
    assert sizes.max() <= upper
    with np.load(run.path / "artifacts" / "jacobian.npz") as kept:
        assert (kept["lower"] <= rows.numpy() + 1e-9).all()
        assert (rows.numpy() <= kept["upper"] + 1e-9).all()


@pytest.mark.parametrize(("norm", "most"), [("inf", 1.0), ("1", 64.0), ("2", 8.0)])
def test_a_radius_is_that_of_the_function(mlp_files, tmp_path, norm, most):
    x, y = digits(1)
    options = {"clip": "0,1", "radius": True, "norm": norm, "time": 600.0}
    run = certify(config(**mlp_files, tmp_path=tmp_path, **options))
    expected = certified_radius(trained_mlp(), x[0], int(y[0]), norm, max_eps=most, clip=(0, 1))
    found = run.evidence["radius.certified"]
    assert (found.value, str(found.how)) == (pytest.approx(expected, rel=1e-9), "proved")
    assert expected > run.evidence["radius.product"].value > 0
    assert [section.id for section in run.report.sections] == ["bounds", "radius", "neurons"]
    assert f"takes it out of class 'output {int(y[0])}'" in run.report.verdict


def test_rigour_reaches_the_bound_and_the_radius(mlp_files, mlp_run, tmp_path):
    run = certify(config(**mlp_files, tmp_path=tmp_path, eps="8/255", clip="0,1", rigorous=True, radius=True))
    x, _ = digits(1)
    found = local_lipschitz(trained_mlp(), x[0], 8 / 255, clip=(0, 1), rigorous=True)
    assert run.evidence["lipschitz.upper"].value == found.upper > mlp_run.evidence["lipschitz.upper"].value
    assert run.evidence["lipschitz.upper"].detail.endswith("rounding is counted")
    assert mlp_run.evidence["lipschitz.upper"].detail.endswith("rounding is not counted")
    y = int(trained_mlp()(x)[0].argmax())
    radius = certified_radius(trained_mlp(), x[0], y, max_eps=1, clip=(0, 1), rigorous=True)
    assert run.evidence["radius.certified"].value == radius


@pytest.fixture
def deep(tmp_path, monkeypatch) -> dict[str, object]:
    """Options of a question that is not done in a few steps, each of which is told of."""
    monkeypatch.setattr("lilliput.certify.frontier.SECONDS_BETWEEN_NOTES", 0.0)
    monkeypatch.setattr("lilliput.certify.refining.SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("lilliput.certify.refining._SAVING", 1e9)
    path = exported(mlp(4, 14, 14, 2, gain=1.5), torch.zeros(1, 4, dtype=torch.float64), tmp_path / "net.pt2")
    return {"model": path, "center": "zeros", "eps": "0.5", "method": "bab", "time": 3600.0}


def stopping(monkeypatch, notes, with_=KeyboardInterrupt) -> None:
    """Make the next job's progress bar stop it at that entry of the trace."""
    heard = []

    @contextmanager
    def impatient(config):
        def press(seconds, upper, lower, open_domains):
            heard.append(upper)
            if len(heard) == notes:
                raise with_

        yield press

    monkeypatch.setattr("lilliput.jobs.certify._bar", impatient)


def bounds(run):
    return run.result("bound")["upper"], run.result("bound")["lower"]


def test_an_interrupt_ends_the_refining_and_another_run_continues_it(deep, tmp_path, monkeypatch):
    stopping(monkeypatch, 4)
    run = certify(config(**deep, tmp_path=tmp_path, out=str(tmp_path / "first")))
    page = (run.path / "report.html").read_text()
    assert "status: stopped" in page
    assert "--continues" in page
    assert 0 < run.evidence["lipschitz.lower"].value < run.evidence["lipschitz.upper"].value
    stopping(monkeypatch, 4)
    more = certify(config(**deep, tmp_path=tmp_path, out=str(tmp_path / "more"), continues=str(run.path)))
    stopping(monkeypatch, 8)
    whole = certify(config(**deep, tmp_path=tmp_path, out=str(tmp_path / "whole")))
    assert bounds(more) == bounds(whole)
    assert bounds(more) != bounds(run)
    # The first is what it was: a third could continue it too.
    stopping(monkeypatch, 4)
    again = certify(config(**deep, tmp_path=tmp_path, out=str(tmp_path / "again"), continues=str(run.path)))
    assert bounds(again) == bounds(more)


def test_a_killed_run_is_resumed_in_the_middle_of_its_refining(deep, tmp_path, monkeypatch):
    stopping(monkeypatch, 5, with_=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        certify(config(**deep, tmp_path=tmp_path))
    stopping(monkeypatch, 4)
    run = certify(config(**deep, tmp_path=tmp_path, resume=True))
    # The entry that was told last had not been saved.
    stopping(monkeypatch, 8)
    assert bounds(run) == bounds(certify(config(**deep, tmp_path=tmp_path, out=str(tmp_path / "whole"))))


def test_what_cannot_be_continued_is_refused_and_leaves_the_name_free(deep, tmp_path, monkeypatch):
    stopping(monkeypatch, 3)
    stopped = certify(config(**deep, tmp_path=tmp_path, out=str(tmp_path / "stopped")))
    done = certify(config(**deep | {"eps": "0.001"}, tmp_path=tmp_path, out=str(tmp_path / "done")))
    assert done.result("bound")["status"] == "exact"
    assert not (done.path / "artifacts" / "checkpoint.zip").exists()
    for options, error, words in (
        ({"continues": str(stopped.path), "method": "crown"}, ConfigError, "must be one of bab, exact"),
        ({"continues": str(stopped.path), "eps": "0.4"}, ConfigError, "was begun with eps=0.5 and not 0.4"),
        ({"continues": str(done.path)}, DataError, "has no checkpoint.zip among its artifacts"),
        ({"continues": str(tmp_path / "nowhere")}, DataError, "there is no such directory"),
    ):
        with pytest.raises(error, match=words):
            certify(config(**deep | options, tmp_path=tmp_path))
        assert not list(tmp_path.glob("cert*"))


def test_without_a_radius_there_is_no_word_of_one(mlp_run):
    assert not [name for name in mlp_run.evidence if name.startswith("radius")]
    assert "takes it out of class" not in mlp_run.report.verdict


def test_a_center_on_the_boundary_has_no_radius_and_says_so(tmp_path):
    model = nn.Linear(2, 2, bias=False)
    run = certify(config(exported(model, torch.zeros(1, 2), tmp_path / "net.pt2"), tmp_path, radius=True))
    assert run.evidence["radius.certified"].value == 0
    assert "two classes tie" in run.report.sections[1].intro
    assert "takes it out of class" not in run.report.verdict


def test_fractions_are_read():
    assert parse_fraction("eps", "8/255") == 8 / 255
    assert parse_fraction("eps", "0.25") == 0.25
    for text in ("8/255/2", "x", "-1", "1/0", "inf", ""):
        with pytest.raises(ConfigError, match="must be a number from 0, or a fraction"):
            parse_fraction("eps", text)


def test_what_cannot_be_is_refused_and_leaves_the_name_free(tmp_path):
    path = exported(nn.Linear(3, 2), torch.zeros(1, 3), tmp_path / "net.pt2")
    batch = exported(nn.Linear(3, 2), torch.zeros(2, 3), tmp_path / "batch.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    np.save(tmp_path / "long.npy", np.zeros(4))
    for model, options, error, words in (
        ("nowhere", {}, DataError, "there is no such file or run"),
        (str(tmp_path / "text.pt2"), {}, DataError, "cannot be read as a file of torch.export.save"),
        (batch, {}, GraphError, "export it with an example of batch 1"),
        (path, {"center": "test:0"}, ConfigError, "only a build has test images"),
        (path, {"center": str(tmp_path / "long.npy")}, DataError, r"has shape \[4\]; the network takes \[3\]"),
        (path, {"center": "x.npy"}, DataError, "cannot be read as a .npy file"),
        (path, {"method": "crow"}, ConfigError, "method='crow': must be one of product, "),
        (path, {"clip": "1,2"}, DataError, "outside clip"),
    ):
        with pytest.raises(error, match=words):
            certify(config(model, tmp_path, **options))
        assert not list(tmp_path.glob("cert*"))
    for options, words in (
        ({"clip": "1,0"}, "the first must be less"),
        ({"time": 0.0}, "must be seconds above 0"),
        ({"out": ""}, "name a directory"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(path, tmp_path, **options)
