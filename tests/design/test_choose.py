import re

import pytest
import torch

from lilliput.design import InvertedResidualSpec, choose, graph_cost, members
from lilliput.design.choose import _lower_bound
from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Budget, Cost

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def family() -> list[InvertedResidualSpec]:
    return [
        spec for spec in members(16, 1, 10) if spec.width in (4, 8) and spec.blocks < 3 and spec.expansion in (1, 3)
    ]


@pytest.fixture(scope="module")
def costs(family):
    """Every member, measured: what the choice is checked against."""
    return {str(spec): graph_cost(spec.build(), SHAPE) for spec in family}


@pytest.mark.parametrize("sram", ["2KB", "3KB", "6KB"])
def test_the_choice_is_the_largest_of_all_that_fit(family, costs, sram):
    budget = Budget.of(sram=sram, flash="6KB")
    choice = choose(family, SHAPE, budget)
    fitting = {name: cost for name, cost in costs.items() if cost <= budget}
    assert choice.cost <= budget
    capacity = choice.cost.macs * choice.cost.params
    assert capacity == max(cost.macs * cost.params for cost in fitting.values())


def test_bounds_are_exact_in_macs_and_params_and_never_above_in_memory(family, costs):
    for spec in family:
        bound, cost = _lower_bound(spec, SHAPE, Cost()), costs[str(spec)]
        assert (bound.macs, bound.params) == (cost.macs, cost.params)
        assert bound.sram_bytes <= cost.sram_bytes


def test_when_nothing_fits_the_message_states_a_budget_that_does(family):
    with pytest.raises(BudgetError, match="smallest that would do") as error:
        choose(family, SHAPE, Budget.of(sram=400, flash=500))
    needs = dict(re.findall(r"--(sram|flash) (\d+)", str(error.value)))
    assert choose(family, SHAPE, Budget.of(sram=needs.get("sram", 400), flash=needs.get("flash", 500)))


def test_members_compute_logits_for_each_class():
    for spec in (InvertedResidualSpec(image_size=32, channels=3, classes=7, width=4, blocks=2, expansion=3, stages=3),
                 InvertedResidualSpec(image_size=8, channels=1, classes=2, width=4, blocks=1, expansion=1, stages=1)):  # fmt: skip
        images = torch.rand(2, spec.channels, spec.image_size, spec.image_size)
        assert spec.build().eval()(images).shape == (2, spec.classes)


def test_too_many_stages_for_the_image_are_refused_with_the_fix():
    with pytest.raises(ConfigError, match="try stages=2"):
        InvertedResidualSpec(image_size=8, channels=1, classes=2, width=4, blocks=1, expansion=1, stages=3)
