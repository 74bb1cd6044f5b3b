"""Re-identification scores, exact, block by block: features or blocks of scores in, `Scores` out.

For a query, gallery crops of the same person under the same camera are ignored, junk is ignored, and queries that are
left without a positive are skipped and counted (Zheng et al., "Scalable Person Re-identification: A Benchmark",
ICCV 2015); `protocols` holds other rules. A tie counts against the model unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import Int64Array, Tensor, to_numpy
from entire_id.evaluation.blocks import checked_blocks
from entire_id.evaluation.counting import Kernel, Tie, count_negatives
from entire_id.evaluation.features import as_matrix, pool_features, score_blocks
from entire_id.evaluation.labels import Labels, PairIndex, integers, why_none_valid
from entire_id.evaluation.protocols import Protocol, find_protocol
from entire_id.evaluation.scores import Scores, mean_over
from entire_id.evaluation.single_shot import Identities, draw_galleries
from entire_id.evaluation.tally import Part, tally
from entire_id.records import Progress, no_progress

__all__ = ["evaluate", "evaluate_blocks"]

_AMBIGUOUS = 1e-4  # a fiftieth of the differences that papers report


def evaluate(  # noqa: PLR0913 six arrays are what it is about
    query_features: Tensor,
    gallery_features: Tensor,
    query_pids: npt.ArrayLike,
    gallery_pids: npt.ArrayLike,
    query_camids: npt.ArrayLike | None = None,
    gallery_camids: npt.ArrayLike | None = None,
    *,
    protocol: str | Protocol = "market1501",
    tie: Tie = "worst",
    max_rank: int = 50,
    query_seqs: npt.ArrayLike | None = None,
    gallery_seqs: npt.ArrayLike | None = None,
    query_columns: Mapping[str, npt.ArrayLike] | None = None,
    gallery_columns: Mapping[str, npt.ArrayLike] | None = None,
    query_in_gallery: npt.ArrayLike | None = None,
    train_pids: npt.ArrayLike | AbstractSet[int] | None = None,
    kernel: Kernel = "auto",
    progress: Progress = no_progress,
) -> Scores:
    """Return mAP, CMC, mINP and more of the cosine similarity between features.

    Args:
        query_features: (q, d) of any float type: a numpy array, also memory-mapped, or a torch tensor on any device.
        gallery_features: (g, d) of any float type, on the same device.
        query_pids: (q,) int identities; -1 is junk.
        gallery_pids: (g,) int identities; -1 is junk, -2 a distractor that nobody has labelled.
        query_camids: (q,) int cameras. Protocols that know no cameras do without.
        gallery_camids: (g,) int cameras.
        protocol: a name of `protocols.PROTOCOLS`, or a protocol.
        tie: where a positive stands among negatives of its score: `worst` below all, `best` above all, `stable` by the
            order of the gallery.
        max_rank: length of the CMC curve, at least 1.
        query_seqs: (q,) int sequences, for `intra_camera`; short for the column `seq`.
        gallery_seqs: (g,) int sequences.
        query_columns: what else is known of the queries, (q,) each, by name: for `Scores.by`, and `continent` for
            `leave_one_continent_out`.
        gallery_columns: the same of the gallery.
        query_in_gallery: (q,) int the gallery row that is the query itself, which it ignores; -1 where there is none.
        train_pids: int identities that the model was trained on, as an array, a list or a set; queries of these are
            counted in the warnings.
        kernel: `auto`, `numpy` or `numba`: the scores are the same.
        progress: told how far it is.

    Raises:
        EvaluationError: shapes or lengths disagree, a feature is not finite or is all zero, no query has a positive,
            the protocol needs what was not given, or an option is unknown.

    Example:
        >>> features = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> evaluate(features, features, np.array([3, 4]), np.array([3, 4]), np.array([0, 0]), np.array([1, 1])).mAP
        1.0
    """
    protocol = find_protocol(protocol)
    _check_lengths(query_features, query_pids, "query")
    _check_lengths(gallery_features, gallery_pids, "gallery")
    labels = Labels.of(
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_columns=_with_seq(query_columns, query_seqs),
        gallery_columns=_with_seq(gallery_columns, gallery_seqs),
        query_in_gallery=query_in_gallery,
    )
    seen = np.zeros(0, np.int64) if train_pids is None else _train_pids(train_pids)
    if protocol.pool_queries:
        _check_pooling(labels, protocol)
        query_features, first_rows = pool_features(query_features, labels.query_pids, labels.query_camids)
        labels = labels.of_queries(first_rows)
    scores = _evaluate(
        score_blocks(query_features, gallery_features), labels, protocol, tie, max_rank, kernel, progress
    )
    return _with_train_warning(scores, seen)


def _check_lengths(features: Tensor, pids: npt.ArrayLike, side: str) -> None:
    num_rows, shape = len(as_matrix(features, side)), np.shape(pids)
    if shape != (num_rows,):
        raise EvaluationError(f"{side}_pids have shape {shape}; expected one for each of {num_rows} {side}_features")


def _with_seq(columns: Mapping[str, npt.ArrayLike] | None, seqs: npt.ArrayLike | None) -> Mapping[str, npt.ArrayLike]:
    return dict(columns or {}) | ({} if seqs is None else {"seq": seqs})


def _check_pooling(labels: Labels, protocol: Protocol) -> None:
    if labels.query_in_gallery is not None:
        raise EvaluationError(
            f"query_in_gallery names one gallery crop a query, and protocol {protocol.name!r} makes one query of "
            "several crops; leave it out"
        )


def _train_pids(values: npt.ArrayLike | AbstractSet[int]) -> Int64Array:
    return integers(list(values) if isinstance(values, AbstractSet) else values, None, "train_pids")


def _with_train_warning(scores: Scores, train_pids: Int64Array) -> Scores:
    """Return the scores, warned of people that the model may have seen in training."""
    seen = np.isin(scores.labels.query_pids, train_pids) & ~np.isnan(scores.first_rank)
    if not seen.any():
        return scores
    warning = (
        f"{int(seen.sum()):,} scored queries have the pid of a training identity: unless numbering restarts between "
        "train and test, the model has seen these people"
    )
    return replace(scores, warnings=(*scores.warnings, warning))


def evaluate_blocks(  # noqa: PLR0913 options of one thing
    blocks: Iterable[tuple[int, Tensor]],
    labels: Labels,
    protocol: str | Protocol = "market1501",
    *,
    tie: Tie = "worst",
    max_rank: int = 50,
    kernel: Kernel = "auto",
    progress: Progress = no_progress,
) -> Scores:
    """Return the scores of a ranking that is given as blocks of similarities.

    Args:
        blocks: (number of the first query, (b, g) similarities, higher is more alike) of all queries in their order, in
            blocks of any size; finite float32 or float64. Each block is overwritten.
        labels: whose the crops are.
        protocol: a name of `PROTOCOLS`, or a protocol.
        tie: see `Tie`.
        max_rank: length of the CMC curve, at least 1.
        kernel: see `Kernel`.
        progress: told how far it is.

    Raises:
        EvaluationError: the blocks do not cover the queries in order, are not as wide as the gallery or not finite; no
            query has a positive; or an option is unknown.
    """
    protocol = find_protocol(protocol)
    if protocol.pool_queries:
        raise EvaluationError(f"protocol {protocol.name!r} pools features, and scores hold none; use evaluate")
    return _evaluate(checked_blocks(blocks, labels), labels, protocol, tie, max_rank, kernel, progress)


def _evaluate(  # noqa: PLR0913 those of `evaluate_blocks`
    blocks: Iterable[tuple[int, Tensor]],
    labels: Labels,
    protocol: Protocol,
    tie: Tie,
    max_rank: int,
    kernel: Kernel,
    progress: Progress,
) -> Scores:
    if max_rank < 1:
        raise EvaluationError(f"max_rank {max_rank} is not at least 1")
    index = PairIndex(labels, protocol)
    identities = Identities(index) if protocol.single_shot else None
    parts = []
    for first, block in blocks:
        counts = count_negatives(block, first, index, tie, kernel)
        part = tally(counts, protocol.ap)
        if identities is not None:
            draws = draw_galleries(to_numpy(block), first, counts, identities, tie, max_rank)
            part = replace(
                part,
                ranks=part.ranks[:0],
                average_precision=draws.precision,
                inverse_penalty=draws.precision,
                first_rank=draws.rank,
                spread=draws.spread,
                hits=draws.hits,
            )
        parts.append(part)
        progress("evaluating", first + len(block), len(labels.query_pids))
    return _scores(parts, index, tie, max_rank)


def _scores(parts: list[Part], index: PairIndex, tie: Tie, max_rank: int) -> Scores:
    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    labels, protocol = index.labels, index.protocol
    first_rank, precision, penalty = joined("first_rank"), joined("average_precision"), joined("inverse_penalty")
    valid = ~np.isnan(first_rank)
    if not valid.any():
        raise EvaluationError(why_none_valid(index))
    skipped = _skipped(index, valid)
    number = int(valid.sum()) if protocol.mean == "valid" else len(valid) - skipped.get("junk", 0)
    hits = joined("hits") if parts[0].hits is not None else None
    if hits is None:
        at_rank = np.bincount(np.minimum(first_rank[valid], max_rank + 1).astype(np.int64), minlength=max_rank + 2)
        cmc = np.cumsum(at_rank[1 : max_rank + 1]) / number
    else:
        cmc = np.array([mean_over(column, number) for column in hits.T])
    ambiguity = mean_over(joined("spread"), number)
    return Scores(
        mAP=mean_over(precision, number),
        mINP=mean_over(penalty, number),
        cmc=cmc,
        average_precision=precision,
        inverse_penalty=penalty,
        first_rank=first_rank,
        num_positives=joined("num_positives"),
        ranks=joined("ranks"),
        hits=hits,
        num_query=len(valid),
        num_valid_query=int(valid.sum()),
        num_gallery=len(labels.gallery_pids),
        skipped=skipped,
        ambiguity=ambiguity,
        protocol=protocol,
        tie=tie,
        warnings=_warnings(index, ambiguity, max_rank),
        labels=labels,
    )


def _skipped(index: PairIndex, valid: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Return how many queries have no positive, by reason."""
    absent = index.num_same_pid == 0
    counts = {
        "junk": index.is_junk_query,
        "not in the gallery": absent & ~index.is_junk_query,
        "there only among ignored crops": ~valid & ~absent,
    }
    return {reason: int(chosen.sum()) for reason, chosen in counts.items() if chosen.any()}


def _warnings(index: PairIndex, ambiguity: float, max_rank: int) -> tuple[str, ...]:
    num_kept = len(index.labels.gallery_pids) - len(index.junk)
    found = []
    if ambiguity > _AMBIGUOUS:
        found.append(
            f"ties make the mAP ambiguous by {ambiguity:.4f}: many gallery crops score exactly alike. Were the "
            "features stored in half precision, or has the model collapsed?"
        )
    if num_kept < max_rank:
        found.append(f"the gallery has {num_kept:,} crops, fewer than {max_rank} ranks: the CMC curve is flat beyond")
    return tuple(found)
