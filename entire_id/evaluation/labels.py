"""Whose the crops are, and which gallery crops are right for a query or ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import BoolArray, Int64Array, to_numpy
from entire_id.evaluation.protocols import Protocol
from entire_id.records import NO_NUMBER, UNKNOWN_CONTINENT

__all__ = ["Labels", "PairIndex", "Pairs", "integers", "why_none_valid"]

Columns = Mapping[str, npt.ArrayLike]

_MAX_INT64 = np.iinfo(np.int64).max
_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Whose the crops are.

    Attributes:
        query_pids: (q,) int64 identities.
        gallery_pids: (g,) int64 identities.
        query_camids: (q,) int64 cameras; all 0 where there are none.
        gallery_camids: (g,) int64 cameras.
        query_columns: what else is known of each query, by name, (q,) each; `seq` and `continent` enter protocols.
        gallery_columns: the same of the gallery, (g,) each.
        query_in_gallery: (q,) int64 the gallery crop that is the query itself, always ignored; -1 for none.
        has_cameras: whether cameras were given.
    """

    query_pids: Int64Array
    gallery_pids: Int64Array
    query_camids: Int64Array
    gallery_camids: Int64Array
    query_columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    gallery_columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    query_in_gallery: Int64Array | None = None
    has_cameras: bool = True

    @classmethod
    def of(  # noqa: PLR0913 the arguments are the attributes
        cls,
        query_pids: npt.ArrayLike,
        gallery_pids: npt.ArrayLike,
        query_camids: npt.ArrayLike | None = None,
        gallery_camids: npt.ArrayLike | None = None,
        *,
        query_columns: Columns | None = None,
        gallery_columns: Columns | None = None,
        query_in_gallery: npt.ArrayLike | None = None,
    ) -> Self:
        """Return checked labels; the arguments are the attributes, as arrays of any integer type.

        Raises:
            EvaluationError: an array is empty, has another length or other numbers than integers.

        Example:
            >>> Labels.of([7], [7, 8], [0], [1, 1]).gallery_pids
            array([7, 8])
        """
        pids = integers(query_pids, None, "query_pids"), integers(gallery_pids, None, "gallery_pids")
        has_cameras = query_camids is not None and gallery_camids is not None
        if not has_cameras and (query_camids is not None or gallery_camids is not None):
            raise EvaluationError("cameras are given of query or gallery alone; give both, or none")
        camids = [
            np.zeros(len(of), np.int64) if values is None else integers(values, len(of), name)
            for values, of, name in zip(
                (query_camids, gallery_camids), pids, ("query_camids", "gallery_camids"), strict=True
            )
        ]
        return cls(
            *pids,
            camids[0],
            camids[1],
            _columns(query_columns, len(pids[0]), "query"),
            _columns(gallery_columns, len(pids[1]), "gallery"),
            None if query_in_gallery is None else _itself(query_in_gallery, *pids),
            has_cameras,
        )

    def of_queries(self, rows: Int64Array) -> Labels:
        """Return the labels of some queries alone; the gallery stays."""
        return replace(
            self,
            query_pids=self.query_pids[rows],
            query_camids=self.query_camids[rows],
            query_columns={name: values[rows] for name, values in self.query_columns.items()},
            query_in_gallery=None if self.query_in_gallery is None else self.query_in_gallery[rows],
        )

    def pair_of_columns(self, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the column of the queries and that of the gallery.

        Raises:
            EvaluationError: one of them was not given.
        """
        missing = [
            f"{side}_columns[{name!r}]"
            for side, columns in (("query", self.query_columns), ("gallery", self.gallery_columns))
            if name not in columns
        ]
        if missing:
            raise EvaluationError(f"the protocol needs the {name} of every crop; give {' and '.join(missing)}")
        return self.query_columns[name], self.gallery_columns[name]


def integers(values: npt.ArrayLike, length: int | None, name: str) -> Int64Array:
    """Return (n,) integers, checked.

    Args:
        values: of any integer type.
        length: n, any from 1 on if None.
        name: what they are called in errors.

    Raises:
        EvaluationError: they are no integers, have another shape, are none at all, or do not fit into int64.
    """
    array = to_numpy(values)
    expected = "(n,)" if length is None else f"({length},)"
    shape_is_right = array.ndim == 1 and (length is None or len(array) == length)
    if not shape_is_right or not np.issubdtype(array.dtype, np.integer):
        raise EvaluationError(f"{name} are {array.dtype} {array.shape}; expected integers {expected}")
    if not len(array):
        raise EvaluationError(f"{name} are empty; there is nothing to score")
    if array.dtype == np.uint64 and array.max() > _MAX_INT64:
        raise EvaluationError(f"{name} go up to {array.max()}; expected integers of 64 bits with a sign")
    return array.astype(np.int64)


def _columns(columns: Columns | None, length: int, side: str) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: to_numpy(values) for name, values in (columns or {}).items()}
    for name, array in arrays.items():
        if array.shape != (length,):
            raise EvaluationError(f"{side}_columns[{name!r}] has shape {array.shape}; expected ({length},)")
    return arrays


def _itself(values: npt.ArrayLike, query_pids: Int64Array, gallery_pids: Int64Array) -> Int64Array:
    itself = integers(values, len(query_pids), "query_in_gallery")
    if itself.max() >= len(gallery_pids) or itself.min() < -1:
        raise EvaluationError(f"query_in_gallery is not in -1..{len(gallery_pids) - 1}")
    wrong = np.flatnonzero((itself >= 0) & (gallery_pids[itself] != query_pids))
    if len(wrong):
        query = wrong[0]
        raise EvaluationError(
            f"query_in_gallery says that query {query} of pid {query_pids[query]} is gallery crop {itself[query]}, "
            f"whose pid is {gallery_pids[itself[query]]}"
        )
    return itself


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Some queries with the gallery crops that do not simply count as wrong for them.

    Attributes:
        rows: (n,) int64 which of the queries, ascending, from 0.
        columns: (n,) int64 gallery crops of that query's person.
        is_positive: (n,) which of them are right; the others are ignored.
    """

    rows: Int64Array
    columns: Int64Array
    is_positive: BoolArray


class PairIndex:
    """Finds the pairs of any run of queries, and what else they ignore.

    Attributes:
        labels: whose the crops are.
        protocol: the rule.
        junk: gallery crops that every query ignores, ascending.
        groups: (q,) and (g,) int64: a query searches the gallery crops of its own number; None where it searches all.
    """

    def __init__(self, labels: Labels, protocol: Protocol) -> None:
        """Sort the gallery by identity.

        Raises:
            EvaluationError: the protocol needs cameras, sequences or continents that were not given.
        """
        if protocol.needs_cameras and not labels.has_cameras:
            raise EvaluationError(
                f"protocol {protocol.name!r} needs the camera of every crop; for a set without cameras there is "
                "protocol 'no_camera'"
            )
        self.labels, self.protocol = labels, protocol
        self.junk = np.flatnonzero(np.isin(labels.gallery_pids, protocol.junk_pids))
        self.is_junk_query = np.isin(labels.query_pids, protocol.nobody_pids)
        self.groups = _groups(labels, protocol)
        self._seqs = _seqs(labels, protocol)
        self._by_pid = np.argsort(labels.gallery_pids, kind="stable")
        sorted_pids = labels.gallery_pids[self._by_pid]
        self._starts = np.searchsorted(sorted_pids, labels.query_pids, "left")
        stops = np.searchsorted(sorted_pids, labels.query_pids, "right")
        self.num_same_pid = np.where(self.is_junk_query, 0, stops - self._starts)

    def pairs(self, start: int, stop: int) -> Pairs:
        """Return the pairs of the queries [start, stop)."""
        lengths = self.num_same_pid[start:stop]
        rows = np.repeat(np.arange(stop - start), lengths)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        columns = self._by_pid[np.repeat(self._starts[start:stop], lengths) + places]
        return Pairs(rows, columns, self._is_positive(rows + start, columns))

    def num_positives(self) -> Int64Array:
        """Return (q,) how many gallery crops are right for each query."""
        num_query = len(self.labels.query_pids)
        blocks = ((start, min(start + _QUERIES_AT_ONCE, num_query)) for start in range(0, num_query, _QUERIES_AT_ONCE))
        counts = []
        for start, stop in blocks:
            pairs = self.pairs(start, stop)
            counts.append(np.bincount(pairs.rows[pairs.is_positive], minlength=stop - start))
        return np.concatenate(counts)

    def _is_positive(self, queries: Int64Array, columns: Int64Array) -> BoolArray:
        labels = self.labels
        right = np.ones(len(queries), bool)
        if self.protocol.positives != "any-camera":
            same_camera = labels.query_camids[queries] == labels.gallery_camids[columns]
            right = same_camera if self.protocol.positives == "other-sequence" else ~same_camera
        if self._seqs is not None:
            right &= self._seqs[0][queries] != self._seqs[1][columns]
        if self.groups is not None:
            right &= self.groups[0][queries] == self.groups[1][columns]
        if labels.query_in_gallery is not None:
            right &= labels.query_in_gallery[queries] != columns
        return right


def _groups(labels: Labels, protocol: Protocol) -> tuple[Int64Array, Int64Array] | None:
    """Return numbers of the groups that queries search in."""
    if protocol.within == "everything":
        return None
    if protocol.within == "camera":
        return labels.query_camids, labels.gallery_camids
    query, gallery = labels.pair_of_columns(protocol.within)
    unknown = [int((values == UNKNOWN_CONTINENT).sum()) for values in (query, gallery)]
    if any(unknown):
        raise EvaluationError(
            f"protocol {protocol.name!r} needs to know where crops were taken, and the continent of {unknown[0]:,} of "
            f"{len(query):,} query crops and {unknown[1]:,} of {len(gallery):,} gallery crops is 'unknown'; name every "
            "camera in a cameras.csv beside the crops and pack them again"
        )
    numbers = np.unique(np.concatenate([query, gallery]), return_inverse=True)[1].astype(np.int64)
    return numbers[: len(query)], numbers[len(query) :]


def _seqs(labels: Labels, protocol: Protocol) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    if protocol.positives != "other-sequence":
        return None
    seqs = labels.pair_of_columns("seq")
    for side, values in zip(("query", "gallery"), seqs, strict=True):
        missing = int((values == NO_NUMBER).sum())
        if missing:
            raise EvaluationError(
                f"{missing} {side} crops have no sequence number, and protocol {protocol.name!r} takes crops of "
                "another sequence for right"
            )
    return seqs


def why_none_valid(index: PairIndex) -> str:
    """Return why no query has a positive, in a sentence that says what to do."""
    labels = index.labels
    if index.is_junk_query.all():
        return (
            f"every query is junk: query pids are {_span(labels.query_pids)}, and protocol {index.protocol.name!r} "
            f"skips {', '.join(map(str, index.protocol.nobody_pids))}. Were identities read from the names rightly?"
        )
    people = np.setdiff1d(np.intersect1d(labels.query_pids, labels.gallery_pids), index.protocol.nobody_pids)
    if not len(people):
        return (
            f"no query identity is in the gallery: query pids are {_span(labels.query_pids)}, gallery pids "
            f"{_span(labels.gallery_pids)}. Do both come from the same data set?"
        )
    cameras = np.union1d(labels.query_camids, labels.gallery_camids)
    if index.protocol.positives == "other-camera" and len(cameras) == 1:
        return (
            f"every crop has camera {cameras[0]}, and crops of the query's own camera are ignored. Were camera numbers "
            "read from the names rightly? c021 is camera 21; a pattern for one digit reads 0. For a set without "
            "cameras there is protocol 'no_camera'"
        )
    if index.protocol.positives == "other-camera" and index.groups is None:
        return (
            f"the {len(people)} query identities that are in the gallery were all seen there by the query's own camera "
            "alone, and such crops are ignored; protocol 'all_cameras' keeps them"
        )
    return (
        f"of the {len(people)} query identities that are in the gallery, protocol {index.protocol.name!r} ignores "
        "every crop"
    )


def _span(values: Int64Array) -> str:
    return f"{values.min()}..{values.max()}"
