"""Certificates of exported networks and of builds: every figure is checked against the room's functions or the network itself."""

import numpy as np
import pytest
import torch
from torch import nn

from certify.digit_networks import digits, trained_mlp
from lilliput.certify import METHODS, local_lipschitz
from lilliput.errors import ConfigError, DataError, GraphError
from lilliput.evidence import Run
from lilliput.jobs.build import BuildConfig, build
from lilliput.jobs.certify import CertifyConfig, certify, parse_fraction


def exported(model: nn.Module, example: torch.Tensor, path) -> str:
    torch.export.save(torch.export.export(model, (example,)), path)
    return str(path)


def config(model: str, tmp_path, **options) -> CertifyConfig:
    return CertifyConfig(**{"model": model, "out": str(tmp_path / "cert"), "quiet": True, **options})


@pytest.fixture(scope="module")
def mlp_run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("mlp")
    x, _ = digits(1)
    np.save(folder / "x.npy", x[0].numpy())
    model = exported(trained_mlp(), x, folder / "net.pt2")
    return certify(config(model, folder, center=str(folder / "x.npy"), eps="8/255", clip="0,1"))


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


def test_a_builds_network_is_the_one_it_trained_around_its_test_image(tmp_path):
    options = {"macs": "20K", "sram": "8KB", "flash": "48KB", "limit": 300, "epochs": 1, "image_size": 8}
    made = build(BuildConfig(out=str(tmp_path / "run"), board="host", quiet=True, **options))
    run = certify(config(str(made.path), tmp_path, center="test:2", eps="1/1000", method="ibp"))
    assert "test image 2 of digits" in run.report.title
    assert run.evidence["lipschitz.upper"].value >= run.evidence["lipschitz.lower"].value > 0
    with pytest.raises(ConfigError, match="must be test:0 to test:"):
        certify(config(str(made.path), tmp_path, out=str(tmp_path / "other"), center="test:100000"))


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
