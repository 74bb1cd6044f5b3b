"""Drawn people as numbers: what somebody looks like, how they stand, where their joints are.

Body units: 1 is the body's height, 0 the ground. A joint is (lateral, height, forward) on the body and, once turned
towards the camera, (right, up, near) on the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["RGB", "Look", "Point", "Pose", "Skeleton", "make_look", "pack_span", "pose_skeleton"]

RGB = tuple[int, int, int]
Point = tuple[float, float, float]

_SKINS: tuple[RGB, ...] = (
    (244, 212, 186), (229, 186, 150), (205, 153, 112), (166, 114, 78), (122, 80, 54), (86, 56, 40),
)  # fmt: skip
_HAIRS: tuple[RGB, ...] = ((32, 27, 26), (58, 40, 30), (96, 66, 42), (176, 138, 84), (150, 148, 146), (128, 62, 38))
_UPPERS: tuple[RGB, ...] = (
    (38, 38, 42), (38, 38, 42), (44, 56, 92), (44, 56, 92), (124, 126, 130), (226, 224, 218), (226, 224, 218),
    (176, 48, 48), (92, 140, 186), (70, 112, 78), (204, 184, 148), (112, 76, 54), (222, 150, 160), (226, 178, 66),
    (108, 84, 138), (54, 128, 132),
)  # fmt: skip
_LOWERS: tuple[RGB, ...] = (
    (36, 36, 40), (36, 36, 40), (52, 66, 104), (52, 66, 104), (88, 112, 150), (96, 96, 100), (150, 134, 108),
    (84, 88, 66), (206, 202, 192), (110, 78, 60),
)  # fmt: skip
_SHOES: tuple[RGB, ...] = ((34, 32, 32), (236, 236, 232), (92, 64, 44), (150, 150, 152), (164, 52, 50))
_BAGS: tuple[RGB, ...] = ((40, 40, 44), (120, 82, 52), (176, 56, 52), (58, 88, 128), (96, 118, 74), (206, 160, 80))

_PATTERNS = ("plain", "plain", "plain", "plain", "striped", "block", "print", "open", "open")
_HAIR_STYLES = ("short", "short", "short", "long", "long", "bun", "cap", "bald")
_CARRIED = ("none", "none", "none", "backpack", "backpack", "handbag")

_THIGH, _SHIN, _ANKLE = 0.235, 0.225, 0.045
_UPPER_ARM, _FOREARM = 0.165, 0.15
_HIP, _SHOULDER = 0.505, 0.785


@dataclass(frozen=True, slots=True)
class Look:
    """What one person looks like, whoever watches.

    Attributes:
        breadth: body breadth, relative to the average.
        height: body height, relative to the average.
        skin: colour of the skin.
        hair: colour of the hair.
        hair_style: `short`, `long`, `bun`, `cap` or `bald`.
        upper: colour of the upper garment.
        accent: second colour of the upper garment, and of a cap.
        pattern: `plain`, `striped`, `block` (two-coloured), `print` (a patch on chest and back) or `open` (a jacket).
        sleeve: how far sleeves reach: 0 shoulder, 1 elbow, 2 wrist.
        hem: body height at which the upper garment ends.
        lower: colour of the lower garment.
        leg: how far trousers reach: 1 knee, 2 ankle.
        skirt: body height at which a skirt ends; 0 is no skirt.
        shoes: colour of the shoes.
        bag: `none`, `backpack` or `handbag`.
        bag_colour: colour of the bag.
    """

    breadth: float
    height: float
    skin: RGB
    hair: RGB
    hair_style: str
    upper: RGB
    accent: RGB
    pattern: str
    sleeve: float
    hem: float
    lower: RGB
    leg: float
    skirt: float
    shoes: RGB
    bag: str
    bag_colour: RGB


@dataclass(frozen=True, slots=True)
class Pose:
    """How somebody stands at one moment.

    Attributes:
        facing: radians; 0 looks into the camera, π/2 to the right of the picture, π away.
        phase: radians of the walking cycle.
        stride: swing of the thighs, radians; 0 stands still.
    """

    facing: float
    phase: float
    stride: float


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Joints turned towards the camera, in body units: (right, up, near).

    Attributes:
        legs: hip, knee, ankle, toe of either leg.
        arms: shoulder, elbow, hand of either arm.
        facing: as in `Pose`.
        tilt: how much higher on the picture a farther point lies, body units per body unit.
        lift: how far the walking cycle raises the body, body units.
    """

    legs: tuple[tuple[Point, ...], tuple[Point, ...]]
    arms: tuple[tuple[Point, ...], tuple[Point, ...]]
    facing: float
    tilt: float
    lift: float

    @property
    def bottom(self) -> float:
        """Lowest reach of the shoes, body units; below 0 where the camera looks down on a near foot."""
        return min(joint[1] for leg in self.legs for joint in leg[2:]) - 0.026

    def sides(self, look: Look) -> tuple[float, float]:
        """Leftmost and rightmost reach of the figure and of what it carries, body units."""
        sine, cosine = math.sin(self.facing), math.cos(self.facing)
        trunk = look.breadth * math.hypot((0.132 if look.skirt else 0.122) * cosine, 0.085 * sine)
        spans = [(joint[0], 0.036) for limb in (*self.legs, *self.arms) for joint in limb]
        spans += [(0.0, trunk), (0.02 * sine, 0.072)]  # 0.072: the head
        if look.bag == "backpack":
            spans.append(pack_span(self.facing))
        elif look.bag == "handbag":
            spans.append((self.arms[0][2][0], 0.058))
        return min(middle - half for middle, half in spans), max(middle + half for middle, half in spans)


def make_look(rng: np.random.Generator) -> Look:
    """Draw somebody's looks: garments in the few colours that most people wear, each in a shade of its own."""

    def pick(colours: Sequence[RGB]) -> RGB:
        red, green, blue = np.clip(rng.choice(colours) + rng.normal(0, 6, 3) + rng.normal(0, 5), 8, 247).astype(int)
        return int(red), int(green), int(blue)

    upper, lower = pick(_UPPERS), pick(_LOWERS)
    skirted = rng.random() < 0.2
    dress = skirted and rng.random() < 0.5
    coat = rng.random() < 0.18
    return Look(
        breadth=float(rng.uniform(0.9, 1.24)),
        height=float(rng.uniform(0.9, 1.08)),
        skin=pick(_SKINS),
        hair=pick(_HAIRS),
        hair_style=str(rng.choice(_HAIR_STYLES)),
        upper=upper,
        accent=pick(_UPPERS),
        pattern=str(rng.choice(_PATTERNS)),
        sleeve=2.0 if coat else float(rng.choice([0.55, 0.7, 2.0, 2.0])),
        hem=float(rng.uniform(0.3, 0.36)) if coat else float(rng.uniform(0.45, 0.49)),
        lower=upper if dress else lower,
        leg=float(rng.choice([0.85, 1.15, 2.0, 2.0, 2.0, 2.0])),
        skirt=float(rng.uniform(0.16, 0.33)) if skirted else 0.0,
        shoes=pick(_SHOES),
        bag=str(rng.choice(_CARRIED)),
        bag_colour=pick(_BAGS),
    )


def pose_skeleton(look: Look, pose: Pose, tilt: float) -> Skeleton:
    """Return the joints of somebody who walks: legs swing against each other, arms against the legs.

    Args:
        look: the person.
        pose: the moment.
        tilt: see `Skeleton`.
    """
    legs = [_leg(0.056 * side * look.breadth, pose, side) for side in (-1, 1)]
    lift = _ANKLE - min(leg[2][1] for leg in legs)  # the lower foot stands on the ground
    arms = [_arm(0.116 * side * look.breadth, pose, side) for side in (-1, 1)]
    sine, cosine = math.sin(pose.facing), math.cos(pose.facing)

    def turn(joint: Point) -> Point:
        lateral, up, forward = joint
        near = forward * cosine - lateral * sine
        return lateral * cosine + forward * sine, up + lift - near * tilt, near

    left_leg, right_leg = (tuple(map(turn, leg)) for leg in legs)
    left_arm, right_arm = (tuple(map(turn, arm)) for arm in arms)
    return Skeleton((left_leg, right_leg), (left_arm, right_arm), pose.facing, tilt, lift)


def _leg(lateral: float, pose: Pose, side: int) -> tuple[Point, ...]:
    """Hip, knee, ankle, toe, before the figure is turned."""
    phase = pose.phase + (math.pi if side > 0 else 0.0)
    swing = pose.stride * math.sin(phase)
    bent = swing - 0.08 - pose.stride * 1.5 * max(0.0, math.cos(phase)) ** 2  # the leg that swings forward bends
    knee = (lateral, _HIP - _THIGH * math.cos(swing), _THIGH * math.sin(swing))
    ankle = (lateral, knee[1] - _SHIN * math.cos(bent), knee[2] + _SHIN * math.sin(bent))
    pitch = 0.7 * bent
    toe = (lateral * 1.35, ankle[1] - 0.018 + 0.075 * math.sin(pitch), ankle[2] + 0.075 * math.cos(pitch))
    return (lateral, _HIP, 0.0), knee, ankle, toe


def _arm(lateral: float, pose: Pose, side: int) -> tuple[Point, ...]:
    """Shoulder, elbow, hand, before the figure is turned."""
    swing = -0.85 * pose.stride * math.sin(pose.phase + (math.pi if side > 0 else 0.0))
    bent = swing + 0.18 + 0.5 * pose.stride
    elbow = (lateral + 0.026 * side, _SHOULDER - _UPPER_ARM * math.cos(swing), _UPPER_ARM * math.sin(swing))
    hand = (lateral + 0.034 * side, elbow[1] - _FOREARM * math.cos(bent), elbow[2] + _FOREARM * math.sin(bent))
    return (lateral, _SHOULDER, 0.0), elbow, hand


def pack_span(facing: float) -> tuple[float, float]:
    """Return the middle and the half width of a backpack on the picture, body units."""
    return -0.1 * math.sin(facing), math.hypot(0.1 * math.cos(facing), 0.06 * math.sin(facing))
