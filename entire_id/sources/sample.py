"""Draw a data set of people for tests, demos and first steps: `draw_sample`.

It has the layout, the file names, the number of cameras and the crop sizes of ENTIRe-ID, and nobody in it: every figure
is drawn, and no face has a feature. As in the real task, one person's crops lie closer together within a camera than
between cameras, and several people dress alike.

Everything follows from the seed: a person's looks from (seed, part, pid), a camera from (seed, camid), a sequence
from (seed, part, pid, camid). Asking for more people changes nobody who was there before.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from entire_id.sources.drawn.figures import draw_figure
from entire_id.sources.drawn.people import Look, Pose, make_look, pose_skeleton
from entire_id.sources.drawn.scenes import CONTINENTS, NUM_CAMERAS, SCENE_PX, View, develop, make_views, soft_shadow
from entire_id.staging import new_folder

__all__ = ["SampleConfig", "draw_sample"]

_WIDTHS_PX = (22, 173)  # published sample crops, as are the heights
_HEIGHTS_PX = (62, 343)
_MAX_PID = 99_999  # five digits in a file name
_MAX_CAMERAS = 5  # that see one person
_MIN_CROPS = 2  # of a person in a camera: one query and one for the gallery
_FRAMES_PER_S = 25
_FAR_TRAVELLERS = 0.06  # share of people whom a camera on another continent sees, too
_PART_KEYS = {"test": 0, "train": 1}
_CAMERA_KEY, _LOOK_KEY, _ROUTE_KEY, _VISIT_KEY = range(4)  # keep the streams of random numbers apart


@dataclass(frozen=True, slots=True)
class SampleConfig:
    """How much to draw.

    Attributes:
        num_people: people of the test part with a query in every camera that sees them, 2 to 99,999.
        num_distractors: people of the gallery whom one camera sees, so that nobody looks for them; 0 or more.
        num_train_people: people of the train part, others than those of the test part; 0 draws no train part,
            as in the released data.
        crops_per_person: crops of a person over all cameras, 4 to 1,000.
        crops_per_distractor: crops of a distractor, 1 to 1,000.
        seed: where all random numbers come from, 0 or more.
    """

    num_people: int = 90
    num_distractors: int = 20
    num_train_people: int = 0
    crops_per_person: int = 20
    crops_per_distractor: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: a field is out of its range.
        """
        _check("num_people", self.num_people, 2, _MAX_PID)
        _check("num_distractors", self.num_distractors, 0, _MAX_PID - self.num_people)
        _check("num_train_people", self.num_train_people, 0, _MAX_PID)
        _check("crops_per_person", self.crops_per_person, 2 * _MIN_CROPS, 1000)
        _check("crops_per_distractor", self.crops_per_distractor, 1, 1000)
        _check("seed", self.seed, 0, 2**63)

    @property
    def num_crops(self) -> int:
        """Crops in all folders together."""
        people = self.num_people + self.num_train_people
        return people * self.crops_per_person + self.num_distractors * self.crops_per_distractor

    @classmethod
    def of_size(cls, num_crops: int, seed: int = 0, *, train: bool = False) -> SampleConfig:
        """Return a configuration with about `num_crops` crops, at most 5 % more or less.

        Args:
            num_crops: crops wanted, at least 20 (40 with a train part).
            seed: see `SampleConfig`.
            train: spend half of the crops on a train part.

        Raises:
            ValueError: `num_crops` or `seed` is out of its range.

        >>> SampleConfig.of_size(2000) == SampleConfig()
        True
        """
        _check("num_crops", num_crops, 40 if train else 20, 1_000_000)
        num_test = num_crops // 2 if train else num_crops
        per_person = min(20, num_test // 5)
        per_distractor = per_person // 2
        num_train = (num_crops - num_test) // per_person if train else 0
        num_test = num_crops - num_train * per_person
        num_people = int(num_test / (1.1 * per_person))  # the rest goes to distractors
        num_distractors = round((num_test - num_people * per_person) / per_distractor)
        return cls(num_people, num_distractors, num_train, per_person, per_distractor, seed)


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, expected {low:,} to {high:,}")


def draw_sample(out: Path, config: SampleConfig, on_crop: Callable[[int], None] | None = None) -> int:
    """Draw a data set into `out` and return the number of crops written.

    `out` gets the folders `query`, `bounding_box_test`, and `bounding_box_train` where a train part is asked for, and
    `cameras.csv`. It appears when it is complete; until then everything lies in `out` + `.partial`, which a killed run
    leaves behind and the next run replaces. The same configuration gives the same bytes.

    Args:
        out: a folder that is empty or does not exist.
        config: how much to draw.
        on_crop: called after every crop with the number of crops written so far.

    Raises:
        OutputExistsError: `out` is a file or a folder that holds something.
    """
    with new_folder(out) as partial:
        return _fill(partial, config, on_crop)


def _rng(config: SampleConfig, *keys: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, *keys))


def _fill(folder: Path, config: SampleConfig, on_crop: Callable[[int], None] | None) -> int:
    views = make_views([_rng(config, _CAMERA_KEY, camid) for camid in range(NUM_CAMERAS)])
    _write_cameras(folder / "cameras.csv", views)
    for name in ("query", "bounding_box_test", *(["bounding_box_train"] if config.num_train_people else [])):
        (folder / name).mkdir()
    num_crops = 0
    for visit in _visits(config):
        for name, picture in _draw_visit(visit, views[visit.camid], config):
            picture.save(folder / name, "JPEG", quality=views[visit.camid].quality)
            num_crops += 1
            if on_crop:
                on_crop(num_crops)
    return num_crops


def _write_cameras(path: Path, views: tuple[View, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("camid", "continent", "scene", "origin"))
        table.writerows((view.camid, view.continent, view.scene, "drawn") for view in views)


# --- who is seen where ------------------------------------------------------------------------------------------------


class _Visit(NamedTuple):
    """One person in one camera."""

    part: str
    pid: int
    camid: int
    num_crops: int
    has_query: bool


def _visits(config: SampleConfig) -> Iterator[_Visit]:
    """Everybody in every camera that sees them, person by person."""
    for part, num_people in (("test", config.num_people), ("train", config.num_train_people)):
        for pid in range(num_people):
            for camid, num_crops in _route(config, part, pid):
                yield _Visit(part, pid, camid, num_crops, part == "test")
    for pid in range(config.num_people, config.num_people + config.num_distractors):
        yield _Visit("test", pid, _home(pid), config.crops_per_distractor, has_query=False)


def _home(pid: int) -> int:
    """The camera nearest to where somebody lives: every camera gets as many people as the next."""
    return pid % NUM_CAMERAS


def _route(config: SampleConfig, part: str, pid: int) -> list[tuple[int, int]]:
    """Cameras that see somebody, with the number of crops in each: 2 to 5 cameras, nearly always on one continent."""
    rng = _rng(config, _ROUTE_KEY, _PART_KEYS[part], pid)
    home = _home(pid)
    same_continent = (np.arange(NUM_CAMERAS) - home) % len(CONTINENTS) == 0
    nearby = np.setdiff1d(np.flatnonzero(same_continent), [home])
    num_cameras = min(int(rng.integers(2, _MAX_CAMERAS + 1)), config.crops_per_person // _MIN_CROPS)
    camids = [home, *rng.permutation(nearby)[: num_cameras - 1].tolist()]
    if rng.random() < _FAR_TRAVELLERS:
        camids[-1] = int(rng.choice(np.flatnonzero(~same_continent)))
    spare = config.crops_per_person - _MIN_CROPS * num_cameras
    extra = rng.multinomial(spare, rng.dirichlet(np.full(num_cameras, 4.0)))
    return [(camid, _MIN_CROPS + int(more)) for camid, more in zip(camids, extra, strict=True)]


# --- one person walking past one camera -------------------------------------------------------------------------------


class _Walk(NamedTuple):
    """One sequence: where somebody starts, and what changes from crop to crop."""

    facing: float  # radians
    turn: float  # radians per second
    phase: float  # radians
    stride: float  # radians
    scene_x: float  # share of the backdrop's width
    foot_y: float  # share of the backdrop's height
    size: float  # relative to the camera's usual crop
    light: float  # factor on the camera's brightness


def _draw_visit(visit: _Visit, view: View, config: SampleConfig) -> Iterator[tuple[str, Image.Image]]:
    """The crops of one person in one camera: path below the output folder, and picture."""
    part = _PART_KEYS[visit.part]
    look = make_look(_rng(config, _LOOK_KEY, part, visit.pid))
    rng = _rng(config, _VISIT_KEY, part, visit.pid, visit.camid)
    query = int(rng.integers(visit.num_crops)) if visit.has_query else -1
    frame = int(rng.integers(0, 900_000))
    num_sequences = 1 + int(visit.num_crops >= 6 and rng.random() < 0.6)
    for seq, crops in enumerate(np.array_split(np.arange(visit.num_crops), num_sequences)):
        walk, start = _start_walk(rng), frame
        for crop in crops:
            picture = _draw_crop(view, look, walk, (frame - start) / _FRAMES_PER_S, rng)
            yield f"{_folder(visit.part, crop == query)}/{_name(visit, seq, frame)}", picture
            frame += int(rng.integers(3, 9))
        frame += int(rng.integers(500, 20_000))  # until the person comes by again


def _folder(part: str, is_query: bool) -> str:
    return "query" if is_query else f"bounding_box_{part}"


def _name(visit: _Visit, seq: int, frame: int) -> str:
    return f"{visit.pid:05d}_c{visit.camid:03d}s{seq}_{frame}.jpg"


def _start_walk(rng: np.random.Generator) -> _Walk:
    return _Walk(
        facing=float(rng.uniform(-math.pi, math.pi)),
        turn=float(rng.normal(0, 0.25)),
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=float(rng.choice([0.06, 0.26, 0.34, 0.42])),
        scene_x=float(rng.uniform(0.2, 0.8)),
        foot_y=float(rng.uniform(0.8, 0.94)),
        size=float(np.exp(rng.normal(0, 0.16))),
        light=float(np.exp(rng.normal(0, 0.05))),
    )


def _draw_crop(view: View, look: Look, walk: _Walk, time_s: float, rng: np.random.Generator) -> Image.Image:
    """One moment: the figure before its backdrop, in the box that a detector would have put around it."""
    pose = Pose(walk.facing + walk.turn * time_s, walk.phase + 5.6 * time_s, walk.stride)
    skeleton = pose_skeleton(look, pose, view.tilt)
    margins = rng.uniform(0.005, (0.03, 0.03, 0.04, 0.04))
    left, right = skeleton.sides(look)
    below = margins[1] - skeleton.bottom
    body = 1.0 + skeleton.lift + margins[0] + below  # height of the box, body units
    size = walk.size * look.height * (1 + 0.1 * math.cos(pose.facing) * time_s)  # nearer when walking up
    height = _clip(view.height_px * size, _HEIGHTS_PX)
    width = _clip(height * (right - left + margins[2] + margins[3]) / body, _WIDTHS_PX)
    unit = height / body
    foot = ((margins[2] - left) * unit, height - below * unit)

    scale = 4 if height < 110 else 3 if height < 170 else 2  # draw large, then shrink: smooth edges
    scene_x = walk.scene_x + 0.18 * math.sin(pose.facing) * time_s
    picture = _backdrop_at(view, scene_x, walk.foot_y, (width, height), foot[1] / height)
    _cast_shadow(picture, foot, unit, view)
    large = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
    draw_figure(large, look, skeleton, (foot[0] * scale, foot[1] * scale), unit * scale, view.light)
    return develop(large.reduce(scale), view, walk.light, rng)


def _clip(value: float, limits: tuple[int, int]) -> int:
    return round(min(max(value, limits[0]), limits[1]))


def _backdrop_at(view: View, x: float, foot_y: float, size_px: tuple[int, int], foot: float) -> Image.Image:
    """Cut the part of the backdrop that a crop shows.

    Args:
        view: the camera.
        x: middle of the crop, share of the backdrop's width.
        foot_y: where the feet stand, share of the backdrop's height.
        size_px: width and height of the crop.
        foot: where the feet are in the crop, share of its height.
    """
    width, height = size_px
    tall = 0.72 * SCENE_PX[1]
    wide = tall * width / height
    top = min(max(0.0, foot_y * SCENE_PX[1] - foot * tall), SCENE_PX[1] - tall)
    left = min(max(0.0, x * SCENE_PX[0] - wide / 2), SCENE_PX[0] - wide)
    return view.backdrop.resize(size_px, Image.Resampling.BILINEAR, (left, top, left + wide, top + tall))


_SHADOW = soft_shadow()


def _cast_shadow(picture: Image.Image, foot: tuple[float, float], unit: float, view: View) -> None:
    """Darken the ground under the feet, a little to the side away from the light."""
    width, height = max(4, round(0.52 * unit)), max(3, round((0.06 + 0.2 * view.tilt) * unit))
    corner = (round(foot[0] - width / 2 - 0.07 * view.light * unit), round(foot[1] - 0.52 * height))
    picture.paste((28, 28, 36), corner, _SHADOW.resize((width, height)))
