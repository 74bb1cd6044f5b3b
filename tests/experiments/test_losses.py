"""The losses against their formulas, written out crop by crop."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from entire_id.experiments.losses import identity_loss, triplet_loss  # noqa: E402 needs torch


def by_hand(features, labels, margin):
    """Equation 5 of Hermans et al., with plain loops in double precision."""
    losses = []
    rows = range(len(labels))
    for anchor in rows:
        distances = [math.dist(features[anchor].tolist(), features[other].tolist()) for other in rows]
        positives = [distances[other] for other in rows if labels[other] == labels[anchor]]
        negatives = [distances[other] for other in rows if labels[other] != labels[anchor]]
        if negatives:
            difference = max(positives) - min(negatives)
            losses.append(math.log1p(math.exp(difference)) if margin is None else max(0.0, margin + difference))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_triplet_loss_is_that_of_the_formula(seed, margin):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (24,), generator=generator)
    features = torch.randn(24, 7, generator=generator)
    assert triplet_loss(features, labels, margin).item() == pytest.approx(by_hand(features, labels, margin), rel=1e-5)


def test_crops_that_are_almost_alike_keep_their_distance():
    """|a|² + |b|² - 2ab would lose it to rounding."""
    features = torch.tensor([[100.0, 0.0], [100.001, 0.0], [100.003, 0.0]])
    labels = torch.tensor([0, 0, 1])
    assert triplet_loss(features, labels, 0.01).item() == pytest.approx(by_hand(features, labels, 0.01), rel=0.01)


def test_gradients_are_finite_where_crops_are_the_same():
    features = torch.zeros(4, 3, requires_grad=True)
    triplet_loss(features, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(features.grad).all()


def test_a_batch_of_one_person_has_no_triplets():
    features = torch.randn(4, 3, requires_grad=True)
    loss = triplet_loss(features, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identity_loss_is_cross_entropy_with_smoothed_targets(smoothing):
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = torch.full((6, 4), smoothing / 4)
    targets[range(6), labels] += 1 - smoothing
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert identity_loss(logits, labels, smoothing).item() == pytest.approx(expected.item(), rel=1e-6)
