"""Cross-entropy in fixed point against floats."""

import numpy as np
import pytest

from lilliput.errors import GraphError
from lilliput.mcu.training.loss import LN2_Q30, cross_entropy, logarithm, logit_multiplier


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.05, 3.0])
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_loss_and_gradient_are_those_of_floats(scale: float, classes: int) -> None:
    rng = np.random.default_rng(classes)
    multiplier, shift = logit_multiplier(scale)
    for spread in (0.1, 1.0, 5.0, 12.0):
        logits = np.clip(np.round(rng.normal(0, spread / scale, classes)), -(2**30), 2**30).astype(np.int64)
        label = int(rng.integers(classes))
        mantissa, exponent, loss = cross_entropy(logits, label, multiplier, shift, 15)
        real = logits * scale
        probability = np.exp(real - real.max()) / np.exp(real - real.max()).sum()
        expected = probability - np.eye(classes)[label]
        # one place of a normalised mantissa, and the polynomial's 2**-16
        tolerance = max(2.0**exponent, np.abs(expected).max() * 2.0**-15)
        np.testing.assert_allclose(mantissa * 2.0**exponent, expected, atol=tolerance, rtol=1e-4)
        exact = float(np.log(np.exp(real - real.max()).sum()) + real.max() - real[label])
        beyond = max(0.0, real.max() - real[label] - 32)  # farther than 32 nats counts as 32
        assert loss / 2**16 == pytest.approx(exact - beyond, abs=4e-5 + 2e-7 * exact)


def test_a_certain_answer_gives_a_small_gradient_with_all_its_bits() -> None:
    multiplier, shift = logit_multiplier(1.0)
    mantissa, exponent, loss = cross_entropy(np.array([12, 0]), 0, multiplier, shift, 15)
    expected = 1 / (1 + np.exp(12))  # 6.1e-6: Q15 would have none of it
    assert mantissa[1] * 2.0**exponent == pytest.approx(expected, rel=1e-3)
    assert loss / 2**16 == pytest.approx(expected, abs=2**-16)


def test_equal_logits_by_hand() -> None:
    multiplier, shift = logit_multiplier(0.5)
    mantissa, exponent, loss = cross_entropy(np.array([7, 7]), 1, multiplier, shift, 15)
    # two exponentials of 2**31 - 1: each a half, exactly; ln 2 = 45426 / 2**16
    assert (mantissa.tolist(), exponent, loss) == ([16384, -16384], -15, 45426)


def test_distances_beyond_32_nats_count_as_32() -> None:
    multiplier, shift = logit_multiplier(1.0)
    _, _, loss = cross_entropy(np.array([0, -(2**31) + 1]), 1, multiplier, shift, 15)
    assert loss == 32 * 2**16


def test_logarithms() -> None:
    assert logarithm(2**31 - 1) == logarithm(2**31) == 0
    assert logarithm(2**32) == 2**26 * LN2_Q30 >> 30
    for total in (2**31 + 12345, 3 * 2**31, 2**40 - 1, 4095 * 2**31):
        assert logarithm(total) / 2**26 == pytest.approx(np.log(total / 2**31), abs=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e9, float("nan")])
def test_scales_that_no_shift_can_bring_to_nats_are_refused(scale: float) -> None:
    with pytest.raises(GraphError, match="logits of"):
        logit_multiplier(scale)
