import importlib.util

import pytest
from joblib import parallel_config

from lilliput.design import Design, Request, SearchSpace, sweep, trade_offs
from lilliput.errors import BudgetError
from lilliput.evidence import Budget

SPACE = SearchSpace.inverted_residual(
    16, (1, 2, 2), (3,), 8, stem_min=8, stem_max=16, out_max=64, layers_max=4, num_classes=10
)
REQUESTS = tuple(
    Request(space=SPACE, budget=Budget(macs=macs, flash_bytes=flash), rho=0.8, seed=seed, patches=None)
    for macs, flash, seed in ((300_000, 20_000, 0), (600_000, 20_000, 1), (1_000, 20_000, 0), (600_000, 40_000, 2))
)


def texts(found: tuple) -> list[str]:
    return [
        str(each) if isinstance(each, BudgetError) else f"{each.structure.to_json()} {each.objective} {each.relaxation}"
        for each in found
    ]


@pytest.fixture(scope="module")
def one_after_the_other() -> list[str]:
    return texts(sweep(REQUESTS, n_jobs=1))


def test_a_budget_too_tight_does_not_end_a_sweep(one_after_the_other):
    assert "no network of the space fits" in one_after_the_other[2]
    assert sum(text.startswith("{") for text in one_after_the_other) == 3


def test_processes_give_equal_results(one_after_the_other):
    assert texts(sweep(REQUESTS, n_jobs=2)) == one_after_the_other
    with parallel_config(backend="loky", n_jobs=2):
        assert texts(sweep(REQUESTS)) == one_after_the_other


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_ray_cluster_gives_equal_results(one_after_the_other):
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        with parallel_config(backend="ray", n_jobs=2):
            assert texts(sweep(REQUESTS)) == one_after_the_other
    finally:
        ray.shutdown()


def test_trade_offs_change_one_budget_at_a_time():
    (design,) = sweep(REQUESTS[1:2])
    assert isinstance(design, Design)
    curves = {curve.name: curve for curve in trade_offs(design, factors=(0.01, 1.0, 2.0), time_limit=None)}
    assert set(curves) == {"macs", "flash_bytes", "rho"}
    for curve in curves.values():
        (_, least), (_, here), (_, more) = curve.points
        assert least is None
        assert here == pytest.approx(design.objective, rel=0.003)  # another search of the same problem
        assert more is not None
        assert more >= 0.997 * here
    (only,) = trade_offs(design, factors=(1.0,), names=["macs"], time_limit=0.1)
    assert only.name == "macs"
