"""Three parts from one pool: stratified, without leakage, the same on every machine.

Identical images (equal bytes) are one *group* and a group is never divided, so nothing in the test part was trained on. Which part
a group goes to is decided by a hash of its own pixels and the seed: not by file order, file names, or any library's random numbers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from lilliput.data.raw import RawImages, RawPart
from lilliput.errors import ConfigError, DataError


@dataclass(frozen=True)
class SplitReport:
    """What the split did about identical images."""

    identical_images: int
    """Images that have at least one identical twin among those split; twins stay in the same part."""
    identical_groups: int
    """Groups that those images form."""
    dropped_images: int
    """Training or validation images dropped because the data set's own test or validation part holds the same image."""
    conflicting_groups: int
    """Groups whose identical images carry different labels: no classifier can get these all right."""

    def notes(self) -> tuple[str, ...]:
        """A sentence for each count above zero."""
        lines = []
        if self.identical_images:
            lines.append(
                f"{self.identical_images:,} images have identical twins ({self.identical_groups:,} groups); "
                "each group is kept in one part"
            )
        if self.dropped_images:
            lines.append(
                f"{self.dropped_images:,} training or validation images dropped: the data set's own held-out part has the same image"
            )
        if self.conflicting_groups:
            lines.append(f"{self.conflicting_groups:,} groups of identical images carry different labels")
        return tuple(lines)


def split_images(
    raw: RawImages, *, val_fraction: float, test_fraction: float, seed: int
) -> tuple[RawPart, RawPart, RawPart, SplitReport]:
    """Train, validation and test parts of a data set, and what was done about identical images.

    A part that comes with the data set is kept as it is; what is missing is taken from the pool. Within a part the pool's order stays.

    Args:
        raw: the data set.
        val_fraction: share of the pool's images, per class, to validate on.
        test_fraction: share of the pool's images, per class, to test on; unused where the data set has its own test part.
        seed: chooses which images.
    """
    check_fractions(val_fraction, test_fraction)
    wanted = {"test": test_fraction if raw.test is None else 0.0, "val": val_fraction if raw.val is None else 0.0}
    test_digests = set(digests(raw.test)) if raw.test is not None else set()
    val, val_dropped = _without(raw.val, test_digests) if raw.val is not None else (None, 0)
    held_out = test_digests | (set(digests(val)) if val is not None else set())
    pool, pool_dropped = _without(raw.pool, held_out)

    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests(pool)):
        groups[digest].append(index)
    by_class: dict[int, list[bytes]] = {label: [] for label in range(len(raw.class_names))}
    conflicting = 0
    for digest, members in groups.items():
        labels, counts = np.unique(pool.labels[members], return_counts=True)
        conflicting += len(labels) > 1
        by_class[int(labels[np.argmax(counts)])].append(digest)

    chosen: dict[str, list[int]] = {"test": [], "val": [], "train": []}
    for label, class_digests in by_class.items():
        ordered = sorted(class_digests, key=lambda digest: seeded_rank(digest, seed))
        placed = _place([len(groups[d]) for d in ordered], wanted, raw.class_names[label], raw.source)
        for digest, part in zip(ordered, placed, strict=True):
            chosen[part].extend(groups[digest])
    parts = {name: pool.take(np.array(sorted(indices), dtype=np.int64)) for name, indices in chosen.items()}
    twins = [len(members) for members in groups.values() if len(members) > 1]
    report = SplitReport(sum(twins), len(twins), pool_dropped + val_dropped, conflicting)
    test = raw.test if raw.test is not None else parts["test"]
    return parts["train"], val if val is not None else parts["val"], test, report


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave a part empty."""
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value}: must be more than 0 and less than 1; try {name}=0.2")
    if val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing to train on; "
            "their sum must be less than 1; try 0.1 and 0.2"
        )


def digests(part: RawPart) -> list[bytes]:
    """A 16-byte hash of each image's pixels (all images of a data set have one shape, so pixels say it all)."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part.images]


def seeded_rank(item: bytes, seed: int) -> bytes:
    """Where an item stands in the shuffle of that seed; depends on nothing but the item and the seed."""
    return hashlib.blake2b(item, digest_size=16, key=str(seed).encode()).digest()


def class_quotas(counts: Sequence[int], limit: int) -> list[int]:
    """How many to take of each class so that the sum is the limit and shares stay nearest to the counts (largest remainder)."""
    total = sum(counts)
    if limit >= total:
        return list(counts)
    exact = [count * limit / total for count in counts]
    quotas = [floor(share) for share in exact]
    by_remainder = sorted(range(len(counts)), key=lambda c: (quotas[c] - exact[c], c))
    for c in by_remainder[: limit - sum(quotas)]:
        quotas[c] += 1
    return quotas


def limit_images(raw: RawImages, limit: int, seed: int) -> RawImages:
    """At most ``limit`` images in all, the same share of every part and class, chosen by pixels and seed alone."""
    parts = raw.parts()
    part_limits = class_quotas([len(part) for part in parts.values()], limit)
    kept: dict[str, RawPart] = {}
    for (name, part), part_limit in zip(parts.items(), part_limits, strict=True):
        quotas = class_quotas(np.bincount(part.labels, minlength=len(raw.class_names)).tolist(), part_limit)
        ranks = [seeded_rank(digest, seed) for digest in digests(part)]
        indices: list[int] = []
        for label, quota in enumerate(quotas):
            members = np.flatnonzero(part.labels == label).tolist()
            indices += sorted(members, key=lambda i: ranks[i])[:quota]
        kept[name] = part.take(np.array(sorted(indices), dtype=np.int64))
    return RawImages(raw.name, raw.source, raw.class_names, kept["pool"], kept.get("val"), kept.get("test"), raw.notes)


def _without(part: RawPart, unwanted: set[bytes]) -> tuple[RawPart, int]:
    """The part less the images whose digest is unwanted, and how many those were."""
    if not unwanted:
        return part, 0
    keep = np.array([digest not in unwanted for digest in digests(part)], dtype=bool)
    return part.take(np.flatnonzero(keep)), int((~keep).sum())


def _place(sizes: list[int], wanted: dict[str, float], class_name: str, source: str) -> list[str]:
    """Which part each of one class's groups goes to.

    Groups come in shuffled order; each goes to the first part that still has room for all of it, else to train. A part left empty
    because every group is too large for it then gets the smallest group.
    """
    shares = {name: share for name, share in wanted.items() if share > 0}
    if len(sizes) < len(shares) + 1:
        names = {"test": "test", "val": "validation"}
        needed = ", ".join(["train", *(names[name] for name in shares)])
        raise DataError(
            f"{source}: class '{class_name}' has {sum(sizes)} images, {len(sizes)} of them distinct; "
            f"needs at least {len(shares) + 1} distinct images (one each for {needed}); add images or drop the class"
        )
    room = {name: max(1, floor(sum(sizes) * share + 0.5)) for name, share in shares.items()}
    placed = []
    for size in sizes:
        part = next((name for name in room if room[name] >= size), "train")
        if part != "train":
            room[part] -= size
        placed.append(part)
    for name in [*shares, "train"]:
        if name not in placed:
            smallest = min((i for i, part in enumerate(placed) if placed.count(part) > 1), key=lambda i: (sizes[i], i))
            placed[smallest] = name
    return placed
