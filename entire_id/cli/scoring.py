"""Verbs that embed, score and draw."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entire_id.cli.terminal import (
    JsonOption,
    numbers,
    print_json,
    print_table,
    progress_bar,
    quoted,
    say,
    usage,
)
from entire_id.records import Progress

if TYPE_CHECKING:
    from entire_id.evaluation.breakdown import Interval
    from entire_id.evaluation.camera_pairs import CameraPairs
    from entire_id.evaluation.comparison import Comparison
    from entire_id.evaluation.reranking import RerankConfig
    from entire_id.evaluation.scores import Scores
    from entire_id.loading.models import Model, ModelOptions
    from entire_id.score import ScoringConfig


__all__ = ["app"]

app = typer.Typer()


class Device(StrEnum):
    """Where a model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class TieRule(StrEnum):
    """Where a positive stands among negatives of its score."""

    WORST = "worst"
    BEST = "best"
    STABLE = "stable"


DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="A packed data set: a folder, owner/name@v1.0.0 on the Hub, or a URL.")
]
ModelOption = Annotated[str, typer.Option(help="Model that made the features, as given to embed.")]
_OF_INPUT = "Of the input of an ONNX model [default: ImageNet's], or of a transformer saved without its processor."
FeaturesOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of features. [default: DATASET.features/MODEL]")
]


@app.command()
def embed(
    where: DatasetArgument,
    model: Annotated[
        str,
        typer.Option(
            help="colour, a folder or owner/name for transformers, a file .onnx, or module:function of your own."
        ),
    ] = "colour",
    split: Annotated[list[str] | None, typer.Option(help="Split, may be repeated. [default: query gallery]")] = None,
    features: FeaturesOption = None,
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Resize crops, such as 256x128. [default: as the model says]")
    ] = "",
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.AUTO,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")] = None,
    mean: Annotated[str, typer.Option(metavar="R,G,B", help=_OF_INPUT)] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", help=_OF_INPUT)] = "",
    batch_rows: Annotated[int, typer.Option(min=1, help="Crops given to the model at once.")] = 64,
) -> None:
    """Compute a feature for every crop. The same command goes on where a killed one stopped."""
    from entire_id.loading.embed import embed as embed_folder
    from entire_id.loading.embed import features_folder
    from entire_id.loading.files import open_files, pinned
    from entire_id.loading.index import fetch_manifest
    from entire_id.loading.models import ModelOptions, is_trained, open_model

    with usage():
        options = ModelOptions(
            size=numbers(size, "x", int, 2),
            device=device.value,
            revision=revision,
            mean=numbers(mean, ",", float, 3),
            std=numbers(std, ",", float, 3),
        )
    place = pinned(where)
    name = fetch_manifest(open_files(place)).name  # before a model is downloaded
    if ":" in model:
        sys.path.append(str(Path.cwd()))  # where a module of the user's own lies
    out = features or features_folder(where, model)
    with progress_bar() as progress:
        opened = open_model(model, options) if not is_trained(model) else _open_trained(model, options)
        if caution := opened.caution(name):
            say(caution)
        embed_folder(place, split or ["query", "gallery"], opened, out, progress, batch_rows)
    say(f"features are in {out}")
    if all((out / f"{name}.npy").is_file() for name in ("query", "gallery")):
        option = f" --model {quote(model)}" if model != "colour" else ""
        option = f" --features {quoted(features)}" if features else option
        say(f"next: entire-id evaluate {quote(where)}{option}")


def _open_trained(folder: str, options: ModelOptions) -> Model:
    if refused := options.given() - {"device"}:
        raise typer.BadParameter(f"{folder!r} was trained here and takes --device alone, not {', '.join(refused)}")
    from entire_id.experiments.network import open_trained

    return open_trained(folder, options.device)


@app.command()
def evaluate(
    where: DatasetArgument,
    model: ModelOption = "colour",
    features: FeaturesOption = None,
    protocol: Annotated[str, typer.Option(help="Which crops are right and which are ignored.")] = "market1501",
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Scores by camera, camera_pair, continent, num_positives, width, height, seq, frame, or a column of "
            "cameras.csv; repeatable.",
        ),
    ] = None,
    compare: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Features of another model.")] = None,
    tie: Annotated[TieRule, typer.Option(help="Where a right crop stands among wrong ones of its score.")] = (
        TieRule.WORST
    ),
    max_rank: Annotated[int, typer.Option(min=1, help="Length of the CMC curve.")] = 50,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML page to write: scores, plots, ranked lists. Shows people; keep it."),
    ] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Re-rank by k-reciprocal neighbours.")] = False,
    preset: Annotated[
        str | None, typer.Option(help="Code base whose re-ranking it is. [default: the package's own]")
    ] = None,
    k1: Annotated[int | None, typer.Option(help="Neighbours of a set in re-ranking. [default: the preset's]")] = None,
    k2: Annotated[int | None, typer.Option(help="Sets that are averaged. [default: the preset's]")] = None,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Share of the plain distance, 0 to 1. [default: the preset's]")
    ] = None,
    expand: Annotated[int, typer.Option(min=0, help="Average each query with its nearest gallery crops, first.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Score features by the field's rule: mAP, CMC, mINP, with 95 % confidence intervals."""
    from entire_id.evaluation.comparison import compare as compare_scores
    from entire_id.loading.embed import features_folder
    from entire_id.loading.files import pinned
    from entire_id.score import CAMERA_PAIR, check_columns, read_query_gallery, score, score_with_camera_pairs

    reranking = _rerank_config(rerank, preset, {"k1": k1, "k2": k2, "lambda_": lambda_})
    config = _scoring_config(protocol, tie, max_rank, reranking, expand)
    columns, place = by or _usual_columns(protocol), pinned(where)
    if report is not None:
        _check_report(place, report, is_plain=reranking is None and not expand)
    folders = [features or features_folder(where, model), *([] if compare is None else [compare])]
    crops = [read_query_gallery(place, one) for one in folders]
    check_columns(crops[0].labels, columns, protocol)
    with progress_bar() as progress:
        if CAMERA_PAIR in columns or report is not None:
            scores, pairs = score_with_camera_pairs(crops[0], config, progress)
        else:
            scores, pairs = score(crops[0], config, progress), None
        others = [score(one, config, progress) for one in crops[1:]]
        if report is not None:
            models = [(scores, pairs), *((one, None) for one in others)]
            _write_report(place, folders, models, report, progress)
    parts: dict[str, Any] = {name: pairs if name == CAMERA_PAIR else scores.by(name) for name in columns}
    difference = compare_scores(scores, others[0]) if others else None
    if as_json:
        print_json(_scores_as_json(scores, parts, difference) | _ranking_as_json(reranking, preset, expand))
        return
    _print_scores(scores, parts, difference)
    if difference is not None:
        say(f"{difference.summary()} with {compare}")
    say(scores.summary() + _ranking_note(reranking, preset, expand))
    for warning in scores.warnings:
        say(f"warning: {warning}")


def _scoring_config(
    protocol: str, tie: TieRule, max_rank: int, reranking: RerankConfig | None, expand: int
) -> ScoringConfig:
    from entire_id.score import ScoringConfig

    rule: Any = tie.value
    with usage():
        return ScoringConfig(protocol, rule, max_rank, reranking, expand)


def _usual_columns(protocol: str) -> list[str]:
    """Return by what a protocol is broken down where nobody says so."""
    from entire_id.evaluation.protocols import find_protocol

    return ["continent"] if find_protocol(protocol).within == "continent" else []


def _print_scores(scores: Scores, parts: Mapping[str, Any], difference: Comparison | None) -> None:
    print_table(["score", "%", "from", "to"], _in_percent(scores.intervals()))
    for part in parts.values():
        print(f"{part.table()}\n")
    if difference is not None:
        print_table(["difference", "points", "from", "to"], _in_percent(difference.differences))


def _scores_as_json(scores: Scores, parts: Mapping[str, Any], difference: Comparison | None) -> dict[str, Any]:
    from entire_id.evaluation.breakdown import none_if_nan

    intervals = {name: [none_if_nan(one.low), none_if_nan(one.high)] for name, one in scores.intervals().items()}
    result = {**scores.to_dict(), "cmc": scores.cmc.tolist(), "intervals": intervals}
    result["by"] = {name: part.to_dict() for name, part in parts.items()}
    return result | ({"comparison": difference.to_dict()} if difference else {})


def _ranking_as_json(reranking: RerankConfig | None, preset: str | None, expand: int) -> dict[str, Any]:
    from dataclasses import asdict

    how = None if reranking is None else {"preset": preset or "default", **asdict(reranking)}
    return {"reranking": how, "expand": expand}


def _write_report(
    folder: str | Path,
    features: list[Path],
    models: list[tuple[Scores, CameraPairs | None]],
    out: Path,
    progress: Progress,
) -> None:
    from entire_id.report import collect_report, scored_model, write_report

    scored = [scored_model(one, *result) for one, result in zip(features, models, strict=True)]
    write_report(collect_report(folder, scored, progress=progress), out)
    say(f"wrote {out}; it contains crops of people: do not publish it")


def _check_report(folder: str | Path, out: Path, *, is_plain: bool) -> None:
    """Refuse a report that cannot be written, before anything is scored."""
    from entire_id.report import check_report

    if not is_plain:
        raise typer.BadParameter("--report shows plain rankings; leave out --rerank and --expand")
    check_report(folder, out)


def _rerank_config(rerank: bool, preset: str | None, options: Mapping[str, float | None]) -> RerankConfig | None:
    """Return how to re-rank, None for not at all; `options` that are None are the preset's."""
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not rerank:
        if changes or preset is not None:
            raise typer.BadParameter("--preset, --k1, --k2 and --lambda say how to --rerank")
        return None
    from entire_id.evaluation.reranking import RerankConfig

    with usage():
        return RerankConfig(**changes) if preset is None else RerankConfig.preset(preset, **changes)


def _ranking_note(config: RerankConfig | None, preset: str | None, expand: int) -> str:
    """Return what was done to the ranking before it was scored; nothing for the plain one."""
    note = f"; queries expanded by {expand} crops" if expand else ""
    if config is None:
        return note
    numbers = f"k1 {config.k1}, k2 {config.k2}, lambda {config.lambda_:g}"
    return f"{note}; re-ranked ({preset or 'default'}: {numbers})"


def _in_percent(intervals: Mapping[str, Interval]) -> list[tuple[str, float, float, float]]:
    return [
        (name.replace("rank", "Rank-"), 100 * one.value, 100 * one.low, 100 * one.high)
        for name, one in intervals.items()
    ]


@app.command()
def show(
    where: DatasetArgument,
    out: Annotated[Path, typer.Argument(help="Picture to write, .png or .jpg.")],
    split: Annotated[str, typer.Option(help="Split whose people are shown.")] = "gallery",
    ranked: Annotated[bool, typer.Option("--ranked", help="Show ranked lists of queries instead.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="People or queries at most.")] = 8,
    model: ModelOption = "colour",
    features: FeaturesOption = None,
) -> None:
    """Draw a grid of crops by identity and camera, or ranked lists with right and wrong framed."""
    from entire_id.loading.embed import features_folder
    from entire_id.show import draw_people, draw_ranking

    if out.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise typer.BadParameter(f"{str(out)!r} ends neither in .png nor in .jpg")
    if ranked:
        picture = draw_ranking(where, features or features_folder(where, model), rows)
    else:
        picture = draw_people(where, split, rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    legend = "; blue: query, green: same person, red: somebody else, best query first" if ranked else ""
    say(f"drew {out}{legend}")
