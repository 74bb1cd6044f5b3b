"""Identity-balanced (PK) batches of rows of a map-style data set: P identities, K crops of each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from entire_id.errors import SamplingError
from entire_id.loading.dataset import Draw
from entire_id.loading.groups import (
    Batches,
    Pool,
    arrange,
    batch_sizes,
    check_at_least,
    cut_groups,
    num_full_batches,
)
from entire_id.loading.integers import Integers, Numbers, count_values
from entire_id.loading.quotas import class_rows, draw_quota, num_quota_batches

__all__ = ["PKSampler", "check_people", "check_state", "place_of_process"]


class PKSampler:
    """The `batch_sampler` of a torch `DataLoader`: lists of row numbers, K rows of each of P identities.

    A row number is a `Draw`: from it a transform of `CropDataset` draws the same random numbers in a resumed run.

    In an epoch every crop is seen once; where K does not divide the crops of an identity, others of them fill up its
    last group. Nobody is in a batch twice. Rows with a pid below 0 (junk, unlabelled) are left out. The K crops of an
    identity spread over cameras and sequences where these are given.

    The order of batches follows from (seed, epoch), whatever the world size: batch i goes to rank i mod world size. All
    ranks take the same number of steps, and every batch holds P identities but at the end: what is left for the last
    step is shared evenly by the ranks, together with the step before if it would not half fill their batches. Batches
    are smaller throughout only if so few identities have so many of the crops that no order could fill them.

    Nothing else must split the batches again: leave such a loader out of Accelerate's `prepare`, for example, or give
    rank 0 and world_size 1 here.

    Attributes:
        epoch: what an iteration draws, at least 0. It moves on by itself after a whole iteration.
        rank: of this process, in [0, world_size).
        world_size: number of processes.
        num_repeated_groups: groups that an epoch shows beyond those that show every crop; above 0 with quotas only.

    Example:
        >>> sampler = PKSampler([7, 7, 7, 7, 5, 5, -1, 9, 9], p=3, k=2, rank=0, world_size=1)
        >>> len(sampler), [len(rows) for rows in sampler]
        (2, [4, 4])
    """

    def __init__(  # noqa: PLR0913 options of one thing
        self,
        pids: npt.ArrayLike,
        p: int = 16,
        k: int = 4,
        *,
        camids: npt.ArrayLike | None = None,
        seqs: npt.ArrayLike | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        classes: npt.ArrayLike | None = None,
        quotas: Mapping[str, int] | None = None,
    ) -> None:
        """Count what an epoch holds; it is drawn when its first batch is asked for.

        Args:
            pids: (n,) integers, the identity of each row.
            p: identities in a batch.
            k: crops of each.
            camids: (n,) integers, the camera of each row, or None.
            seqs: (n,) integers, the sequence of each row, or None.
            seed: of every draw, at least 0.
            rank: of this process. If it and `world_size` are None, they come from `torch.distributed` where it is in
                use, else from the environment (RANK and WORLD_SIZE, as launchers set them), else they are 0 and 1.
            world_size: number of processes.
            drop_last: give full batches only, as many as the identities allow, and the same number to every rank.
            classes: (n,) class of each row, its continent or source say; together with `quotas`.
            quotas: how many identities of each class a batch holds; their sum is `p`. Classes that run out are cut
                into new groups until every crop of the others was seen. If the last batches are fewer than the ranks,
                the first ones are given again.

        Raises:
            SamplingError: p or k is below 1, the seed below 0; arrays are no integers or differ in length; there are
                fewer identities than `p` or a quota asks for, or too few groups for all ranks; quotas and classes do
                not fit.
        """
        self._pids = _integers("pids", pids)
        self._camids = None if camids is None else _integers("camids", camids, len(self._pids))
        self._seqs = None if seqs is None else _integers("seqs", seqs, len(self._pids))
        check_at_least(1, p=p, k=k)
        check_at_least(0, seed=seed)
        self._p, self._k, self._seed, self._drop_last = p, k, seed, drop_last
        self._quotas = dict(quotas or {})
        self.rank, self.world_size = place_of_process(rank, world_size)
        classed = classes is not None or quotas is not None
        self._parts = class_rows(self._pids, classes, quotas, p) if classed else []
        self._held = [_num_groups(pids, k) for pids in ([self._pids[part] for part in self._parts] or [self._pids])]
        check_people(sum(map(len, self._held)), p, "(pids of 0 or more)")
        self._steps = self._plan(self.world_size)
        num_shown = p * max(self._steps.num_batches, self._steps.num_whole * self.world_size)
        self.num_repeated_groups = num_shown - sum(int(held.sum()) for held in self._held) if classed else 0
        self._digest = _digest([self._pids, self._camids, self._seqs, *self._parts])
        self.epoch = 0
        self._start = 0  # steps of this epoch that were done before it was resumed
        self._num_handed = 0
        self._ended = False
        self._drawn: _Epoch | None = None

    def __len__(self) -> int:
        """Batches that an iteration gives this rank: those of an epoch, or of what is left of a resumed one."""
        return self._steps.num_whole + self._steps.num_shared - self._start

    def __iter__(self) -> Iterator[list[int]]:
        """Return the batches of the epoch, or of the next one if this one was given whole."""
        if self._ended:
            self.epoch, self._start = self.epoch + 1, 0
        self._num_handed, self._ended = 0, False
        return self._batches(self.epoch, self._start)

    def set_epoch(self, epoch: int) -> None:
        """Draw `epoch`, at least 0, from the next iteration on.

        A resumed epoch goes on where it was if `epoch` is the same; else it is drawn whole.
        """
        check_at_least(0, epoch=epoch)
        if epoch != self.epoch or self._ended:
            self._start = 0
        self.epoch, self._num_handed, self._ended = epoch, 0, False

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Return where this epoch is, as plain values; the same on every rank.

        Args:
            num_batches: batches that the training loop has finished since it began to iterate. A `DataLoader` with
                workers asks for batches ahead of the loop, so only the loop knows. None counts what was asked for: that
                is right without workers, and for loaders that keep this state with each batch.

        Raises:
            SamplingError: num_batches is not in [0, len(self)].
        """
        num_done = self._num_handed if num_batches is None else num_batches
        if not 0 <= num_done <= len(self):
            raise SamplingError(f"num_batches {num_batches!r} is not in 0..{len(self)}, the batches of this iteration")
        place = {"epoch": self.epoch, "num_batches": self._start + num_done, "world_size": self.world_size}
        return place | self._facts()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken: `len` and the next iteration are of the rest of that epoch.

        Another world size will do if the batches that all ranks had finished are whole steps of it.

        Raises:
            SamplingError: the state is not of such a sampler of the same rows, or of a place in the epoch that another
                world size does not have.
        """
        check_state(state, "sampler", ("epoch", "num_batches", "world_size"), self._facts())
        self._start = self._step_after(state["num_batches"], state["world_size"])
        self.epoch, self._num_handed, self._ended = state["epoch"], 0, False

    def _facts(self) -> dict[str, Any]:
        """What must be the same for a state to fit."""
        return {
            "num_rows": len(self._pids),
            "p": self._p,
            "k": self._k,
            "seed": self._seed,
            "drop_last": self._drop_last,
            "quotas": dict(self._quotas),
            "digest": self._digest,
        }

    def _plan(self, world_size: int) -> _Steps:
        """Return the steps of an epoch; they are the same for all epochs."""
        if self._quotas:
            num_batches = num_quota_batches(self._held, list(self._quotas.values()))
            num_whole = num_batches // world_size if self._drop_last else -(-num_batches // world_size)
        elif self._drop_last:
            num_batches = num_full_batches(self._held[0], self._p, int(self._held[0].sum()) // self._p)
            num_whole = num_batches // world_size
        else:
            return _shared_steps(batch_sizes(self._held[0], self._p), world_size)
        if not num_whole:
            what = f"only {num_batches} full batches can be made, fewer than the {world_size} ranks"
            raise SamplingError(f"drop_last leaves nothing: {what}. Leave drop_last out, or take a smaller p")
        return _Steps(num_batches, num_whole, 0)

    def _step_after(self, num_steps: int, world_size: int) -> int:
        """Return the step that follows `num_steps` steps of `world_size` ranks."""
        if world_size == self.world_size:
            return num_steps
        steps, (num_done, rest) = self._plan(world_size), divmod(num_steps * world_size, self.world_size)
        if num_steps == steps.num_whole + steps.num_shared:
            return self._steps.num_whole + self._steps.num_shared
        if rest or num_steps > steps.num_whole or num_done > self._steps.num_whole:
            raise SamplingError(
                f"the state is after step {num_steps} of {world_size} ranks, which is no whole number of steps of "
                f"{self.world_size}. Resume with {world_size} ranks, or from the end of an epoch"
            )
        return num_done

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        num_steps = self._steps.num_whole + self._steps.num_shared
        # Of a rest that is empty this is only said when it is asked for: a loader with workers calls `iter` twice.
        self._ended = start == num_steps
        for step in range(start, num_steps):
            batch = step * self.world_size + self.rank
            rows = self._draw(epoch).rows_of(batch).tolist()
            self._num_handed = step + 1 - start
            self._ended = step + 1 == num_steps
            # One more than the batch: with 0 a first crop would share the generator of the epoch itself.
            yield [Draw(row, (self._seed, epoch, batch + 1, place)) for place, row in enumerate(rows)]

    def _draw(self, epoch: int) -> _Epoch:
        if self._drawn is None or self._drawn.number != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            rows, batches = self._draw_quotas(rng) if self._quotas else self._draw_all(rng)
            num_whole = self._steps.num_whole * self.world_size
            num_shared = self._steps.num_shared * self.world_size
            left = batches.groups[batches.offsets[min(num_whole, len(batches))] :]
            # In the order of the identities and dealt one by one, an identity is nowhere twice: it is in each of the
            # batches that are left once at most, and no fewer are made of them.
            left = left[np.argsort(self._pids[rows[left, 0]], kind="stable")]
            self._drawn = _Epoch(epoch, rows, batches, num_whole, [left[n::num_shared] for n in range(num_shared)])
        return self._drawn

    def _draw_all(self, rng: np.random.Generator) -> tuple[Numbers, Batches]:
        groups = cut_groups(self._pids, self._k, rng, self._camids, self._seqs)
        if not self._drop_last:
            return groups.rows, arrange(groups.pids, self._p, rng)
        pool = Pool(self._p, rng)
        pool.add(groups.pids)
        return groups.rows, pool.release(self._steps.num_batches)

    def _draw_quotas(self, rng: np.random.Generator) -> tuple[Numbers, Batches]:
        num_batches = self._steps.num_batches
        drawn = []
        for part, quota in zip(self._parts, self._quotas.values(), strict=True):
            columns = [None if column is None else column[part] for column in (self._camids, self._seqs)]
            drawn.append(part[draw_quota(self._pids[part], self._k, rng, columns, (num_batches, quota))])
        rows = np.concatenate(drawn, axis=1).reshape(num_batches * self._p, self._k)
        return rows, Batches(np.arange(len(rows)), np.arange(num_batches + 1) * self._p)


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of an epoch; in each, every rank takes one batch.

    Attributes:
        num_batches: batches that are drawn, in the order that all world sizes have.
        num_whole: steps that take the next of them for each rank.
        num_shared: steps after these, in which the ranks share the identities of the batches that are left.
    """

    num_batches: int
    num_whole: int
    num_shared: int


@dataclass(frozen=True, slots=True, eq=False)
class _Epoch:
    """A drawn epoch: groups of rows, and the batches that all ranks take, step after step.

    Attributes:
        number: of the epoch.
        rows: (g, k) int64 row numbers of each group.
        batches: numbers of groups in the order that all world sizes have.
        num_whole: how many are taken as they are; from the first again where there are not so many.
        shared: numbers of groups of each batch after them.
    """

    number: int
    rows: Numbers
    batches: Batches
    num_whole: int
    shared: list[Numbers]

    def rows_of(self, batch: int) -> Numbers:
        if batch < self.num_whole:
            return self.rows[self.batches[batch % len(self.batches)]].ravel()
        return self.rows[self.shared[batch - self.num_whole]].ravel()


def _shared_steps(sizes: Numbers, world_size: int) -> _Steps:
    """Return the steps of all batches of such sizes, the last of them shared where they are not all alike.

    One step is shared if every rank's batch is then at least half full, else two are, if there are two.
    """
    num_steps = -(-len(sizes) // world_size)
    if len(sizes) == num_steps * world_size and 2 * sizes[-1] >= sizes[0]:
        return _Steps(len(sizes), num_steps, 0)
    for num_shared, groups_a_rank in ((1, max(sizes[0] / 2, 1)), (2, 2), (1, 1)):
        num_whole = num_steps - num_shared
        if num_whole >= 0 and sizes[num_whole * world_size :].sum() >= groups_a_rank * world_size:
            return _Steps(len(sizes), num_whole, num_shared)
    what = f"{int(sizes.sum())} groups in {len(sizes)} batches cannot be shared by {world_size} ranks"
    raise SamplingError(f"{what}: each needs one in every step. Use fewer ranks, or drop_last=True")


def _num_groups(pids: Integers, k: int) -> Numbers:
    """Return how many groups each identity makes, (people,)."""
    people, sizes = count_values(pids)
    return -(-sizes[people >= 0] // k)


def _integers(name: str, values: npt.ArrayLike, num_rows: int | None = None) -> Integers:
    column = np.asarray(values)
    if column.ndim != 1 or (len(column) and column.dtype.kind not in "iu"):
        raise SamplingError(f"{name} of type {column.dtype} and shape {column.shape} is no list of integers")
    if num_rows is not None and len(column) != num_rows:
        raise SamplingError(f"{name} has {len(column)} rows, pids has {num_rows}; every row needs one of each")
    if len(column) and int(column.max()) > np.iinfo(np.int64).max:
        raise SamplingError(
            f"{name} {column.max()} is above {np.iinfo(np.int64).max}, the greatest number there can be"
        )
    return column.astype(np.int32 if np.can_cast(column.dtype, np.int32) else np.int64)


def check_people(num_people: int, p: int, which: str) -> None:
    """Check that there are enough identities for a batch.

    Args:
        num_people: identities with a crop at least.
        p: identities in a batch.
        which: identities, for a message.

    Raises:
        SamplingError: there are not.
    """
    if num_people < p:
        cure = "Take another split or selection"
        if num_people >= 2:
            cure += f", or p {num_people} or less; k may stay: whoever has fewer crops shows some of them again"
        raise SamplingError(f"{num_people} identities {which} cannot fill a batch of p {p}. {cure}")


def check_state(state: Mapping[str, Any], kind: str, place: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Check that a state is of such a sampler or stream, and of the same rows.

    Args:
        state: what was loaded.
        kind: `sampler` or `stream`.
        place: names of what says where the epoch is.
        facts: what must be the same.

    Raises:
        SamplingError: it is not.
    """
    missing = [name for name in (*place, *facts) if name not in state]
    if missing:
        raise SamplingError(f"this is no state of a PK{kind.capitalize()}: it has no {missing[0]!r}")
    for name, value in facts.items():
        if state[name] != value:
            raise SamplingError(f"the state is of {name} {state[name]!r}, this {kind} has {name} {value!r}")


def place_of_process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if rank is None and world_size is None:
        distributed = getattr(sys.modules.get("torch"), "distributed", None)
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        else:
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
            if world_size > 1 and "RANK" not in os.environ:  # a launcher that tells its processes later
                what = f"WORLD_SIZE is {world_size}, and RANK is not set: which of them this process is, nobody knows"
                raise SamplingError(f"{what}. Give rank and world_size, or wait until torch.distributed is in use")
            rank = int(os.environ.get("RANK", "0"))
    if rank is None or world_size is None:
        raise SamplingError(f"rank is {rank!r} and world_size {world_size!r}; give both or neither")
    if not 0 <= rank < world_size:
        raise SamplingError(f"rank {rank!r} is not in 0..{world_size - 1}, the ranks of {world_size} processes")
    return rank, world_size


def _digest(columns: list[Integers | None]) -> str:
    """Return 16 hex digits that other rows do not have."""
    digest = xxhash.xxh3_64()
    for column in columns:
        digest.update(f"{column if column is None else len(column)},".encode())
        if column is not None:
            digest.update(column.astype(np.int64, copy=False).data)
    return digest.hexdigest()
