from __future__ import annotations

import numpy as np
import pytest

from entire_id.evaluation.labels import Labels
from entire_id.evaluation.ranked_lists import choose_queries, rank_blocks
from entire_id.evaluation.ranking import evaluate, evaluate_blocks

# Of the query, person 1 under camera 0: crop 1 is of its own camera and crop 3 is junk; 4 (wrong) and 5 (right) tie.
SCORES = np.array([[0.9, 0.95, 0.1, 0.99, 0.5, 0.5, 0.7]])
LABELS = Labels.of([1], [2, 1, 4, -1, 3, 1, 1], [0], [1, 0, 0, 1, 0, 1, 2])


def ranked(**options):
    (one,) = rank_blocks([(0, SCORES.copy())], LABELS, **options)
    return one


def test_list_goes_by_similarity_without_what_the_protocol_ignores() -> None:
    one = ranked()
    assert one.query == 0
    assert one.columns.tolist() == [0, 6, 4, 5, 2]
    assert one.is_right.tolist() == [False, True, False, True, False]
    assert one.similarities.tolist() == [0.9, 0.7, 0.5, 0.5, 0.1]
    assert ranked(protocol="all_cameras").columns.tolist() == [1, 0, 6, 4, 5, 2]


@pytest.mark.parametrize(("tie", "expected"), [("worst", [0, 6, 4]), ("stable", [0, 6, 4]), ("best", [0, 6, 5])])
def test_ties_fall_as_in_the_scores(tie, expected) -> None:
    one = ranked(tie=tie, num_ranks=3)
    assert one.columns.tolist() == expected


def test_ranks_of_right_crops_are_those_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    labels = Labels.of(
        *(rng.integers(0, 6, size) for size in (30, 90)), *(rng.integers(0, 3, size) for size in (30, 90))
    )
    similarity = rng.integers(0, 40, (30, 90)) / 40
    for tie in ("worst", "best", "stable"):
        scores = evaluate_blocks([(0, similarity.copy())], labels, tie=tie)
        blocks = [(0, similarity[:20].copy()), (20, similarity[20:].copy())]
        lists = rank_blocks(blocks, labels, num_ranks=90, tie=tie)
        assert [one.query for one in lists] == list(range(30))
        ranks = np.concatenate([np.flatnonzero(one.is_right) + 1 for one in lists])
        assert np.array_equal(ranks, scores.ranks)


def test_best_worst_and_random_queries_are_chosen() -> None:
    """The rank of the right crop of query n is n + 1; query 3 has none."""
    pids = np.array([0, 1, 2, 9, 4])
    gallery = np.eye(5)
    query = np.array([[9 if g == q else 10 + g if g < q else g / 10 for g in range(5)] for q in range(5)], float)
    scores = evaluate(query, gallery, pids, np.array([0, 1, 2, 3, 4]), protocol="no_camera")
    chosen = choose_queries(scores, 2)
    assert (chosen["best"], chosen["worst"]) == ([0, 1], [4, 2])
    assert chosen["random"] == choose_queries(scores, 2)["random"] == sorted(chosen["random"])
    assert len({tuple(choose_queries(scores, 2, seed)["random"]) for seed in range(9)}) > 1
    assert choose_queries(scores, 9)["random"] == [0, 1, 2, 4]
