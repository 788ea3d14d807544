"""The rules of gradients and steps, each against exact fractions or a sentence of its docstring."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.errors import GraphError
from lilliput.mcu.training import arithmetic, xorshift

WORDS = st.integers(-(2**31) + 1, 2**31 - 1)


@given(st.integers(-(2**62), 2**62), st.integers(0, 40), st.integers(0, 40))
def test_truncations_compose(x: int, a: int, b: int) -> None:
    once = int(arithmetic.truncate(np.array([x]), a + b)[0])
    twice = int(arithmetic.truncate(arithmetic.truncate(np.array([x]), a), b)[0])
    assert once == twice == int(Fraction(x, 2 ** (a + b)))


def test_one_pass_with_a_running_shift_gives_the_bits_of_two_passes() -> None:
    rng = np.random.default_rng(0)
    values = np.array([int(v) for v in rng.normal(size=400) * 10 ** rng.uniform(0, 9, 400)])
    shift, written = 0, []
    for value in values.tolist():  # what C does
        while abs(value) >> shift >= 2**15:
            shift += 1
            written = [int(Fraction(each, 2)) for each in written]
        written.append(int(Fraction(value, 2**shift)))
    mantissa, expected = arithmetic.normalise(values)
    assert (shift, written) == (expected, mantissa.tolist())


@pytest.mark.parametrize(("largest", "shift"), [(0, 0), (1, 0), (32767, 0), (32768, 1), (-32768, 1), (2**31 - 1, 16)])
def test_normalise_takes_the_smallest_shift(largest: int, shift: int) -> None:
    assert arithmetic.normalise(np.array([0, largest]))[1] == shift


@pytest.mark.parametrize("products", [1, 2, 9, 96, 1280, 2880, 10_000, 60_000])
def test_gradient_bits_keep_every_sum_within_int32_and_waste_at_most_one(products: int) -> None:
    bits = arithmetic.gradient_bits(products)
    assert products * 127 * (2**bits - 1) < 2**31
    assert bits == 15 or products * 127 * (2 ** (bits + 2) - 1) >= 2**31


def test_gradient_bits_refuse_a_layer_that_leaves_too_few() -> None:
    with pytest.raises(GraphError, match="200,000 products for one gradient leave 6 bits"):
        arithmetic.gradient_bits(200_000)


@given(
    WORDS,
    st.integers(-100, 10),
    st.floats(1e-12, 1e6),
    st.integers(0, arithmetic.RATE_ONE),
)
def test_a_step_is_the_exact_product_rounded_half_away(gradient: int, exponent: int, real: float, rate: int) -> None:
    mantissa, power = arithmetic.step_factors(np.array([real]))
    found = int(arithmetic.step(np.array([[gradient]]), exponent, mantissa, power, rate)[0, 0])
    exact = gradient * ((int(mantissa[0]) * rate) >> 15) * Fraction(2) ** (exponent + int(power[0]))
    expected = min(int(abs(exact) + Fraction(1, 2)), 2**31 - 1)
    assert found == (-expected if exact < 0 else expected)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=6))
def test_channel_factors_share_one_exponent_and_lose_at_most_half_a_unit(real: list[float]) -> None:
    mantissa, exponent = arithmetic.channel_factors(np.array(real))
    assert mantissa.max() == 0 or mantissa.max() >= 2**30
    np.testing.assert_allclose(np.ldexp(mantissa.astype(float), exponent), real, atol=2.0**exponent, rtol=0)


def test_scaling_by_hand() -> None:
    # 3 * 2**30 / 2**16 = 49152: one bit too many for 15; -5 * 2**29 / 2**16 = -40960, shifted to -20480
    factor = np.array([2**30, 2**29], dtype=np.int32)
    mantissa, shift = arithmetic.scale_gradient(np.array([[3, -5]], dtype=np.int16), factor, 15)
    assert (mantissa.tolist(), shift) == ([[24576, -20480]], 1)


def test_gradients_of_one_tensor_are_summed_in_one_unit() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        one, two = rng.integers(-32767, 32768, (2, 40)).astype(np.int16)
        e1, e2 = (int(e) for e in rng.integers(-30, 0, 2))
        u1, u2 = (float(u) for u in 10 ** rng.uniform(-3, 3, 2))
        (f1, k1), (f2, k2) = arithmetic.unit_factor(u1), arithmetic.unit_factor(u2)
        mantissa, exponent = arithmetic.add_gradients(one, f1, e1 + k1, two, f2, e2 + k2)
        expected = one * 2.0**e1 * u1 + two * 2.0**e2 * u2
        # each factor is within 2**-15 of its unit, and the mantissa within one place of 2**14 or more
        np.testing.assert_allclose(mantissa * 2.0**exponent, expected, atol=np.abs(expected).max() * 2.0**-13, rtol=0)


@pytest.mark.parametrize(
    ("master", "code"), [(0, 0), (127, 0), (128, 1), (-128, 0), (-129, -1), (127 * 256, 127), (-127 * 256, -127)]
)
def test_weight_codes_round_half_up_and_stay_symmetric(master: int, code: int) -> None:
    assert arithmetic.weight_codes(np.array([master], dtype=np.int16)).tolist() == [code]


def test_masters_saturate() -> None:
    assert arithmetic.update_q7_8(np.array([32000], dtype=np.int16), np.array([-(2**31)])).tolist() == [127 * 256]
    weight = np.array([120, -120], dtype=np.int8)
    delta = np.array([-20, 20]) * 2**24
    random = np.array([0, 2**32 - 1])
    assert arithmetic.update_by_chance(weight, delta, random).tolist() == [127, -127]
    assert arithmetic.update_to_nearest(weight, delta).tolist() == [127, -127]
    assert arithmetic.update_truncated(weight, delta).tolist() == [127, -127]


def test_stochastic_rounding_is_exact_on_average_and_nearest_loses_small_steps() -> None:
    count = 20_000
    weight = np.full(count, 5, dtype=np.int8)
    delta = np.full(count, round(-0.3 * 2**24))
    random, _ = xorshift.draw(xorshift.SEED, count)
    mean = arithmetic.update_by_chance(weight, delta, random).mean()
    assert abs(mean - 5.3) < 4 * (0.3 * 0.7 / count) ** 0.5  # four standard errors
    assert set(arithmetic.update_to_nearest(weight, delta)) == {5}


def test_truncation_decays_weights_as_the_published_device_code_does() -> None:
    weight = np.array([5, 5, -5], dtype=np.int8)
    delta = np.array([round(each * 2**24) for each in (0.3, -0.3, -0.3)])
    assert arithmetic.update_truncated(weight, delta).tolist() == [4, 5, -4]


def test_the_random_stream_is_xorshift32_however_it_is_cut() -> None:
    state, expected = xorshift.SEED, []
    for _ in range(700):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        expected.append(state)
    found, state = [], xorshift.SEED
    for count in (1, 0, 2, 300, 397):
        numbers, state = xorshift.draw(state, count)
        found += numbers.tolist()
    assert found == expected
    assert state == expected[-1]


@pytest.mark.parametrize(("largest", "bits"), [(0, 8), (2**21, 8), (2**24, 5), (2**30 - 1, 0)])
def test_bias_masters_leave_room(largest: int, bits: int) -> None:
    assert arithmetic.bias_fraction_bits(np.array([largest], dtype=np.int32)) == bits
