"""Where each buffer lies in one shared array of bytes, when their lifetimes are known.

A :class:`Block` is a rectangle: so many bytes, alive over an interval of steps. Packing chooses one offset a block such that no two
blocks alive at the same step share a byte, and the array (the arena) is as short as we can make it. Nobody can go below the liveness
bound, the most bytes alive at one step; finding the shortest arena is NP-hard (dynamic storage allocation), reaching the bound on the
graphs that people run is not.

Nothing here knows about networks: a block may be a tensor, a patch, a row buffer, a gradient, or a weight that lives throughout.
Blocks may be *tied*: they get one common offset, for a result that is written over its operand and may be shorter or longer than it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lilliput.errors import ConfigError

SEARCH_EFFORT = 1_500_000
"""Pairs of blocks: a second or so."""


@dataclass(frozen=True)
class Block:
    """Bytes that are needed over an interval of steps."""

    name: str
    size_bytes: int
    start: int
    """First step at which it is alive."""
    stop: int
    """First step at which it is no longer alive: half open, as in ``range``. Equal to ``start`` where its bytes are always another's."""

    def __post_init__(self) -> None:
        if self.size_bytes < 0:
            raise ConfigError(f"block '{self.name}': size_bytes={self.size_bytes}; must be 0 or more")
        if self.start > self.stop:
            raise ConfigError(
                f"block '{self.name}': alive from {self.start} to {self.stop}; stop may not be before start"
            )


@dataclass(frozen=True)
class Packing:
    """Offsets for a set of blocks, and how good they are."""

    offsets: Mapping[str, int]
    arena_bytes: int
    lower_bound_bytes: int
    """Most bytes alive at one step: no packing of these blocks is shorter."""

    @property
    def ratio(self) -> float:
        """Arena over lower bound; 1.0 is optimal."""
        return self.arena_bytes / self.lower_bound_bytes if self.lower_bound_bytes else 1.0


class PackingError(AssertionError):
    """Offsets break the rules of an arena: a fault of ours, not of what was given."""


def pack(
    blocks: Iterable[Block],
    *,
    alignment: int = 1,
    tied: Iterable[Sequence[str]] = (),
    search_effort: int = SEARCH_EFFORT,
    seed: int = 0,
) -> Packing:
    """Offsets that keep blocks alive at the same step apart, in an arena as short as found.

    Where at most two blocks are ever alive together (every chain) the result is the lower bound. Otherwise greedy orders are tried,
    then a search bounded by ``search_effort``, never by the clock: the same blocks give the same packing on every machine.

    Args:
        blocks: names must differ.
        alignment: every offset is a multiple of it, in bytes.
        tied: groups of names that must get the same offset; no two blocks of a group may be alive at the same step.
        search_effort: most pairs of blocks that the searches may look at after the greedy orders.
        seed: of the search.
    Raises:
        ConfigError: alignment below 1, a name given twice, or a tie that is unknown or alive at the same step.
    Source: lower bound and greedy orders are folklore (Pisarchyk and Lee 2020, arXiv:2001.03288, sections 4 and 5); the search in order of
    offsets follows Moffitt 2023 (MiniMalloc, doi:10.1145/3623278.3624752), without its domination rules and with ties.
    """
    blocks = tuple(blocks)
    if alignment < 1:
        raise ConfigError(f"alignment={alignment}: must be 1 or more bytes; try alignment=4")
    if len({block.name for block in blocks}) != len(blocks):
        names = [block.name for block in blocks]
        raise ConfigError(f"block '{next(n for n in names if names.count(n) > 1)}' is given twice; names must differ")
    groups = [group for group in _groups(blocks, tied) if any(block.size_bytes for block in group)]
    items = _Items(groups, alignment)
    best = _two_ends(items) or _greedy(items)
    if items.height(best) > items.bound:
        best = _improve(items, best, search_effort, random.Random(seed))
    offsets = {block.name: 0 for block in blocks}  # where no byte is needed, it stays so
    offsets |= {block.name: base * alignment for group, base in zip(groups, best, strict=True) for block in group}
    arena_bytes = max((offsets[block.name] + block.size_bytes for block in blocks), default=0)
    return Packing(offsets, arena_bytes, lower_bound(blocks, alignment=alignment))


def lower_bound(blocks: Iterable[Block], *, alignment: int = 1) -> int:
    """Most bytes alive at one step: no arena for these blocks is shorter.

    With an alignment each block but the highest of a step takes a whole number of units.
    """
    blocks = tuple(blocks)
    bound = 0
    for step in {block.start for block in blocks}:  # liveness only rises where a block starts
        alive = [block.size_bytes for block in blocks if block.start <= step < block.stop and block.size_bytes]
        slack = max((-size % alignment for size in alive), default=0)
        bound = max(bound, sum(size + -size % alignment for size in alive) - slack)
    return bound


def free_offset(blocks: Iterable[Block], packing: Packing, step: int, size_bytes: int, alignment: int) -> int | None:
    """The lowest offset at which so many bytes are free during one step; ``None`` where no gap is large enough, or none are needed."""
    if size_bytes == 0:
        return None
    base = 0
    alive = sorted((packing.offsets[b.name], b.size_bytes) for b in blocks if b.start <= step < b.stop and b.size_bytes)
    for first, taken in [*alive, (packing.arena_bytes, 0)]:
        if base + size_bytes <= first:
            return base
        end = max(base, first + taken)
        base = end + -end % alignment
    return None


def verify_packing(
    blocks: Iterable[Block], offsets: Mapping[str, int], arena_bytes: int, *, alignment: int = 1
) -> None:
    """Prove that no two blocks alive at the same step share a byte and that all lie inside the arena.

    Quadratic, and shares no code with :func:`pack`.

    Raises:
        PackingError: names the blocks, their bytes and a step.
    """
    seen: list[Block] = []
    for block in blocks:
        first, end = offsets[block.name], offsets[block.name] + block.size_bytes
        if first < 0 or end > arena_bytes or first % alignment:
            raise PackingError(
                f"block '{block.name}' at bytes {first} to {end}; must lie in 0 to {arena_bytes} at a multiple of {alignment}"
            )
        for other in seen:
            steps = range(max(block.start, other.start), min(block.stop, other.stop))
            shared = range(max(first, offsets[other.name]), min(end, offsets[other.name] + other.size_bytes))
            if steps and shared:
                raise PackingError(
                    f"blocks '{other.name}' and '{block.name}' are both alive at step {steps[0]} "
                    f"and share bytes {shared[0]} to {shared[-1]}"
                )
        seen.append(block)


def _groups(blocks: Sequence[Block], tied: Iterable[Sequence[str]]) -> list[list[Block]]:
    """The blocks, those that are tied together in one list; ties that share a name are merged."""
    by_name = {block.name: block for block in blocks}
    group_of = {name: [block] for name, block in by_name.items()}
    for names in tied:
        for name in names:
            if name not in by_name:
                raise ConfigError(f"tie of '{name}': no such block; blocks are {', '.join(by_name) or 'none'}")
        for first, second in pairwise(names):
            if group_of[first] is not group_of[second]:
                group_of[first].extend(group_of[second])
                for block in tuple(group_of[second]):
                    group_of[block.name] = group_of[first]
    groups = list({id(group): group for group in group_of.values()}.values())
    for group in groups:
        group.sort(key=lambda block: (block.start, block.stop))
        for before, after in pairwise(group):
            if after.start < before.stop:
                raise ConfigError(
                    f"blocks '{before.name}' and '{after.name}' are tied but both alive at step {after.start}; "
                    f"'{after.name}' may start at step {before.stop}"
                )
    return groups


class _Items:
    """What has to be placed: groups of tied blocks, in units of the alignment, with who is in whose way.

    ``above[i][j]`` is how far item j must stay above item i's offset when it lies above it: the most that i takes while j is alive.
    Because both offsets are common to a group, that one number a direction is all that two items have to say to each other.
    """

    def __init__(self, groups: Sequence[Sequence[Block]], alignment: int) -> None:
        rectangles = [[(-(-b.size_bytes // alignment), b.start, b.stop) for b in group] for group in groups]
        self.count = len(groups)
        self.size = [max(size for size, _, _ in group) for group in rectangles]
        self.start = [group[0][1] for group in rectangles]
        self.length = [sum(stop - start for _, start, stop in group) for group in rectangles]
        self.area = [sum(size * (stop - start) for size, start, stop in group) for group in rectangles]
        self.above: list[dict[int, int]] = [{} for _ in groups]
        live = sorted(
            (start, stop, size, i)
            for i, group in enumerate(rectangles)
            for size, start, stop in group
            if size and start < stop
        )
        running: list[tuple[int, int, int]] = []
        self.bound = 0
        self.crowds: list[list[tuple[int, int]]] = []  # at each step where something starts: (item, size) alive
        for start, stop, size, i in live:
            running = [entry for entry in running if entry[0] > start]
            for _, other_size, j in running:
                self.above[i][j] = max(self.above[i].get(j, 0), size)
                self.above[j][i] = max(self.above[j].get(i, 0), other_size)
            running.append((stop, size, i))
            self.bound = max(self.bound, sum(entry[1] for entry in running))
            crowd = [(entry[2], entry[1]) for entry in running]
            if self.crowds and crowd[: len(self.crowds[-1])] == self.crowds[-1]:
                self.crowds.pop()  # a larger crowd says all that a smaller one does
            self.crowds.append(crowd)

    def orders(self) -> list[list[int]]:
        """Orders in which to place them, the most telling first."""
        crowded = [0] * self.count
        for crowd in self.crowds:
            for i, _ in crowd:
                crowded[i] = max(crowded[i], sum(size for _, size in crowd))
        keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
            lambda i: (-self.area[i], -self.size[i]),
            lambda i: (-self.length[i], -self.area[i]),
            lambda i: (-self.size[i], -self.length[i]),
            lambda i: (self.start[i], -self.size[i]),
            lambda i: (-crowded[i], -self.area[i]),
        )
        return [sorted(range(self.count), key=key) for key in keys]

    def height(self, offsets: Sequence[int]) -> int:
        """Units that these offsets take."""
        return max((offset + size for offset, size in zip(offsets, self.size, strict=True)), default=0)

    def legal(self, offsets: Sequence[int]) -> bool:
        """No two items in each other's way."""
        return all(
            offsets[i] + need <= offsets[j] or offsets[j] + self.above[j][i] <= offsets[i]
            for i in range(self.count)
            for j, need in self.above[i].items()
        )


def _two_ends(items: _Items) -> list[int] | None:
    """The exact answer where no three items are alive together: neighbours in time lie at opposite ends of the bound.

    Items of which at most two meet form a bipartite graph (an interval graph has no cycle without a chord, so without a
    triangle it has no cycle at all). One side lies at offset 0, the other ends at the bound, and two that meet fit side by
    side by the bound's definition. With ties of unequal sizes that last step may fail; then None.
    """
    side: list[int | None] = [None] * items.count
    for root in sorted(range(items.count), key=lambda i: -items.size[i]):
        if side[root] is None:
            side[root], queue = 0, [root]
            while queue:
                i = queue.pop()
                for j in items.above[i]:
                    if side[j] is None:
                        side[j] = 1 - side[i]  # type: ignore[operator]
                        queue.append(j)
                    elif side[j] == side[i]:
                        return None
    offsets = [items.bound - items.size[i] if side[i] else 0 for i in range(items.count)]
    return offsets if items.legal(offsets) else None


def _greedy(items: _Items) -> list[int]:
    """Best of several orders, each with several rules for choosing among the free gaps."""
    best: list[int] = []
    for order in items.orders():
        for rule in (_lowest, _tightest, _alternating):
            offsets = _place(items, order, rule)
            if not best or items.height(offsets) < items.height(best):
                best = offsets
            if items.height(best) <= items.bound:
                return best
    return best


Gap = tuple[int, int]
"""First and last legal offset for an item. The last gap is open above; we end it where the item would touch the bound."""


def _place(items: _Items, order: Sequence[int], rule: Callable[[list[Gap], int], int]) -> list[int]:
    """One item after the other, each where the rule says."""
    offsets = [-1] * items.count
    for rank, i in enumerate(order):
        taken = sorted(
            (offsets[j] - need, offsets[j] + items.above[j][i]) for j, need in items.above[i].items() if offsets[j] >= 0
        )
        base, gaps = 0, []
        for last, after in taken:
            if last >= base:
                gaps.append((base, last))
            base = max(base, after)
        gaps.append((base, max(base, items.bound - items.size[i])))
        offsets[i] = rule(gaps, rank)
    return offsets


def _lowest(gaps: list[Gap], rank: int) -> int:
    return gaps[0][0]


def _tightest(gaps: list[Gap], rank: int) -> int:
    return min(gaps, key=lambda gap: gap[1] - gap[0])[0]


def _alternating(gaps: list[Gap], rank: int) -> int:
    return gaps[-1][1] if rank % 2 else gaps[0][0]


def _improve(items: _Items, best: list[int], effort: int, rng: random.Random) -> list[int]:
    """Search for a lower arena, first at the bound itself, then between it and what is known to be possible.

    A depth-first search either meets its target soon or hardly ever (its running times have a heavy tail), so it is given little and
    restarted with another order: on random graphs that found the bound where twenty times the effort on one order did not.
    """
    descent = items.count**2 + sum(len(crowd) ** 2 for crowd in items.crowds)  # one way down without a wrong turn
    patience = min(effort // 8, 3 * descent)
    lowest = target = items.bound
    while lowest < items.height(best) and effort > patience:
        for attempt in range(effort // 2 // patience):
            noise = [2 ** rng.gauss(0, 1) if attempt else 1.0 for _ in range(items.count)]
            order = sorted(range(items.count), key=lambda i: -items.area[i] * noise[i])
            found, spent = _ascend(items, order, target, patience)
            effort -= spent
            if found:
                best = found
            if found or spent < patience:  # found, or proved that there is none
                break
        else:
            best = _climb(items, best, effort // 8, rng)
            effort -= effort // 8
        if items.height(best) > target:
            lowest = target + 1
        target = (lowest + items.height(best)) // 2
    return best


def _ascend(items: _Items, order: Sequence[int], target: int, effort: int) -> tuple[list[int], int]:
    """Depth-first search for offsets within the target, and the effort spent.

    Nothing is found when there are none, which is proved if effort was left over, or when the effort is spent.

    Items are placed from the bottom up, each directly on top of what is below it: pushing items down turns any packing into one that
    this finds. A branch ends when an unplaced item would fit whole under the chosen one, or when the items alive at a step cannot
    stack up within the target any more.
    """
    offsets, floor = [-1] * items.count, [0] * items.count
    crowds_of: list[list[list[tuple[int, int]]]] = [[] for _ in offsets]
    for crowd in items.crowds:
        for i, _ in crowd:
            crowds_of[i].append(crowd)

    def choices(level: int, crowds: list[list[tuple[int, int]]]) -> Iterator[int]:
        for crowd in crowds:
            waiting = [(max(level, floor[i]), size) for i, size in crowd if offsets[i] < 0]
            if waiting and min(waiting)[0] + sum(size for _, size in waiting) > target:
                return iter(())
        waiting_items = [i for i in order if offsets[i] < 0]
        ceiling = min((max(level, floor[i]) + items.size[i] for i in waiting_items), default=0)
        return iter([i for i in waiting_items if level <= floor[i] < ceiling and floor[i] + items.size[i] <= target])

    trail: list[tuple[int, list[tuple[int, int]]]] = []
    branches = [choices(0, items.crowds)]
    spent = 0
    while branches and spent < effort:
        i = next(branches[-1], -1)
        if i < 0:
            branches.pop()
            if trail:
                last, raised = trail.pop()
                offsets[last] = -1
                for j, before in raised:
                    floor[j] = before
            continue
        offsets[i] = floor[i]
        raised = [(j, floor[j]) for j in items.above[i] if offsets[j] < 0 and floor[j] < floor[i] + items.above[i][j]]
        for j, _ in raised:
            floor[j] = floor[i] + items.above[i][j]
        trail.append((i, raised))
        if len(trail) == items.count:
            return offsets, spent
        branches.append(choices(floor[i], crowds_of[i]))
        spent += items.count + sum(len(crowd) for crowd in crowds_of[i])
    return [], spent


def _climb(items: _Items, best: list[int], effort: int, rng: random.Random) -> list[int]:
    """Local search over orders: an item that sticks out above the bound, or one in its way, is placed earlier."""
    order = sorted(range(items.count), key=lambda i: (best[i], -items.size[i]))
    cost = items.count + sum(len(near) for near in items.above)
    current = best
    while effort > 0 and items.height(best) > items.bound:
        effort -= cost
        item = rng.choice([i for i in range(items.count) if current[i] + items.size[i] > items.bound])
        if rng.random() < 0.5 and items.above[item]:
            item = rng.choice(list(items.above[item]))
        changed = [i for i in order if i != item]
        changed.insert(rng.randint(0, order.index(item)), item)
        offsets = _place(items, changed, _lowest)
        if items.height(offsets) <= items.height(current):
            order, current = changed, offsets
            best = min(best, current, key=items.height)
    return best
