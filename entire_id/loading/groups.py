"""Identity-balanced batches by number: rows are cut into groups of K crops of a person, groups are put into batches.

The work of `PKSampler` and of the PK stream, on arrays of identities alone: no image is touched, and the same generator
gives the same batches.

    rows ── cut_groups ──► groups of K ── arrange ──────────────────► batches of P groups, nobody twice in a batch
                                      └── draw_batches (a Pool) ────► the same from a stream that fits no memory
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from entire_id.errors import SamplingError
from entire_id.loading.integers import Integers, Numbers, codes_of, count_values, dense, order_of, runs

__all__ = [
    "Batches",
    "Groups",
    "Numbers",
    "Pool",
    "arrange",
    "batch_sizes",
    "check_at_least",
    "cut_groups",
    "draw_batches",
    "group_pids",
    "num_full_batches",
]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Groups of K crops of one identity, in the order of the identities.

    Every row is in exactly one group, padding aside.

    Attributes:
        pids: (g,) int64 identity of each group, ascending.
        rows: (g, k) int64 row numbers.
        num_padded: (g,) int64 in [0, k): so many of its last places are padding: rows that other places hold, too.
    """

    pids: Numbers
    rows: Numbers
    num_padded: Numbers

    def __len__(self) -> int:
        return len(self.pids)


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Group numbers, batch after batch.

    Attributes:
        groups: (g,) int64 numbers of groups.
        offsets: (b + 1,) int64: batch i is groups[offsets[i] : offsets[i + 1]].

    Example:
        >>> batches = Batches(np.array([2, 0, 1]), np.array([0, 2, 3]))
        >>> len(batches), batches[0].tolist()
        (2, [2, 0])
    """

    groups: Numbers
    offsets: Numbers

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Numbers:
        return self.groups[self.offsets[number] : self.offsets[number + 1]]


def check_at_least(least: int, **values: int) -> None:
    """Check numbers that were given, by name.

    Raises:
        SamplingError: one of them is below `least`.
    """
    for name, value in values.items():
        if value < least:
            raise SamplingError(f"{name} {value!r} is not at least {least}")


def _count_people(pids: Integers) -> tuple[Integers, Numbers]:
    people, sizes = count_values(pids)
    first = np.searchsorted(people, 0)
    return people[first:], sizes[first:]


def group_pids(pids: Integers, k: int) -> Numbers:
    """Return the identity of every group that `cut_groups` makes of such rows, (g,) int64, without making them.

    >>> group_pids(np.array([7, -1, 7, 7, 5]), 2)
    array([5, 7, 7])
    """
    people, sizes = _count_people(pids)
    return np.repeat(people.astype(np.int64), -(-sizes // k))


def cut_groups(
    pids: Integers, k: int, rng: np.random.Generator, camids: Integers | None = None, seqs: Integers | None = None
) -> Groups:
    """Cut the rows of each identity into groups of `k`; identities below 0 (junk, unlabelled) are left out.

    Of n rows of an identity, n // k · k chosen at random are dealt round and round to n // k groups, camera after
    camera and sequence after sequence, so that a group spreads over both. The others make one more group, padded with
    other rows of the identity, and with repeats only where it has fewer than `k` rows.

    Args:
        pids: (n,) identities.
        k: crops in a group, at least 1.
        rng: the only source of chance; it is used the same way whatever `camids` and `seqs` are.
        camids: (n,) cameras, or None.
        seqs: (n,) sequences, or None.

    Raises:
        SamplingError: k is below 1, or the arrays differ in length.
    """
    _check_rows(pids, k, camids=camids, seqs=seqs)
    people, sizes = _count_people(pids)
    drawn = rng.permutation(np.flatnonzero(pids >= 0))
    drawn = drawn[order_of(pids[drawn])]
    columns = [column for column in (camids, seqs) if column is not None]
    dealt = _spread(drawn, sizes, k, columns) if columns else drawn

    starts, num_full, num_left = np.cumsum(sizes) - sizes, sizes // k, sizes % k
    num_groups = num_full + (num_left > 0)
    person = np.repeat(np.arange(len(sizes)), num_groups)
    number = np.arange(len(person)) - np.repeat(np.cumsum(num_groups) - num_groups, num_groups)
    rows = np.empty((len(person), k), np.int64)
    places, step = starts[person] + number, num_full[person]
    for column in rows.T:  # one after the other, for (g, k) numbers of places are slow to make
        column[:] = dealt[places]
        places += step
    padded = number == step
    of = person[padded, None]
    past = np.arange(k) - num_left[of]  # below 0 for the rows that are left, then a count of the padding
    rows[padded] = drawn[starts[of] + np.where(past < 0, sizes[of] + past, past % sizes[of])]
    num_padded = np.where(padded, k - num_left[person], 0)
    return Groups(people.astype(np.int64)[person], rows, num_padded)


def arrange(pids: Integers, p: int, rng: np.random.Generator, num_batches: int | None = None) -> Batches:
    """Put all groups into batches of at most `p`, no identity twice in a batch.

    With g groups, of which one identity has m, there are max(⌈g / p⌉, m) batches, or `num_batches` if that is more.
    They are full but for the last one wherever that is possible; else their sizes differ by 1 at most, the larger ones
    first. So the sizes follow from the counts of the identities, not from chance.

    Args:
        pids: (g,) identity of each group.
        p: groups in a batch, at least 1.
        rng: the only source of chance.
        num_batches: at least so many.

    Raises:
        SamplingError: p is below 1, or there are fewer groups than batches asked for.
    """
    check_at_least(1, p=p)
    person, num_people = dense(pids)
    sizes = batch_sizes(np.bincount(person), p, num_batches)
    rank = rng.permutation(num_people)[person].astype(np.min_scalar_type(num_people))  # 16 bits: a radix sort
    order = np.argsort(rank, kind="stable")
    if not len(sizes) or sizes[0] - sizes[-1] <= 1:
        return _dealt(order, rank[order], len(sizes), rng)
    last = _last_batch(np.bincount(rank), len(sizes) - 1, int(sizes[-1]), rng)
    body = np.delete(order, last)
    batches = _dealt(body, rank[body], len(sizes) - 1, rng)
    return Batches(np.concatenate([batches.groups, order[last]]), np.append(batches.offsets, len(order)))


def batch_sizes(held: Integers, p: int, num_batches: int | None = None) -> Numbers:
    """Return the sizes of the batches that `arrange` makes of `held` groups of each identity, (b,) int64.

    >>> batch_sizes(np.array([2, 2, 2, 1]), 3), batch_sizes(np.array([4, 1, 1]), 3)
    (array([3, 3, 1]), array([2, 2, 1, 1]))

    Raises:
        SamplingError: p is below 1, or there are fewer groups than batches asked for.
    """
    check_at_least(1, p=p)
    num_groups, most = int(held.sum()), int(held.max(initial=0))
    num_full, num_left = divmod(num_groups, p)
    least = num_full + (num_left > 0)
    wanted = max(least, most, num_batches or 0)
    if wanted > num_groups:
        raise SamplingError(f"{num_groups} groups cannot make {wanted} batches: one batch needs one group at least")
    # Whoever holds a group for every batch must be in the last one, too.
    if wanted == least and np.count_nonzero(held > num_full) <= num_left:
        return np.repeat([p, num_left], [num_full, min(num_left, 1)])
    return num_groups // wanted + (np.arange(wanted) < num_groups % wanted).astype(np.int64)


def num_full_batches(held: Integers, p: int, most: int) -> int:
    """Return how many full batches can be made of `held` groups of each identity, `most` at most.

    Of an identity, m batches take m groups at most. What they can take in all, less the m · p that they need, is
    concave in m and 0 at 0: every number up to the answer will do, and none beyond.
    """
    return bisect_right(range(1, most + 1), False, key=lambda m: int(np.minimum(held, m).sum()) < m * p)


class Pool:
    """Groups that wait to be drawn, of a stream that brings more of them.

    What is drawn leaves a pool that can be drained: an identity with many groups takes part in time. It is replayed
    from its generator, so it has no state to store.
    """

    def __init__(self, p: int, rng: np.random.Generator) -> None:
        """Make an empty pool for batches of `p` groups.

        Raises:
            SamplingError: p is below 1.
        """
        check_at_least(1, p=p)
        self.p = p
        self._rng = rng
        self._pids = np.empty(0, np.int64)
        self._numbers = np.empty(0, np.int64)
        self._num_added = 0

    def __len__(self) -> int:
        """Groups that wait."""
        return len(self._pids)

    def add(self, pids: Integers) -> range:
        """Add groups of these identities; return their numbers, which go on from the last call's."""
        numbers = range(self._num_added, self._num_added + len(pids))
        self._pids = np.concatenate([self._pids, pids.astype(np.int64)])
        self._numbers = np.concatenate([self._numbers, np.asarray(numbers, np.int64)])
        self._num_added = numbers.stop
        return numbers

    def release(self, num_batches: int) -> Batches:
        """Draw up to `num_batches` full batches; fewer, or none, where the identities that wait allow no more.

        Groups are drawn uniformly from all that wait, with two limits. Of an identity no more than there are batches
        are drawn. And with `need` = ⌈groups / p⌉ batches left in the pool, one that holds more groups than the
        need − num_batches batches to come gives the rest of them now.
        """
        shuffled = self._rng.permutation(len(self))
        self._pids, self._numbers = self._pids[shuffled], self._numbers[shuffled]
        order = order_of(self._pids)
        starts, held = runs(self._pids[order])
        num_batches = num_full_batches(held, self.p, num_batches)
        need = -(-len(self) // self.p)
        # What must be given fits. For held ≤ need, held - (need - b) ≤ b · held / need: both are linear in held, the
        # left one is 0 at need - b, and they meet at need. For held > need, b ≤ b · held / need. The sum of
        # b · held / need over all identities is b · groups / need ≤ b · p.
        must = np.repeat(np.clip(held - (need - num_batches), 0, num_batches), held)
        rank = np.arange(len(order)) - np.repeat(starts, held)
        forced, free = order[rank < must], order[(rank >= must) & (rank < num_batches)]
        # The order is random, so the first that may be drawn are as good as any.
        return self._taken(np.concatenate([forced, np.sort(free)[: num_batches * self.p - len(forced)]]))

    def drain(self, num_batches: int | None = None) -> Batches:
        """Put all that waits into batches: as many as `arrange` needs, or `num_batches` if that is more.

        Raises:
            SamplingError: more batches are asked for than groups wait.
        """
        return self._taken(np.arange(len(self)), num_batches)

    def _taken(self, places: Numbers, num_batches: int | None = None) -> Batches:
        batches = arrange(self._pids[places], self.p, self._rng, num_batches)
        groups = self._numbers[places][batches.groups]
        self._pids, self._numbers = np.delete(self._pids, places), np.delete(self._numbers, places)
        return Batches(groups, batches.offsets)


def draw_batches(
    units: Iterable[Integers],
    p: int,
    pool_groups: int,
    rng: np.random.Generator,
    num_batches: Callable[[], int] | None = None,
) -> Iterator[Batches]:
    """Yield the batches of a stream, some at a time: every group of every unit once, nobody twice in a batch.

    A unit is taken only when batches need it: while fewer than `pool_groups` groups wait, or too few identities for one
    batch. All batches hold `p` groups but those of the last `Batches`, which `arrange` describes. The draw asks for
    identities only, so the batches of an epoch can be counted, or replayed up to a place, without reading a crop.

    Args:
        units: the identities of the groups of each unit, as `group_pids` or `cut_groups` gives them.
        p: groups in a batch.
        pool_groups: groups that wait at most, the last unit's aside, while `p` identities wait.
        rng: the only source of chance.
        num_batches: tells how many batches there shall be in all, for streams that end together; asked when the units
            are used up. As few as possible if None.

    Yields:
        Numbers of groups, counted from 0 in the order in which the units brought them.

    Raises:
        SamplingError: the groups cannot make exactly `num_batches` batches.
    """
    pool, num_released = Pool(p, rng), 0
    for pids in units:
        pool.add(pids)
        while len(pool) >= pool_groups and len(batches := pool.release((len(pool) - pool_groups) // p + 1)):
            num_released += len(batches)
            yield batches
    wanted = num_batches() if num_batches is not None else None
    if wanted is not None and wanted - num_released > len(pool):
        what = f"{len(pool)} groups are left for {wanted - num_released} batches, which another lane still makes"
        raise SamplingError(f"{what}; a selection may leave few crops in one. Use fewer lanes or workers")
    batches = pool.drain(None if wanted is None else wanted - num_released)
    num_made = num_released + len(batches)
    if wanted not in (None, num_made):
        raise SamplingError(f"the groups make {num_made} batches at least, {wanted} were asked for")
    yield batches


def _check_rows(pids: Integers, k: int, **columns: Integers | None) -> None:
    check_at_least(1, k=k)
    for name, column in columns.items():
        if column is not None and column.shape != pids.shape:
            raise SamplingError(f"{name} has shape {column.shape}, pids has {pids.shape}; every row needs one of each")


def _spread(drawn: Numbers, sizes: Numbers, k: int, columns: list[Integers]) -> Numbers:
    """Return `drawn`, identity after identity, its rows in full groups sorted by `columns` before the others."""
    num_full_rows = sizes // k * k
    halves = np.stack([num_full_rows, sizes - num_full_rows], axis=1).ravel()
    half = np.repeat(np.arange(len(halves)), halves)
    return drawn[order_of(half, codes_of(*columns)[0][drawn])]


def _last_batch(held: Integers, num_full: int, size: int, rng: np.random.Generator) -> Numbers:
    """Return `size` places of different identities for a batch that is not full.

    Whoever holds more groups than there are full batches is in it. The others come as if groups were drawn one by one:
    the first of n exponential waits is 1 / n as long, so the shortest waits are a draw in proportion to n.

    Args:
        held: groups of each identity; the places of an identity follow one another in the same order.
        num_full: full batches.
        size: places to return.
        rng: the only source of chance.
    """
    waits = rng.standard_exponential(len(held)) / held
    waits[held > num_full] = -1
    chosen = np.argsort(waits, kind="stable")[:size]
    return (np.cumsum(held) - held + rng.integers(held))[chosen]


def _dealt(groups: Numbers, rank: Integers, num_batches: int, rng: np.random.Generator) -> Batches:
    """Deal groups to batches, a round of one group for every batch after the other, each round in an order of its own.

    Args:
        groups: numbers of groups; those of an identity follow one another, and are no more than `num_batches`.
        rank: ascending number of the identity of each.
        num_batches: batches.
        rng: the only source of chance.
    """
    num_rounds = -(-len(groups) // max(num_batches, 1))
    rounds = rng.permuted(np.tile(np.arange(num_batches), (num_rounds, 1)), axis=1)
    for number in range(1, num_rounds):
        start = number * num_batches
        if rank[start - 1] == rank[start]:  # this identity is in both rounds
            num_before = start - np.searchsorted(rank, rank[start])
            num_after = np.searchsorted(rank, rank[start], side="right") - start
            _keep_apart(rounds[number - 1, -num_before:], rounds[number], int(num_after), rng)
    table = np.full((num_batches, num_rounds), -1)
    places = np.arange(len(groups))
    table[rounds.ravel()[: len(groups)], places // max(num_batches, 1)] = places
    _mix(table, rank, rng)
    sizes = np.count_nonzero(table >= 0, axis=1)
    table = table[np.argsort(-sizes, kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.sort(sizes)[::-1])])
    return Batches(groups[table[table >= 0]], offsets)


def _mix(table: Numbers, rank: Integers, rng: np.random.Generator) -> None:
    """Swap groups between batches, in place: identities of the same round, who did not meet, now can.

    Without it, one in P pairs of identities would not be in a batch together, however many groups they have. With one
    swap of a batch for every four places, what is lost is too little to count.

    Args:
        table: (b, rounds) places of the groups of each batch, -1 where it holds one less.
        rank: number of the identity at each place.
        rng: the only source of chance.
    """
    (num_batches, num_rounds), half = table.shape, len(table) // 2
    num_full = len(rank) // max(num_batches, 1)  # rounds without a -1
    if not half or not num_full:
        return
    people = np.append(rank, rank[-1] + 1)[table]
    orders = rng.permuted(np.tile(np.arange(num_batches), (-(-num_rounds // 4), 1)), axis=1)
    for order, (column, other_column) in zip(orders, rng.integers(num_full, size=(len(orders), 2, half)), strict=True):
        row, other_row = order[:half], order[half : 2 * half]
        person, other_person = people[row, column], people[other_row, other_column]
        twice = (people[other_row] == person[:, None]).any(1) | (people[row] == other_person[:, None]).any(1)
        one, other = (row[~twice], column[~twice]), (other_row[~twice], other_column[~twice])
        table[one], table[other] = table[other], table[one]
        people[one], people[other] = people[other], people[one]


def _keep_apart(before: Numbers, after: Numbers, num: int, rng: np.random.Generator) -> None:
    """Change the order `after`, so that none of its first `num` batches is in `before`: such go to random later places.

    Batches in neither are swapped for them. There are enough: the identity is in no more batches than there are.
    """
    taken = np.zeros(len(after), bool)
    taken[before] = True
    in_both = np.flatnonzero(taken[after[:num]])
    if len(in_both):
        others = num + np.flatnonzero(~taken[after[num:]])
        swapped = rng.choice(others, len(in_both), replace=False)
        after[in_both], after[swapped] = after[swapped], after[in_both]
