"""Does the baseline learn? A tiny network of random weights, trained on drawn people on the CPU: `make bench-train`."""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from entire_id import PackConfig, TrainConfig, embed, open_source, open_trained, pack, read_manifest, train
from entire_id.score import score_features
from entire_id.sources.sample import SampleConfig, draw_sample

CROPS, SEED = 6_000, 0  # half of them train, of other people than those who are scored


def new_set(work: Path) -> Path:
    """Draw and pack the data set, unless it is there."""
    folder = work / "entire-id"
    if not folder.is_dir():
        draw_sample(work / "crops", SampleConfig.of_size(CROPS, SEED, train=True))
        pack(open_source(work / "crops"), folder, PackConfig(name="entire-id"))
    return folder


def settings(folder: Path, steps: int) -> TrainConfig:
    return TrainConfig(
        datasets=(str(folder),),
        model="tiny",
        size=(128, 64),
        steps=steps,
        learning_rate=0.05,
        max_grad_norm=1.0,
        device="cpu",
        num_workers=1,
        checkpoint_every=steps // 5,
        weights_every=steps // 5,
    )


def scored(folder: Path, name: str, model: Path | None, work: Path) -> list[str]:
    """Return a row of the table: mAP and Rank-1 with their 95 % intervals."""
    features = work / "features" / name
    embed(folder, ["query", "gallery"], "colour" if model is None else open_trained(model, "cpu"), features)
    intervals = score_features(folder, features).intervals()
    return [
        name,
        *(
            f"{100 * one.value:.1f} ({100 * one.low:.1f}–{100 * one.high:.1f})"
            for one in (intervals["mAP"], intervals["rank1"])
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1_500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the other core reads crops; more threads wait for each other where others work too
    work: Path = arguments.work
    folder = new_set(work)
    config = settings(folder, arguments.steps)
    out = work / f"run-{arguments.steps}"
    start_s = time.perf_counter()
    report = train(config, out)
    spent_s = time.perf_counter() - start_s
    totals = {split: f"{total.rows:,} {split} crops" for split, total in read_manifest(folder).splits.items()}
    threads = f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"
    print(f"{', '.join(totals.values())}; {report.num_people} people trained on; {threads}")
    print(f"torch {torch.__version__}, transformers {version('transformers')}; trained in {spent_s:.0f} s")
    lines = {line["step"]: line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())}
    print("| step | mAP, % | Rank-1, % | loss | images/s | waited |\n|---|---|---|---|---|---|")
    for model in sorted((out / "weights").iterdir()):
        step = int(model.name.removeprefix("step-"))
        line = lines.get(step)
        rest = (
            ["–"] * 3
            if line is None
            else [f"{line['loss']:.2f}", f"{line['images_per_s']:.0f}", f"{100 * line['waited']:.0f} %"]
        )
        print(f"| {' | '.join([*scored(folder, str(step), model, work), *rest])} |", flush=True)
    print(f"| {' | '.join([*scored(folder, 'colour', None, work), *['–'] * 3])} |")


if __name__ == "__main__":
    main()
