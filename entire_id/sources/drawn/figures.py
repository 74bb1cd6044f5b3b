"""Figures of people, drawn with tapered limbs, a torso and a head.

Nobody real is shown. A face is one flat patch of skin colour with no feature in it, as the faces of the real crops are
blurred. Lengths are in body units, see `people`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from entire_id.sources.drawn.people import RGB, Look, Point, Skeleton, pack_span

__all__ = ["draw_figure"]

_HEAD = 0.912
_LEG_RADII = (0.062, 0.047, 0.033)
_ARM_RADII = (0.036, 0.034, 0.027)

# (height, half breadth, half depth) of the body from the neck to the hips
_TORSO: tuple[Point, ...] = (
    (0.842, 0.038, 0.036), (0.828, 0.074, 0.050), (0.808, 0.108, 0.064), (0.74, 0.122, 0.080), (0.62, 0.102, 0.074),
    (0.54, 0.102, 0.078), (0.48, 0.106, 0.080),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pen:
    """Where body units fall on a picture, and from which side the light comes (-1 left … 1 right)."""

    draw: ImageDraw.ImageDraw
    x_px: float
    ground_px: float
    unit_px: float
    light: float

    def at(self, right: float, up: float) -> tuple[float, float]:
        return self.x_px + right * self.unit_px, self.ground_px - up * self.unit_px

    def disc(self, right: float, up: float, radius: float, colour: RGB, flat: float = 1.0) -> None:
        x, y = self.at(right, up)
        rx = radius * self.unit_px
        ry = rx * flat
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)

    def shape(self, corners: Sequence[tuple[float, float]], colour: RGB) -> None:
        x, y, unit = self.x_px, self.ground_px, self.unit_px
        self.draw.polygon([(x + right * unit, y - up * unit) for right, up in corners], fill=colour)


@lru_cache(maxsize=4096)
def _shade(colour: RGB, factor: float) -> RGB:
    red, green, blue = (min(255, int(value * factor + (factor - 1) * 14)) for value in colour)
    return max(0, red), max(0, green), max(0, blue)


def draw_figure(
    image: Image.Image, look: Look, skeleton: Skeleton, foot_px: tuple[float, float], unit_px: float, light: float
) -> None:
    """Draw somebody onto `image`, the far parts first.

    Args:
        image: RGB picture, changed in place.
        look: the person.
        skeleton: the person's joints.
        foot_px: where the ground under the body's middle lies, (x, y).
        unit_px: height of the body in pixels.
        light: side that the light comes from, -1 left … 1 right.
    """
    pen = _Pen(ImageDraw.Draw(image), foot_px[0], foot_px[1], unit_px, light)
    towards = math.cos(skeleton.facing)
    far_arm, near_arm = sorted(skeleton.arms, key=lambda arm: arm[0][2])
    side_on = abs(towards) < 0.85
    if look.bag == "backpack" and towards > -0.25:
        _backpack(pen, look, skeleton)
    if look.hair_style == "long" and towards > 0:
        _long_hair(pen, look, skeleton)
    if side_on:
        _arm_shape(pen, look, far_arm, 0.82)
    for leg, shade in zip(sorted(skeleton.legs, key=lambda leg: leg[1][2]), (0.84, 1.0), strict=True):
        _leg_shape(pen, look, leg, shade)
    _clothes(pen, look, skeleton)
    if not side_on:
        _arm_shape(pen, look, far_arm, 0.96)
    _head(pen, look, skeleton)
    if look.hair_style == "long" and towards <= 0:
        _long_hair(pen, look, skeleton)
    if look.bag == "backpack" and towards <= -0.25:
        _backpack(pen, look, skeleton)
    _arm_shape(pen, look, near_arm, 1.0)
    if look.bag == "handbag":
        _handbag(pen, look, skeleton.arms[0])


def _segment(pen: _Pen, start: Point, stop: Point, radii: tuple[float, float], colour: RGB) -> None:
    """A straight limb with round ends: `radii` at `start` and at `stop`."""
    across, along = stop[0] - start[0], stop[1] - start[1]
    length = math.hypot(across, along) or 1e-6
    right, up = along / length, -across / length
    r, s = radii
    pen.disc(start[0], start[1], r, colour)
    pen.disc(stop[0], stop[1], s, colour)
    pen.shape(
        (
            (start[0] + right * r, start[1] + up * r),
            (stop[0] + right * s, stop[1] + up * s),
            (stop[0] - right * s, stop[1] - up * s),
            (start[0] - right * r, start[1] - up * r),
        ),
        colour,
    )


def _limb(pen: _Pen, joints: Sequence[Point], radii: Sequence[float], reach: float, colour: RGB) -> None:
    """A bent limb up to `reach` (1 its middle joint, 2 its end), darker on the side away from the light."""
    upper, lower = min(1.0, reach), max(0.0, reach - 1.0)
    points = (joints[0], _between(joints[0], joints[1], upper), _between(joints[1], joints[2], lower))
    widths = (radii[0], radii[0] + (radii[1] - radii[0]) * upper, radii[1] + (radii[2] - radii[1]) * lower)
    for shade, size, offset in ((0.82, 1.0, 0.0), (1.0, 0.78, 0.24 * pen.light)):
        tone = _shade(colour, shade)
        moved = [(point[0] + offset * width, point[1], 0.0) for point, width in zip(points, widths, strict=True)]
        _segment(pen, moved[0], moved[1], (widths[0] * size, widths[1] * size), tone)
        if lower:
            _segment(pen, moved[1], moved[2], (widths[1] * size, widths[2] * size), tone)


def _between(start: Point, stop: Point, share: float) -> Point:
    return start[0] + (stop[0] - start[0]) * share, start[1] + (stop[1] - start[1]) * share, 0.0


def _leg_shape(pen: _Pen, look: Look, leg: Sequence[Point], shade: float) -> None:
    radii = [radius * (0.55 + 0.45 * look.breadth) for radius in _LEG_RADII]
    ankle, toe = leg[2], leg[3]
    heel = (ankle[0] - 0.1 * (toe[0] - ankle[0]), ankle[1] - 0.02, 0.0)
    if look.skirt or look.leg < 2.0:
        _limb(pen, leg[:3], [radius * 0.86 for radius in radii], 2.0, _shade(look.skin, shade))
    _segment(pen, heel, (toe[0], toe[1] - 0.002, 0.0), (0.027, 0.021), _shade(look.shoes, shade * 0.94))
    if not look.skirt:
        _limb(pen, leg[:3], radii, look.leg, _shade(look.lower, shade))


def _arm_shape(pen: _Pen, look: Look, arm: Sequence[Point], shade: float) -> None:
    radii = [radius * (0.6 + 0.4 * look.breadth) for radius in _ARM_RADII]
    pen.disc(arm[2][0], arm[2][1] - 0.008, 0.024, _shade(look.skin, 0.94 * shade))
    if look.sleeve < 2.0:
        _limb(pen, arm, [radius * 0.84 for radius in radii], 2.0, _shade(look.skin, shade))
    cloth = look.accent if look.pattern == "block" else look.upper
    _limb(pen, arm, radii, look.sleeve, _shade(cloth, shade))


def _levels(look: Look, skeleton: Skeleton, rows: Sequence[Point]) -> list[tuple[float, float]]:
    """(height, half width on the picture) of body levels given as (height, half breadth, half depth)."""
    sine, cosine = math.sin(skeleton.facing), math.cos(skeleton.facing)
    return [
        (up + skeleton.lift, math.hypot(breadth * look.breadth * cosine, depth * (0.5 + 0.5 * look.breadth) * sine))
        for up, breadth, depth in rows
    ]


def _tube(pen: _Pen, levels: Sequence[tuple[float, float]], colour: RGB) -> None:
    """A body of revolution: mid tone, dark on one flank and light on the other."""
    for inner, outer, shade in ((-1.0, 1.0, 1.0), (-1.0, -0.5, 0.8), (0.52, 0.86, 1.1)):
        side = pen.light if abs(pen.light) > 0.2 else 1.0
        low, high = (inner * math.copysign(1.0, side), outer * math.copysign(1.0, side))
        corners = [(half * low, up) for up, half in levels] + [(half * high, up) for up, half in reversed(levels)]
        pen.shape(corners, _shade(colour, shade))


def _cut(levels: Sequence[tuple[float, float]], top: float, bottom: float) -> list[tuple[float, float]]:
    """The part of `levels` (from high to low) between two heights."""
    ups = [up for up, _ in levels][::-1]
    halves = [half for _, half in levels][::-1]
    inside = [(up, half) for up, half in levels if bottom < up < top]
    ends = [(up, float(np.interp(up, ups, halves))) for up in (top, bottom)]
    return [ends[0], *inside, ends[1]]


def _clothes(pen: _Pen, look: Look, skeleton: Skeleton) -> None:
    """Lower garment around the hips, upper garment with its pattern."""
    if look.skirt:
        hem = (look.skirt, 0.132, 0.128)
        _tube(pen, _levels(look, skeleton, (*_TORSO[4:6], (0.49, 0.116, 0.09), hem)), look.lower)
    else:
        _tube(pen, _levels(look, skeleton, (*_TORSO[4:], (0.45, 0.098, 0.076))), look.lower)
    rows = [row for row in _TORSO if row[0] > look.hem]
    flare = 0.116 + 0.1 * max(0.0, 0.45 - look.hem)
    levels = _levels(look, skeleton, (*rows, (look.hem, flare, 0.088)))
    _tube(pen, levels, look.upper)
    _pattern(pen, look, skeleton, levels)
    if look.bag == "backpack" and math.cos(skeleton.facing) > 0.3:
        _straps(pen, look, skeleton)
    neck = _levels(look, skeleton, ((0.87, 0.03, 0.03), (0.828, 0.04, 0.035)))
    _tube(pen, neck, _shade(look.skin, 0.86))


def _straps(pen: _Pen, look: Look, skeleton: Skeleton) -> None:
    """What is seen of a backpack from before."""
    sine, towards = math.sin(skeleton.facing), math.cos(skeleton.facing)
    half, lift = 0.011, skeleton.lift
    for side in (-1, 1):
        top, bottom = 0.064 * side * towards + 0.03 * sine, 0.078 * side * towards + 0.05 * sine
        corners = ((top - half, 0.826), (top + half, 0.826), (bottom + half, 0.66), (bottom - half, 0.66))
        pen.shape([(x, y + lift) for x, y in corners], _shade(look.bag_colour, 0.9))


def _pattern(pen: _Pen, look: Look, skeleton: Skeleton, levels: list[tuple[float, float]]) -> None:
    lift, front = skeleton.lift, math.sin(skeleton.facing)
    towards = math.cos(skeleton.facing)
    if look.pattern == "striped":
        for top in np.arange(0.77, look.hem + 0.04, -0.055):
            _tube(pen, _cut(levels, top + lift, top - 0.024 + lift), look.accent)
    elif look.pattern == "block":
        _tube(pen, _cut(levels, 0.84 + lift, 0.70 + lift), look.accent)
    elif look.pattern == "print" and abs(towards) > 0.35:
        half = 0.05 * abs(towards)
        middle = front * 0.05 * math.copysign(1.0, towards)
        pen.shape(
            [(middle + x * half, y + lift) for x, y in ((-1, 0.74), (1, 0.74), (1, 0.65), (-1, 0.65))], look.accent
        )
    elif look.pattern == "open" and towards > 0.1:
        middle, half = front * 0.07, 0.034 * towards
        bottom = max(look.hem, 0.45)
        corners = ((-1.2, 0.83), (1.2, 0.83), (1, 0.6), (1, bottom), (-1, bottom), (-1, 0.6))
        pen.shape([(middle + x * half, y + lift) for x, y in corners], look.accent)


def _head(pen: _Pen, look: Look, skeleton: Skeleton) -> None:
    """Hair all around, and before it, as far as it is turned to the camera, a flat patch of skin."""
    sine, towards = math.sin(skeleton.facing), math.cos(skeleton.facing)
    middle, up = 0.012 * sine, _HEAD + skeleton.lift
    scalp = look.skin if look.hair_style == "bald" else look.hair
    pen.disc(middle, up, 0.063, _shade(look.skin, 0.88), 1.25)
    pen.disc(middle, up + 0.008, 0.067, _shade(scalp, 0.84), 1.14)
    pen.disc(middle + 0.018 * pen.light, up + 0.02, 0.043, scalp, 1.1)
    if look.hair_style == "bun":
        pen.disc(middle - 0.062 * sine, up + 0.055, 0.03, scalp)
    visible = min(1.0, max(0.0, 0.62 + 0.75 * towards))
    if visible > 0.1:
        pen.disc(middle + 0.032 * sine, up - 0.016, 0.054 * (0.55 + 0.45 * visible), look.skin, 1.22)
    elif look.hair_style != "long":
        pen.disc(middle, up - 0.058, 0.036, _shade(look.skin, 0.84), 0.7)
    if look.hair_style == "cap":
        x, y = pen.at(middle, up + 0.012)
        r = 0.071 * pen.unit_px
        pen.draw.pieslice((x - r, y - r * 1.1, x + r, y + r), 180, 360, fill=look.accent)
        pen.disc(middle + 0.06 * sine, up + 0.012, 0.03 + 0.02 * abs(towards), _shade(look.accent, 0.7), 0.3)


def _long_hair(pen: _Pen, look: Look, skeleton: Skeleton) -> None:
    sine = math.sin(skeleton.facing)
    top = (-0.012 * sine, _HEAD + 0.005 + skeleton.lift, 0.0)
    bottom = (-0.035 * sine, _HEAD - 0.125 + skeleton.lift, 0.0)
    _segment(pen, top, bottom, (0.065, 0.062 - 0.016 * abs(sine)), _shade(look.hair, 0.84))
    if math.cos(skeleton.facing) <= 0:
        shift = 0.02 * pen.light
        _segment(pen, (top[0] + shift, top[1], 0.0), (bottom[0] + shift, bottom[1], 0.0), (0.034, 0.03), look.hair)


def _backpack(pen: _Pen, look: Look, skeleton: Skeleton) -> None:
    towards, lift = math.cos(skeleton.facing), skeleton.lift
    middle, half = pack_span(skeleton.facing)
    rows = [(0.815 + lift, half * 0.6), (0.79 + lift, half), (0.60 + lift, half), (0.575 + lift, half * 0.75)]
    body = _Pen(pen.draw, pen.x_px + middle * pen.unit_px, pen.ground_px, pen.unit_px, pen.light)
    _tube(body, rows, look.bag_colour)
    if towards <= -0.25:
        _tube(body, [(0.69 + lift, half * 0.7), (0.61 + lift, half * 0.7)], _shade(look.bag_colour, 0.82))


def _handbag(pen: _Pen, look: Look, arm: Sequence[Point]) -> None:
    x, y, _ = arm[2]
    strap = [pen.at(x - 0.02, y - 0.06), pen.at(x, y), pen.at(x + 0.02, y - 0.06)]
    pen.draw.line(strap, fill=_shade(look.bag_colour, 0.7), width=max(1, round(0.01 * pen.unit_px)))
    bag = _Pen(pen.draw, pen.x_px + x * pen.unit_px, pen.ground_px, pen.unit_px, pen.light)
    _tube(bag, [(y - 0.05, 0.042), (y - 0.14, 0.056)], look.bag_colour)
