from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.data.raw import RawImages, RawPart
from lilliput.data.splits import class_quotas, limit_images, split_images
from lilliput.errors import ConfigError, DataError


def numbered(labels: list[int], pixels: list[int] | None = None) -> RawPart:
    """Images whose two bytes spell a number, so that a test can say which are identical."""
    values = np.array(pixels if pixels is not None else range(len(labels)))
    images = np.stack([values // 256, values % 256], axis=1).astype(np.uint8).reshape(-1, 1, 2, 1)
    return RawPart(images, np.array(labels, dtype=np.int64))


def numbers(part: RawPart) -> list[int]:
    return (part.images[:, 0, 0, 0].astype(int) * 256 + part.images[:, 0, 1, 0]).tolist()


def raw(pool: RawPart, classes: int = 2, **parts: RawPart) -> RawImages:
    return RawImages("numbers", "numbers", tuple("abcdefgh"[:classes]), pool, **parts)


def test_every_image_is_in_exactly_one_part():
    pool = numbered([i % 3 for i in range(300)])
    train, val, test, _ = split_images(raw(pool, 3), val_fraction=0.1, test_fraction=0.2, seed=0)
    assert sorted(numbers(train) + numbers(val) + numbers(test)) == list(range(300))


def test_shares_hold_within_each_class():
    pool = numbered([0] * 100 + [1] * 40)
    train, val, test, _ = split_images(raw(pool), val_fraction=0.1, test_fraction=0.2, seed=0)
    assert np.bincount(test.labels).tolist() == [20, 8]
    assert np.bincount(val.labels).tolist() == [10, 4]
    assert np.bincount(train.labels).tolist() == [70, 28]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 25)), min_size=10, max_size=80),
    st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_identical_images_never_land_in_two_parts(rows: list[tuple[int, int]], seed: int):
    labels, pixels = [label for label, _ in rows], [pixel for _, pixel in rows]
    # Three images of each class that nothing else equals, so that a split is always possible.
    labels += [0, 0, 0, 1, 1, 1]
    pixels += [100, 101, 102, 103, 104, 105]
    train, val, test, report = split_images(
        raw(numbered(labels, pixels)), val_fraction=0.2, test_fraction=0.3, seed=seed
    )
    sides = [set(numbers(part)) for part in (train, val, test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert all(sides)
    assert len(train) + len(val) + len(test) == len(labels)
    counts = np.unique(pixels, return_counts=True)[1]
    assert report.identical_images == counts[counts > 1].sum()
    assert report.identical_groups == (counts > 1).sum()


def test_the_split_does_not_depend_on_the_order_of_the_images():
    labels = [i % 2 for i in range(200)]
    shuffle = np.random.default_rng(3).permutation(200)
    one = split_images(raw(numbered(labels)), val_fraction=0.1, test_fraction=0.2, seed=0)
    other_pool = numbered([labels[i] for i in shuffle], shuffle.tolist())
    other = split_images(raw(other_pool), val_fraction=0.1, test_fraction=0.2, seed=0)
    for a, b in zip(one[:3], other[:3], strict=True):
        assert set(numbers(a)) == set(numbers(b))


def test_another_seed_gives_another_split():
    pool = numbered([i % 2 for i in range(200)])
    tests = [set(numbers(split_images(raw(pool), val_fraction=0.1, test_fraction=0.2, seed=s)[2])) for s in (0, 1, 0)]
    assert tests[0] == tests[2]
    assert tests[0] != tests[1]


def test_a_test_part_that_comes_with_the_data_is_kept_and_its_images_are_dropped_from_training():
    pool = numbered([i % 2 for i in range(40)])
    own_test = numbered([0, 1, 0], [900, 901, 4])  # 4 is in the pool too
    train, val, test, report = split_images(raw(pool, test=own_test), val_fraction=0.25, test_fraction=0.2, seed=0)
    assert numbers(test) == [900, 901, 4]
    assert 4 not in numbers(train) + numbers(val)
    assert len(train) + len(val) == 39
    assert report.dropped_images == 1
    assert "1 training or validation images dropped" in report.notes()[0]


def test_a_validation_part_that_comes_with_the_data_is_kept():
    pool = numbered([i % 2 for i in range(40)])
    own_val = numbered([0, 1], [900, 901])
    train, val, test, _ = split_images(raw(pool, val=own_val), val_fraction=0.25, test_fraction=0.2, seed=0)
    assert numbers(val) == [900, 901]
    assert (len(train), len(test)) == (32, 8)


def test_identical_images_with_different_labels_are_counted():
    pool = numbered([0, 0, 0, 1, 1, 1, 0, 1], [0, 1, 2, 3, 4, 5, 50, 50])
    report = split_images(raw(pool), val_fraction=0.2, test_fraction=0.3, seed=0)[3]
    assert report.conflicting_groups == 1
    assert "carry different labels" in report.notes()[1]


def test_too_few_distinct_images_of_a_class_are_refused_by_name():
    pool = numbered([0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 7, 7, 7, 8])
    with pytest.raises(DataError, match=r"class 'b' has 4 images, 2 of them distinct; needs at least 3 distinct"):
        split_images(raw(pool), val_fraction=0.1, test_fraction=0.2, seed=0)


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (0.1, 1.0), (0.1, float("nan")), (0.5, 0.5)])
def test_shares_that_leave_a_part_empty_are_refused(val: float, test: float):
    with pytest.raises(ConfigError, match="_fraction"):
        split_images(raw(numbered([0, 1] * 10)), val_fraction=val, test_fraction=test, seed=0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 400))
def test_quotas_sum_to_the_limit_and_stay_within_one_of_their_share(counts: list[int], limit: int):
    quotas = class_quotas(counts, limit)
    assert sum(quotas) == min(limit, sum(counts))
    for quota, count in zip(quotas, counts, strict=True):
        assert 0 <= quota <= count
        if sum(counts):
            assert abs(quota - count * min(limit, sum(counts)) / sum(counts)) < 1


def test_a_limit_keeps_the_share_of_each_class_and_part():
    limited = limit_images(raw(numbered([0] * 60 + [1] * 20), test=numbered([0] * 15 + [1] * 5)), 50, seed=0)
    assert np.bincount(limited.pool.labels).tolist() == [30, 10]
    assert limited.test is not None
    assert len(limited.pool) + len(limited.test) == 50
    assert abs(np.bincount(limited.test.labels)[0] - 7.5) <= 0.5
