from __future__ import annotations

import numpy as np
import pytest

from entire_id.evaluation.nearest import highest, join, products


def test_highest_are_those_of_a_stable_sort() -> None:
    rng = np.random.default_rng(5)
    for columns, count, values in ((64, 3, 4), (1024, 5, 3), (1024, 5, 10**6), (2048, 20, 40), (128, 128, 5)):
        scores = rng.integers(-values, values, (20, columns)).astype(np.float32) * rng.choice(
            [-0.0, 0.5], (20, columns)
        )
        scores = scores.astype(np.float32)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(highest(scores, count), expected)


def test_highest_of_scores_that_are_all_equal_are_the_first() -> None:
    scores = np.zeros((3, 2048), np.float32)
    np.testing.assert_array_equal(highest(scores, 7), np.tile(np.arange(7), (3, 1)))
    assert highest(scores, 0).shape == (3, 0)


@pytest.mark.parametrize("num", [1, 63, 64, 130])
def test_products_are_those_of_the_rows_joined(num: int) -> None:
    rng = np.random.default_rng(num)
    query, gallery = rng.normal(size=(num, 5)).astype(np.float32), rng.normal(size=(77, 5)).astype(np.float32)
    crops = join({"query": query, "gallery": gallery}, unit=False)
    np.testing.assert_array_equal(crops.features[: crops.num], np.concatenate([query, gallery]))
    found = np.concatenate([block for _, block in products(crops.rows(0, num), crops.rows(num, 77), num)])
    np.testing.assert_allclose(found[:, :77], query @ gallery.T, atol=1e-5)
    np.testing.assert_allclose(crops.squares[: crops.num], (crops.features[: crops.num] ** 2).sum(1), rtol=1e-6)
