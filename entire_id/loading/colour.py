"""A descriptor that needs no training: colour histograms of horizontal stripes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from entire_id.images import RgbImage

__all__ = ["describe_colour", "rgb_to_hsv"]

_SIZE = 96, 32  # rows, columns to which every crop is sampled
_STRIPES = 6
_BINS = 12, 3, 4  # hue, saturation, value


def describe_colour(images: Sequence[RgbImage]) -> npt.NDArray[np.float32]:
    """Return one descriptor a crop, (n, 864) float32, of unit length.

    Six stripes of equal height, in each a histogram of 12 hues × 3 saturations × 4 values. Columns count a little
    less towards the sides, where the background is; square roots make the dot product a Bhattacharyya coefficient.

    Args:
        images: n crops, each (height, width, 3) uint8 RGB.
    """
    bins = int(np.prod(_BINS))
    stripe = np.repeat(np.arange(_SIZE[0]) * _STRIPES // _SIZE[0], _SIZE[1])
    weight = np.tile(np.exp(-(np.linspace(-0.5, 0.5, _SIZE[1]) ** 2)), _SIZE[0])
    descriptors = np.empty((len(images), _STRIPES * bins), np.float32)
    for number, image in enumerate(images):
        hsv = rgb_to_hsv(_sample(image)).reshape(-1, 3)
        codes = np.minimum((hsv * _BINS).astype(np.int64), np.array(_BINS) - 1)
        cell = (codes[:, 0] * _BINS[1] + codes[:, 1]) * _BINS[2] + codes[:, 2]
        histogram = np.bincount(stripe * bins + cell, weight, _STRIPES * bins)
        descriptors[number] = np.sqrt(histogram / histogram.sum())
    return descriptors


def _sample(image: RgbImage) -> RgbImage:
    """Return `_SIZE` pixels of the image, evenly spread."""
    rows, columns = (
        ((np.arange(size) + 0.5) * length / size).astype(np.int64)
        for size, length in zip(_SIZE, image.shape[:2], strict=True)
    )
    sampled: RgbImage = image[rows[:, None], columns]
    return sampled


def rgb_to_hsv(rgb: RgbImage) -> npt.NDArray[np.float64]:
    """Return hue, saturation and value, each in [0, 1], of (…, 3) uint8 RGB; the hue of grey is 0.

    Formula: A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978.

    >>> rgb_to_hsv(np.array([0, 255, 0], np.uint8)).round(3).tolist()
    [0.333, 1.0, 1.0]
    """
    scaled = rgb.astype(np.float64) / 255
    value = scaled.max(-1)
    spread = value - scaled.min(-1)
    red, green, blue = np.moveaxis(scaled, -1, 0)
    safe = np.where(spread == 0, 1, spread)
    sector = np.select(
        [value == red, value == green],
        [(green - blue) / safe % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    hue = np.where(spread == 0, 0, sector / 6)
    saturation = spread / np.where(value == 0, 1, value)
    return np.stack([hue, saturation, value], -1)
