from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entire_id.evaluation.single_shot import _expected_hits, _expected_precision


def distribution(chances: np.ndarray) -> np.ndarray:
    """The probability of rank 1, 2, … of the drawn positive: the whole of it, one identity after another."""
    at_rank = np.zeros((len(chances), chances.shape[1] + 1))
    at_rank[:, 0] = 1
    for number, chance in enumerate(chances.T[:, :, None], 1):
        moved = at_rank[:, :number] * chance
        at_rank[:, :number] -= moved
        at_rank[:, 1 : number + 1] += moved
    return at_rank.mean(axis=0)


@given(
    st.integers(1, 5),
    st.integers(0, 400),
    st.sampled_from([0.0, 1e-3, 0.1, 0.5, 0.97, 1.0]),
    st.sampled_from([1e-3, 0.3, 1.0, 30.0]),
    st.integers(0, 2**32),
    st.integers(1, 450),
)
@settings(max_examples=200)
def test_equals_the_whole_distribution(
    num_positives: int, num_identities: int, share: float, spread: float, seed: int, max_rank: int
) -> None:
    rng = np.random.default_rng(seed)
    chances = rng.beta(spread, spread, (num_positives, num_identities))
    sure = rng.random(chances.shape) < share  # to be above, or not to be
    chances[sure] = rng.integers(0, 2, sure.sum())
    at_rank = distribution(chances)
    ranks = np.arange(1, len(at_rank) + 1)
    assert _expected_precision(chances) == pytest.approx((at_rank / ranks).sum(), abs=1e-12)
    assert 1 + chances.sum(axis=1).mean() == pytest.approx((at_rank * ranks).sum(), rel=1e-12)
    expected = np.cumsum(np.pad(at_rank, (0, max_rank))[:max_rank])
    np.testing.assert_allclose(_expected_hits(chances, max_rank), expected, rtol=0, atol=1e-12)


def test_many_identities_are_scored_exactly() -> None:
    """As in MSMT17, with far fewer nodes than identities."""
    chances = np.sort(np.random.default_rng(0).beta(0.2, 0.6, (27, 3060)), axis=0)
    at_rank = distribution(chances)
    assert _expected_precision(chances) == pytest.approx((at_rank / np.arange(1, 3062)).sum(), abs=1e-12)
    np.testing.assert_allclose(_expected_hits(chances, 50), np.cumsum(at_rank)[:50], rtol=0, atol=1e-12)
