"""What a small step does to each way of keeping a weight: worked by hand."""

import pytest
import torch

from lilliput.mcu.training.storage import BIASES, REAL, WEIGHTS, Parameter

ONE = torch.ones((), dtype=torch.float64)


def stepped(rule, codes, decrease, times=1, seed=0):
    parameter = Parameter(torch.tensor(codes), rule, ONE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        parameter.step(torch.tensor(decrease), 1.0, 0.0, generator)
    return parameter


@pytest.mark.parametrize(
    ("storage", "decrease", "expected"),
    [
        # as measured on a Cortex-M7: 5 - 0.3 -> 4, 5 + 0.3 -> 5, -5 - 0.3 -> -5, -5 + 0.3 -> -4
        ("truncate", [0.3, -0.3, 0.3, -0.3], [4, 5, -5, -4]),
        ("nearest", [0.3, -0.3, 0.3, -0.3], [5, 5, -5, -5]),
        ("nearest", [0.5, -0.5, 0.5, -0.6], [5, 6, -6, -4]),  # halves go away from zero
        ("float", [0.3, -0.3, 0.6, -0.5], [5, 5, -6, -4]),  # 4.7, 5.3, -5.6, and -4.5 to even
        ("int16", [0.3, -0.3, 0.6, -0.5], [5, 5, -6, -4]),  # halves go up
    ],
)
def test_one_step_of_less_than_a_code(storage, decrease, expected):
    assert stepped(WEIGHTS[storage], [5, 5, -5, -5], decrease).used().tolist() == expected


def test_masters_add_up_small_steps_that_nearest_loses_and_truncation_makes_a_decay():
    steps = {name: stepped(WEIGHTS[name], [20, 20], [0.1, -0.1], times=50).used().tolist() for name in WEIGHTS}
    assert steps["float"] == [15, 25]
    assert steps["int16"] == [15, 25]  # 0.1 is 26/256: 50 of them are 5.08
    assert steps["nearest"] == [20, 20]
    assert steps["truncate"] == [0, 20]  # a whole code each time until zero; then nothing ever grows it
    assert 10 <= steps["int8"][0] <= 20 <= steps["int8"][1] <= 30


def test_stochastic_rounding_is_right_on_average_and_exact_on_whole_codes():
    moved = stepped(WEIGHTS["int8"], [10] * 20_000, [0.3] * 20_000).used()
    assert set(moved.tolist()) == {9.0, 10.0}
    assert moved.mean().item() == pytest.approx(9.7, abs=4 * (0.21 / 20_000) ** 0.5)
    assert stepped(WEIGHTS["int8"], [-7, 7], [2.0, 0.0]).used().tolist() == [-9, 7]


def test_the_range_saturates_wraps_or_is_none():
    ends = {name: stepped(WEIGHTS[name], [126, -126], [-5.0, 5.0]).used().tolist() for name in WEIGHTS}
    assert ends["float"] == [131, -131]
    assert ends["int16"] == ends["int8"] == ends["nearest"] == [127, -127]
    assert ends["truncate"] == [-125, 125]  # 131 and -131 in eight bits
    assert stepped(WEIGHTS["int16"], [126], [-5.0]).kept.item() <= 32767


def test_biases():
    used = {name: stepped(BIASES[name], [1000, 1000], [0.3, -0.3], times=5).used().tolist() for name in BIASES}
    assert used["float"] == pytest.approx([998.5, 1001.5])
    assert used["int16"] == used["int8"] == [998, 1002]  # 0.3 is 77/256: 5 of them are 1.504
    assert used["nearest"] == used["truncate"] == [1000, 1000]
    assert stepped(BIASES["truncate"], [10, 10], [1.9, -1.9]).used().tolist() == [9, 11]


def test_gradients_are_divided_by_the_square_of_the_scale_and_then_get_momentum():
    scale = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    parameter = Parameter(torch.zeros(2, 2), REAL, scale)
    gradient = torch.tensor([[1.0, -1.0], [4.0, 8.0]])
    generator = torch.Generator()
    parameter.step(gradient, 0.1, 0.9, generator)
    assert parameter.kept.flatten().tolist() == pytest.approx([-0.4, 0.4, -0.1, -0.2])
    parameter.step(gradient, 0.1, 0.9, generator)
    assert parameter.kept.tolist()[0] == pytest.approx([-0.4 * 2.9, 0.4 * 2.9])
