"""The build's section of certified radii: sound where there is one, a sentence where there is none, never a build that fails or waits."""

import time

import numpy as np
import torch
from torch import nn

from lilliput.certify import certified_radius
from lilliput.data import load_images
from lilliput.graph import trace
from lilliput.jobs import certified_section as job
from lilliput.jobs.certified_section import certified_section, certify_sample, radius_evidence


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


def images():
    return load_images("digits", limit=200, progress=False)


def test_the_radii_are_those_of_a_seeded_sample_of_the_test_images(monkeypatch):
    monkeypatch.setattr(job, "_SECONDS", 600.0)  # however slow the machine
    data = images()
    x, y = data.test.tensors()
    graph = trace(small(), x[:1])
    found = certify_sample(graph, data, 12, seed=3)
    sample = np.random.default_rng(3).permutation(len(y))[:12]
    expected = certified_radius(
        graph, x[sample], y[sample], clip=(0, 1), max_eps=0.25, method="zonotope", tolerance=0.05
    )
    assert np.allclose(found["radii"], expected, rtol=1e-9)
    (median,) = radius_evidence(found, "digits")
    assert (median.name, str(median.how), median.n) == ("radius.certified.median", "proved", 12)
    assert median.value == float(np.median(expected))
    assert "12 test images by method `zonotope`" in certified_section(found).blocks[0].caption


def test_an_operator_without_a_rule_is_said_and_no_more():
    data = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)).eval()
    found = certify_sample(trace(model, data.test.tensors()[0][:1]), data, 4, seed=0)
    assert radius_evidence(found, "digits") == []
    (text,) = certified_section(found).blocks
    assert "certify has no rule for 'softmax'" in text.text


def test_images_of_too_many_pixels_are_said_and_no_more():
    x = torch.zeros(1, 3, 96, 96)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 96 * 96, 10)).eval()
    found = certify_sample(trace(model, x), images(), 4, seed=0)
    assert found == {"radii": [], "why": "its 27,648 inputs are too many for zonotopes of its layers"}


def test_a_network_that_would_take_too_long_is_not_begun(monkeypatch):
    monkeypatch.setattr(job, "_SECONDS", 2.0)
    data = load_images("digits", limit=200, image_size=16, progress=False)
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8192, 10)).eval()
    begin = time.process_time()
    found = certify_sample(trace(model, data.test.tensors()[0][:1]), data, 64, seed=0)
    assert time.process_time() - begin < 10
    (text,) = certified_section(found).blocks
    assert "one image would take about" in text.text
