"""Heads of people, blurred where crops show them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from entire_id.images import RgbImage

__all__ = ["blur_heads"]

_HEIGHT = 0.18  # of the crop, from its top: a head is 1/8 to 1/6 of a person, and boxes leave a margin above it
_SIDES = 0.15, 0.85  # of its width: people lean
_RADIUS = 0.12  # of the crop's width: deviation of the Gaussian, about a third of a head


def blur_heads(image: RgbImage) -> RgbImage:
    """Return the crop, (height, width, 3) uint8 RGB, with the region blurred where the head of an upright person is.

    Nothing is detected: it is the middle of the uppermost 18 % of the crop, so that it fits crops of whole people, such
    as drawn ones.
    """
    height, width = image.shape[:2]
    left, right = (round(side * width) for side in _SIDES)
    bottom = max(1, round(_HEIGHT * height))
    # Blurred with its surroundings: pixels from beyond the region flow in, as they do in a photograph.
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(_RADIUS * width)))
    blurred = image.copy()
    blurred[:bottom, left:right] = soft[:bottom, left:right]
    return blurred
