from __future__ import annotations

import colorsys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from entire_id.loading.colour import describe_colour, rgb_to_hsv

BYTE = st.integers(0, 255)


@given(BYTE, BYTE, BYTE)
def test_hsv_is_that_of_the_standard_library(red: int, green: int, blue: int) -> None:
    found = rgb_to_hsv(np.array([red, green, blue], np.uint8))
    np.testing.assert_allclose(found, colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255), atol=1e-12)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 99))
def test_descriptors_have_unit_length_whatever_the_size(width: int, height: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    (descriptor,) = describe_colour([image])
    assert descriptor.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(descriptor), 1, rtol=1e-5)


def test_colour_and_place_both_count() -> None:
    red_over_blue = np.zeros((60, 20, 3), np.uint8)
    red_over_blue[:30, :, 0] = red_over_blue[30:, :, 2] = 200
    larger = np.repeat(np.repeat(red_over_blue, 3, 0), 2, 1)
    descriptors = describe_colour([red_over_blue, larger, red_over_blue[::-1]])
    similarity = descriptors @ descriptors.T
    assert similarity[0, 1] > 0.99
    assert similarity[0, 2] < 0.01
