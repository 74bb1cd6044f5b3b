"""The whole way on drawn people: sample → pack → verify → load → stream → embed → evaluate → picture."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from entire_id.errors import ManifestError, OutputExistsError
from entire_id.loading.embed import embed
from entire_id.loading.hf import load
from entire_id.records import Progress, no_progress
from entire_id.score import score_features
from entire_id.shards.pack import PackConfig, pack
from entire_id.shards.verify import verify
from entire_id.show import draw_people, draw_ranking
from entire_id.sources.layouts import open_source
from entire_id.sources.sample import SampleConfig, draw_sample

__all__ = ["DemoConfig", "Step", "run_demo"]

_MARK = ".entire-id-demo"
_MADE = {_MARK, "crops", "entire-id", "entire-id.features", "people.png", "ranking.png"}
_MADE |= {f"{name}.partial" for name in _MADE}  # of a demo that was killed


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Where and on how much the demo runs.

    Attributes:
        folder: where everything is put.
        num_crops: size of the drawn sample.
        seed: of the drawn sample.
    """

    folder: Path
    num_crops: int = 2000
    seed: int = 0

    @property
    def sample(self) -> SampleConfig:
        """What is drawn. Raises ValueError where that cannot be."""
        return SampleConfig.of_size(self.num_crops, self.seed)

    @property
    def crops(self) -> Path:
        """The drawn crops, in the official layout."""
        return self.folder / "crops"

    @property
    def packed(self) -> Path:
        """The packed data set."""
        return self.folder / "entire-id"

    @property
    def features(self) -> Path:
        """The colour descriptors."""
        return self.folder / "entire-id.features" / "colour"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the demo's table: what was done, with what result, in how many seconds."""

    name: str
    result: str
    seconds: float


def run_demo(config: DemoConfig, progress: Progress = no_progress) -> list[Step]:
    """Run every step of the spine and return what each gave.

    An earlier demo in the folder is replaced.

    Raises:
        OutputExistsError: the folder holds something that no demo made.
    """
    config.sample  # noqa: B018 a size that cannot be drawn is refused before anything is cleared
    _clear(config.folder)
    steps = []
    for name, action in _STEPS.items():
        progress(name, 0, 0)
        start = time.perf_counter()
        result = action(config, progress)
        steps.append(Step(name, result, time.perf_counter() - start))
    return steps


def _clear(folder: Path) -> None:
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if strangers := found - _MADE if _MARK in found else found:
        raise OutputExistsError(folder, f"it holds {min(strangers)!r}, which no demo made")
    if found:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def _sample(config: DemoConfig, progress: Progress) -> str:
    drawn = draw_sample(config.crops, config.sample, lambda done: progress("sample", done, config.num_crops))
    return f"{drawn:,} crops of drawn people"


def _pack(config: DemoConfig, progress: Progress) -> str:
    report = pack(open_source(config.crops), config.packed, PackConfig(), progress)
    splits = ", ".join(f"{split} {total.rows:,}" for split, total in report.manifest.splits.items())
    return f"{splits}; {len(report.manifest.shards)} shards, {sum(report.rejected.values())} files rejected"


def _verify(config: DemoConfig, progress: Progress) -> str:
    report = verify(config.packed, progress)
    if report.problems:
        raise ManifestError(
            config.packed, f"{len(report.problems)} problems, the first: {report.problems[0]}", config.packed
        )
    return f"{report.rows:,} rows, no problem"


def _load(config: DemoConfig, progress: Progress) -> str:
    import datasets

    datasets.disable_progress_bars()
    splits = load(config.packed)
    return ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())


def _stream(config: DemoConfig, progress: Progress) -> str:
    rows = load(config.packed, split="gallery", streaming=True)
    pids = [row["pid"] for row in rows.take(256)]
    return f"{len(pids)} rows, {len(set(pids))} people among them"


def _embed(config: DemoConfig, progress: Progress) -> str:
    embed(config.packed, ["query", "gallery"], "colour", config.features, progress)
    return "colour histograms of six stripes"


def _evaluate(config: DemoConfig, progress: Progress) -> str:
    scores = score_features(config.packed, config.features, progress=progress)
    return f"mAP {scores.mAP:.1%}, Rank-1 {scores.rank(1):.1%}, mINP {scores.mINP:.1%}"


def _picture(config: DemoConfig, progress: Progress) -> str:
    draw_people(config.packed, "gallery").save(config.folder / "people.png")
    draw_ranking(config.packed, config.features).save(config.folder / "ranking.png")
    return "people.png, ranking.png"


_STEPS: dict[str, Callable[[DemoConfig, Progress], str]] = {
    "sample": _sample,
    "pack": _pack,
    "verify": _verify,
    "load": _load,
    "stream": _stream,
    "embed": _embed,
    "evaluate": _evaluate,
    "picture": _picture,
}
