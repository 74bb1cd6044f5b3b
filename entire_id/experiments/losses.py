"""The two losses of the baseline."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["identity_loss", "triplet_loss"]


def identity_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the mean cross-entropy of n crops, a scalar float32.

    Label smoothing as C. Szegedy et al. have it ("Rethinking the Inception Architecture", CVPR 2016, section 7): the
    target is 1 - smoothing for the right class, plus smoothing / classes for each.

    Args:
        logits: (n, classes) floats.
        labels: (n,) int64 classes.
        smoothing: in [0, 1).
    """
    return functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def triplet_loss(features: torch.Tensor, labels: torch.Tensor, margin: float | None = None) -> torch.Tensor:
    """Return the mean batch-hard triplet loss of n crops, a scalar float32.

    A. Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification" (arXiv 1703.07737), equation 5. Of
    each crop, D is the Euclidean distance to the farthest crop of the same person less that to the nearest of another:
    max(0, margin + D), or with the soft margin log(1 + exp(D)). Crops without somebody else in the batch do not count.

    Args:
        features: (n, d) floats.
        labels: (n,) int64 classes.
        margin: None for the soft margin.
    """
    # Differences, not |a|² + |b|² - 2ab, whose rounding is as large as the distance of crops that are alike.
    distances = torch.cdist(features.float(), features.float(), compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    farthest = distances.masked_fill(~same, 0).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    differences = (farthest - nearest)[~same.all(1)]
    losses = functional.softplus(differences) if margin is None else functional.relu(margin + differences)
    return losses.sum() / max(len(losses), 1)
