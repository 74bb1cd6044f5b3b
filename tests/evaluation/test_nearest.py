from __future__ import annotations

import numpy as np

from entire_id.evaluation.nearest import highest


def test_highest_are_those_of_a_stable_sort() -> None:
    rng = np.random.default_rng(5)
    for columns, count, values in (
        (64, 3, 4), (1024, 5, 3), (1024, 5, 10**6), (2048, 20, 40), (128, 128, 5), (127, 3, 4), (1039, 5, 10**6),
        (335, 20, 3), (17, 1, 9), (15, 4, 9),
    ):  # fmt: skip
        scores = rng.integers(-values, values, (20, columns)) * rng.choice([-0.0, 0.5], (20, columns))
        for few in (
            scores.astype(np.float32),
            np.pad(scores, ((0, 0), (0, 9)), constant_values=1e9).astype(np.float32),
        ):
            expected = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            np.testing.assert_array_equal(highest(few[:, :columns], count), expected)


def test_highest_of_scores_that_are_all_equal_are_the_first() -> None:
    scores = np.zeros((3, 2048), np.float32)
    np.testing.assert_array_equal(highest(scores, 7), np.tile(np.arange(7), (3, 1)))
    assert highest(scores, 0).shape == (3, 0)
