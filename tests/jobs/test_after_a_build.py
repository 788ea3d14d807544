"""What takes a finished build, certificates and low-bit weights: on its own test images, as long as they are those it was built with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lilliput.errors import ConfigError, DataError
from lilliput.evidence import Run
from lilliput.jobs.build import BuildConfig, build
from lilliput.jobs.certify import CertifyConfig, certify
from lilliput.jobs.quantize import QuantizeConfig, load_network, quantize


def config(model: Path, tmp_path, **options) -> CertifyConfig:
    return CertifyConfig(
        **{
            "model": str(model),
            "out": str(tmp_path / "cert"),
            "eps": "1/1000",
            "method": "ibp",
            "quiet": True,
            **options,
        }
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """A build, and the file of images that it was made with."""
    folder = tmp_path_factory.mktemp("built")
    images = load_digits()
    pixels = np.rint(images.images * 15.9).astype(np.uint8)
    np.savez(folder / "images.npz", images=pixels[:400], labels=images.target[:400])
    options = {"macs": "20K", "sram": "8KB", "flash": "48KB", "epochs": 1, "image_size": 8, "certify": 0}
    run = build(
        BuildConfig(data=str(folder / "images.npz"), out=str(folder / "run"), board="host", quiet=True, **options)
    )
    return run.path, folder / "images.npz"


def test_a_builds_network_is_the_one_it_trained_around_its_test_image(built, tmp_path):
    run = certify(config(built[0], tmp_path, center="test:2"))
    assert "test image 2 of images" in run.report.title
    assert run.evidence["lipschitz.upper"].value >= run.evidence["lipschitz.lower"].value > 0
    with pytest.raises(ConfigError, match="must be test:0 to test:"):
        certify(config(built[0], tmp_path, out=str(tmp_path / "other"), center="test:100000"))


def test_a_builds_network_is_quantized_and_tried_on_its_test_images(built, tmp_path):
    options = {"method": "rtn", "bits": 6, "quiet": True}
    run = quantize(QuantizeConfig(model=str(built[0]), out=str(tmp_path / "low"), **options))
    known = Run.load(built[0]).evidence["accuracy.float"]
    assert run.evidence["accuracy.float"].value == pytest.approx(known.value)
    assert run.evidence["accuracy.float"].n == known.n
    assert run.evidence["agreement"].value >= 0.9
    assert load_network(str(run.path))(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_test_image_of_other_data_is_refused_and_another_center_is_not(built, tmp_path):
    run, images = built
    before = images.read_bytes()
    with np.load(images) as kept:
        pixels, labels = kept["images"].copy(), kept["labels"]
    pixels[0, 0, 0] ^= 1
    try:
        np.savez(images, images=pixels, labels=labels)
        with pytest.raises(DataError, match=r"are not those that .*run was built with.*center='zeros'"):
            certify(config(run, tmp_path, center="test:2"))
        assert not list(tmp_path.glob("cert*"))
        other = certify(config(run, tmp_path, center="zeros"))
    finally:
        images.write_bytes(before)
    assert "'output " not in other.report.verdict
    assert "output 0" in (other.path / "report.html").read_text()  # names of classes would be the other data's
