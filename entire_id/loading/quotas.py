"""Batches with so many identities of each class, a continent or a source say."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from entire_id.errors import SamplingError
from entire_id.loading.groups import arrange, batch_sizes, cut_groups
from entire_id.loading.integers import Integers, Numbers

__all__ = ["class_rows", "draw_quota", "num_quota_batches"]


def class_rows(
    pids: Integers, classes: npt.ArrayLike | None, quotas: Mapping[str, int] | None, p: int
) -> list[Numbers]:
    """Return the rows of each quota's class, in the order of `quotas`; junk is left out.

    Raises:
        SamplingError: quotas and classes do not come together, or not for every row; quotas are below 1 or do not sum
            to `p`; an identity has crops of two classes, a class no quota, or fewer identities than its quota.
    """
    if quotas is None or classes is None:
        raise SamplingError("quotas need classes, the class of every row, and classes need quotas")
    names = np.asarray(classes)
    if names.shape != pids.shape:
        raise SamplingError(f"classes has shape {names.shape}, pids has {pids.shape}; every row needs one of each")
    if min(quotas.values(), default=0) < 1 or sum(quotas.values()) != p:
        raise SamplingError(f"quotas {dict(quotas)!r} are not numbers of at least 1 whose sum is p {p!r}")
    labelled = pids >= 0
    rows = [np.flatnonzero(labelled & (names == name)) for name in quotas]
    if sum(len(part) for part in rows) < np.count_nonzero(labelled):
        other = np.delete(names, np.concatenate([*rows, np.flatnonzero(~labelled)])).tolist()[0]
        raise SamplingError(f"class {other!r} has no quota; give one, or set the pids of its rows to -1")
    people = [np.unique(pids[part]) for part in rows]
    for (name, quota), found in zip(quotas.items(), people, strict=True):
        if len(found) < quota:
            what = f"class {name!r} has {len(found)} identities; a batch cannot hold {quota} of them"
            raise SamplingError(f"{what}. Lower its quota, and p with it, or take a selection with more of its people")
    every, counts = np.unique(np.concatenate(people), return_counts=True)
    if counts.max() > 1:
        raise SamplingError(f"pid {every[counts.argmax()]} has crops of two classes; an identity needs one class")
    return rows


def num_quota_batches(held: list[Numbers], quotas: list[int]) -> int:
    """Return how many batches show every group, given the groups of each identity of each class."""
    return max(len(batch_sizes(groups, quota)) for groups, quota in zip(held, quotas, strict=True))


def draw_quota(
    pids: Integers, k: int, rng: np.random.Generator, columns: list[Integers | None], shape: tuple[int, int]
) -> Numbers:
    """Return the rows of `shape` = (batches, quota) groups of one class, (batches, quota, k) int64; none is left out.

    Where the class has fewer groups than that, it is cut into new ones, again and again, of which as many as are
    missing are drawn. Nobody is in a batch twice.

    Args:
        pids: (n,) identities of the rows of the class.
        k: crops in a group.
        rng: the only source of chance.
        columns: cameras and sequences of the rows, (n,) or None each.
        shape: at least as many batches as `num_quota_batches` asks for.
    """
    num_batches, quota = shape
    _, person, sizes = np.unique(pids, return_inverse=True, return_counts=True)
    held = -(-sizes // k)
    wanted = num_batches * quota
    num_rounds = 1 + bisect_left(
        range(1, num_batches), True, key=lambda rounds: int(np.minimum(rounds * held, num_batches).sum()) >= wanted
    )
    rounds = np.arange(num_rounds)
    codes = (person[None, :] * num_rounds + rounds[:, None]).ravel()  # a person of each round is an identity
    camids, seqs = (None if column is None else np.tile(column, num_rounds) for column in columns)
    groups = cut_groups(codes, k, rng, camids, seqs)
    person, number = np.divmod(groups.pids, num_rounds)
    kept = _kept(person, number == num_rounds - 1, num_batches, wanted, rng)
    batches = arrange(person[kept], quota, rng)
    return groups.rows[kept[batches.groups]].reshape(num_batches, quota, k) % len(pids)


def _kept(
    person: Numbers, is_last_round: npt.NDArray[np.bool_], most: int, wanted: int, rng: np.random.Generator
) -> Numbers:
    """Return which `wanted` groups to keep: the first `most` of each person, less some of the last round."""
    starts = np.searchsorted(person, person)
    kept = np.arange(len(person)) - starts < most
    may_go = np.flatnonzero(kept & is_last_round)
    kept[rng.permutation(may_go)[: np.count_nonzero(kept) - wanted]] = False
    return np.flatnonzero(kept)
