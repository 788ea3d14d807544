"""One-dimensional k-means is exact: no partition, and no start of scikit-learn's, does better."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans as SklearnKMeans

from lilliput.quantize.lowbit.kmeans import exact_kmeans


def by_every_partition(values: np.ndarray, k: int) -> float:
    values, n = np.sort(values), len(values)
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(n + 1), k - 1):
        runs = [values[a:b] for a, b in itertools.pairwise((0, *cuts, n)) if b > a]
        best = min(best, sum(((run - run.mean()) ** 2).sum() for run in runs))
    return best


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_no_partition_of_a_small_set_is_better(k):
    rng = np.random.default_rng(0)
    # Small integers: ties and repeats, which bracketed searches get wrong first.
    values = np.concatenate([rng.integers(-4, 5, (20, 9)), rng.standard_normal((20, 9)) ** 3])
    found = exact_kmeans(values, k)
    for row, objective in zip(values, found.objective, strict=True):
        assert objective == pytest.approx(by_every_partition(row, k), abs=1e-9)


def test_fifty_tensors_are_no_worse_than_the_best_of_twenty_starts_of_scikit_learn():
    rng = np.random.default_rng(1)
    strictly_better = 0
    for index in range(50):
        n, k = int(rng.integers(20, 200)), int(rng.integers(2, 9))
        values = rng.standard_normal(n) ** (1 + 2 * (index % 2))  # every second one has outliers
        theirs = SklearnKMeans(k, n_init=20, random_state=0).fit(values[:, None]).inertia_
        ours = exact_kmeans(values[None], k).objective[0]
        assert ours <= theirs + 1e-9
        strictly_better += ours < theirs - 1e-9
    assert strictly_better  # twenty starts are not always enough, or this test could not fail


def test_the_objective_is_that_of_the_centres():
    values = np.random.default_rng(2).standard_normal((3, 100))
    found = exact_kmeans(values, 5)
    nearest = np.abs(values[:, :, None] - found.centres[:, None]).min(axis=2)
    np.testing.assert_allclose(found.objective, (nearest**2).sum(axis=1), rtol=1e-12)


def test_fewer_distinct_numbers_than_clusters_leave_clusters_empty():
    found = exact_kmeans(np.array([[2.0, 2.0, 7.0, 7.0]]), 4)
    assert found.objective[0] == 0
    assert set(found.centres[0]) == {2.0, 7.0}
    assert (np.diff(found.centres[0]) >= 0).all()


def test_a_far_offset_costs_no_digits():
    values = np.random.default_rng(3).standard_normal((1, 60))
    near, far = exact_kmeans(values, 3), exact_kmeans(values + 1e6, 3)
    np.testing.assert_allclose(far.centres - 1e6, near.centres, atol=1e-8)


def test_every_process_finds_the_same_bits():
    code = (
        "import numpy as np; from lilliput.quantize.lowbit.kmeans import exact_kmeans;"
        "print(exact_kmeans(np.sin(np.arange(300.))[None], 5).centres.tobytes().hex())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0].strip() == exact_kmeans(np.sin(np.arange(300.0))[None], 5).centres.tobytes().hex()
