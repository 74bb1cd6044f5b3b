"""The verb that trains."""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entire_id.cli.terminal import JsonOption, numbers, print_json, print_table, progress_bar, quoted, say, usage

if TYPE_CHECKING:
    from entire_id.experiments.training import TrainReport

__all__ = ["app"]

app = typer.Typer()


class Side(StrEnum):
    """What the network is told of a crop besides its pixels."""

    NONE = "none"
    CAMERA = "camera"
    CONTINENT = "continent"


class Precision(StrEnum):
    """Type that is computed in."""

    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"


class TrainDevice(StrEnum):
    """Where a network is trained."""

    AUTO = "auto"
    CPU = "cpu"


class TestedFeature(StrEnum):
    """Which feature is compared."""

    AFTER = "after"
    BEFORE = "before"


@app.command()
def train(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Folders, owner/name, or URLs; joined.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder to make, or of the run to go on with.")],
    model: Annotated[
        str, typer.Option(help="tiny, vit-ti, vit-s, vit-b (random weights); or a folder or owner/name of the Hub.")
    ] = "vit-b",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")] = None,
    split: Annotated[str, typer.Option(help="Split to train on, or several: train+val.")] = "train",
    stream: Annotated[bool, typer.Option("--stream", help="Read shards as they are needed.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Batches that each process takes.")] = 24_000,
    p: Annotated[int, typer.Option(min=2, help="People in a batch of one process.")] = 16,
    k: Annotated[int, typer.Option(min=2, help="Crops of each.")] = 4,
    size: Annotated[str, typer.Option(metavar="HxW", help="Resize crops.")] = "256x128",
    stride: Annotated[int, typer.Option(min=0, help="Px between patches; 0: no overlap, 12: as in TransReID.")] = 0,
    side: Annotated[Side, typer.Option(help="Tell the network camera or continent of each crop.")] = Side.NONE,
    test_feature: Annotated[
        TestedFeature, typer.Option(help="Compare features after or before the BNNeck.")
    ] = TestedFeature.AFTER,
    learning_rate: Annotated[float, typer.Option(help="Highest of the schedule.")] = 0.008,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of SGD.")] = 1e-4,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")] = 0.05,
    max_grad_norm: Annotated[float, typer.Option(min=0, help="Clip gradients; 0: never.")] = 0.0,
    label_smoothing: Annotated[float, typer.Option(help="Of the identity loss.")] = 0.0,
    margin: Annotated[float | None, typer.Option(help="Of the triplet loss. [default: the soft margin]")] = None,
    ema_decay: Annotated[float, typer.Option(help="Keep a moving average of the weights; 0: the weights.")] = 0.0,
    precision: Annotated[Precision, typer.Option(help="Mixed precision.")] = Precision.NO,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    device: Annotated[TrainDevice, typer.Option(help="Where it is trained.")] = TrainDevice.AUTO,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read crops, for each that trains.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and augmentations.")] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between two lines of the log.")] = 50,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 1_000,
    weights_every: Annotated[int, typer.Option(min=0, help="Keep weights every so many steps; 0: the last.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train the ViT baseline. The same command goes on after the last checkpoint of a run that was stopped."""
    from entire_id import TrainConfig
    from entire_id import train as run_training

    with usage():
        config = TrainConfig(
            datasets=tuple(datasets),
            split=split,
            stream=stream,
            model=model,
            revision=revision,
            size=numbers(size, "x", int, 2) or (256, 128),
            stride=stride,
            side=side.value,
            test_feature=test_feature.value,
            p=p,
            k=k,
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            max_grad_norm=max_grad_norm,
            label_smoothing=label_smoothing,
            margin=margin,
            ema_decay=ema_decay,
            precision=precision.value,
            gradient_checkpointing=gradient_checkpointing,
            device=device.value,
            num_workers=workers,
            seed=seed,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            weights_every=weights_every,
        )
    with progress_bar() as progress:
        report = run_training(config, out, progress, say)
    rank = _leave_group()
    if not rank:
        _tell_trained(report, datasets[0], as_json=as_json)
    if rank is not None:
        _leave_at_once()


def _tell_trained(report: TrainReport, dataset: str, *, as_json: bool) -> None:
    facts = {"model": str(report.model), "steps": report.steps, "people": report.num_people, **report.metrics}
    if as_json:
        print_json(facts)
        return
    print_table(["", ""], [[name, value if isinstance(value, str) else f"{value:g}"] for name, value in facts.items()])
    say(f"next: entire-id embed {shlex.quote(dataset)} --model {quoted(report.model)}")


def _leave_group() -> int | None:
    """Leave the group of processes that train together; return the number of this one, None where there is no group."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    rank: int = distributed.get_rank()
    distributed.destroy_process_group()
    return rank


def _leave_at_once() -> None:
    """End this process, without what the end of an interpreter brings.

    There torch 2.13 aborts now and then, in threads of gloo that outlive their group; whoever started the processes
    takes that for a failure, and ends the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
