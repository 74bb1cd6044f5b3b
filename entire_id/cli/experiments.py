"""The verbs of `entire-id experiment`: tables and plots from data sets, each by one command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from entire_id.cli.terminal import JsonOption, numbers, print_json, progress_bar, quoted, say, usage

if TYPE_CHECKING:
    from entire_id.experiments.bench import Bench, Candidate
    from entire_id.experiments.config import TrainConfig
    from entire_id.experiments.results import DataSet, Request
    from entire_id.experiments.tables import Outcome

__all__ = ["app"]

experiment = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app = typer.Typer()
app.add_typer(experiment, name="experiment", help="Repeat the paper's experiments on data sets of your own.")


class ManyCommand(TyperCommand):
    """A command whose options take several values: `--test a b c` is `--test a --test b --test c`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 typer brings its own click
        """Parse arguments that were written out."""
        many = {name for one in self.params if isinstance(one, TyperOption) and one.multiple for name in one.opts}
        return super().parse_args(ctx, _written_out(args, many))


def _written_out(args: Sequence[str], many: set[str]) -> list[str]:
    """Return the arguments with the name of an option that takes several values before each of them.

    >>> _written_out(["--test", "a", "b", "--json", "--out", "c"], {"--test"})
    ['--test', 'a', '--test', 'b', '--json', '--out', 'c']
    """
    written: list[str] = []
    option, has_value = "", False
    for argument in args:
        if argument.startswith("-"):
            option, has_value = (argument if argument in many else ""), False
        elif option:
            if has_value:
                written.append(option)
            has_value = True
        written.append(argument)
    return written


class Device(StrEnum):
    """Where models run."""

    AUTO = "auto"
    CPU = "cpu"


class LeftOut(StrEnum):
    """What is left out."""

    CONTINENT = "continent"
    CAMERA = "camera"


class Share(StrEnum):
    """What there is less of."""

    PEOPLE = "people"
    CAMERAS = "cameras"
    CONTINENTS = "continents"


class Blurred(StrEnum):
    """What is blurred."""

    HEAD = "head"


OutOption = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to make, or of the experiment to go on with.")]
TrainOption = Annotated[list[str] | None, typer.Option(metavar="DIR...", help="Data sets to train on.")]
OneTrainOption = Annotated[str, typer.Option(metavar="DIR", help="Data set to train on.")]
TestOption = Annotated[list[str], typer.Option(metavar="DIR...", help="Data sets whose query and gallery are scored.")]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="MODEL...", help="Models that are there, as entire-id embed takes them."),
]
NetworkOption = Annotated[str, typer.Option(help="What is trained: see entire-id train --model.")]
StepsOption = Annotated[int, typer.Option(min=1, help="Batches of every training.")]
DeviceOption = Annotated[Device, typer.Option(help="Where models are trained and run.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that read crops for a training.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of trainings, shares and draws.")]
ProtocolOption = Annotated[str, typer.Option(help="Which crops are right and which are ignored.")]
ModelSizeOption = Annotated[
    str, typer.Option(metavar="HxW", help="Resize crops for --model, such as 256x128. [default: as the model says]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE...", help="Any other setting of TrainConfig, such as size=256x128 p=8."),
]


@dataclass(frozen=True, slots=True)
class _Training:
    """The options by which networks are trained."""

    network: str
    steps: int
    device: Device
    workers: int
    seed: int
    settings: Sequence[str] | None

    def config(self) -> TrainConfig:
        """Return them, for a data set that is yet to be named.

        Raises:
            BadParameter: one of them is refused.
        """
        from entire_id import TrainConfig

        given: dict[str, Any] = {
            "model": self.network,
            "steps": self.steps,
            "num_workers": self.workers,
            "seed": self.seed,
        }
        with usage():
            pairs = [_setting(text) for text in self.settings or ()]
            others = dict(pairs)
            if len(others) < len(pairs):
                raise ValueError("--set gives a setting twice")
            known = {field.name for field in fields(TrainConfig)} - {*_BY_OPTION, *_CHOSEN_HERE}
            for name in sorted(others.keys() - known):
                if name in _BY_OPTION:
                    raise ValueError(f"--set {name!r} has an option of its own, {_BY_OPTION[name]}")
                raise ValueError(f"--set {name!r} is none of {', '.join(sorted(known))}")
            return TrainConfig(datasets=("",), device=self.device.value, **given, **others)


_BY_OPTION = {
    "model": "--network",
    "steps": "--steps",
    "num_workers": "--workers",
    "seed": "--seed",
    "device": "--device",
}
_CHOSEN_HERE = {"datasets", "only_cameras", "only_continents", "people_share"}


def _setting(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--set {text!r} is not of the form NAME=VALUE")
    if name == "size":
        return name, numbers(value, "x", int, 2)
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    return name, tuple(read) if isinstance(read, list) else read


@experiment.command(cls=ManyCommand)
def cross_domain(
    test: TestOption,
    out: OutOption,
    train: TrainOption = None,
    model: ModelsOption = None,
    model_size: ModelSizeOption = "",
    joined: Annotated[bool, typer.Option("--joined", help="Train on all of them together, too.")] = False,
    network: NetworkOption = "vit-b",
    steps: StepsOption = 24_000,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = 4,
    seed: SeedOption = 0,
    settings: SetOption = None,
    protocol: ProtocolOption = "market1501",
    as_json: JsonOption = False,
) -> None:
    """Train sets × test sets: mAP and Rank-1 with intervals, and the spread over test sets."""
    from entire_id.experiments.cross_domain import cross_domain as run

    base = _Training(network, steps, device, workers, seed, settings).config()
    trained_on, tests = _find(train, test)
    candidates = _candidates(trained_on, model, base, settings, joined=joined)
    asked = {"joined": joined, "models": model or [], "protocol": protocol}
    request = _request("cross-domain", asked, trained_on, tests, base, [network])
    with _bench(request, out, device, model_size) as bench:
        _report(run(bench, candidates, tests, protocol), out, as_json=as_json)


@experiment.command(cls=ManyCommand)
def architectures(
    train: OneTrainOption,
    test: TestOption,
    out: OutOption,
    network: Annotated[list[str], typer.Option(metavar="MODEL...", help="Networks: see entire-id train --model.")],
    steps: StepsOption = 24_000,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = 4,
    seed: SeedOption = 0,
    settings: SetOption = None,
    protocol: ProtocolOption = "market1501",
    as_json: JsonOption = False,
) -> None:
    """Several networks, trained in the same way on one data set, × test sets."""
    from entire_id.experiments.cross_domain import compare_networks

    trained_on, tests = _find([train], test)
    base = _on(_Training("tiny", steps, device, workers, seed, settings).config(), trained_on)
    asked = {"networks": network, "protocol": protocol}
    request = _request("architectures", asked, trained_on, tests, base, network)
    with _bench(request, out, device) as bench:
        _report(compare_networks(bench, base, network, tests, protocol), out, as_json=as_json)


@experiment.command(cls=ManyCommand)
def leave_one_out(
    train: OneTrainOption,
    out: OutOption,
    by: Annotated[LeftOut, typer.Option(help="What is left out.")] = LeftOut.CONTINENT,
    test: Annotated[str, typer.Option(metavar="DIR", help="Data set that is scored. [default: that of --train]")] = "",
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Leave these out. [default: each in turn]")
    ] = None,
    network: NetworkOption = "vit-b",
    steps: StepsOption = 24_000,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = 4,
    seed: SeedOption = 0,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score each continent (or camera) by a model that has seen it in training, and by one that has not."""
    from entire_id.experiments.held_out import leave_one_out as run
    from entire_id.experiments.held_out import plan_held_out

    trained_on, tests = _find([train], [test or train])
    base = _on(_Training(network, steps, device, workers, seed, settings).config(), trained_on)
    groups = plan_held_out(base, tests[0], by.value, only or ())
    asked = {"by": by.value, "groups": [one.name for one in groups]}
    request = _request("leave-one-out", asked, trained_on, tests, base, [network])
    with _bench(request, out, device) as bench:
        _report(run(bench, base, tests[0], by.value, groups), out, as_json=as_json)


@experiment.command(cls=ManyCommand)
def intra_camera(
    train: OneTrainOption,
    out: OutOption,
    test: Annotated[str, typer.Option(metavar="DIR", help="Data set that is scored. [default: that of --train]")] = "",
    camera: Annotated[
        list[str] | None,
        typer.Option(metavar="NUMBER...", help="These cameras. [default: each with people for a batch]"),
    ] = None,
    tune_steps: Annotated[int, typer.Option(min=1, help="Steps inside the camera.")] = 2_400,
    tune_rate: Annotated[float, typer.Option(help="Highest learning rate inside the camera.")] = 0.0008,
    network: NetworkOption = "vit-b",
    steps: StepsOption = 24_000,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = 4,
    seed: SeedOption = 0,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train across cameras, go on inside one, and compare on the queries of that one."""
    from dataclasses import replace

    from entire_id.experiments.intra_camera import find_cameras
    from entire_id.experiments.intra_camera import intra_camera as run

    trained_on, tests = _find([train], [test or train])
    base = _on(_Training(network, steps, device, workers, seed, settings).config(), trained_on)
    with usage():
        tuning = replace(base, steps=tune_steps, learning_rate=tune_rate)
    which = find_cameras(base, tests[0], camera or ())
    asked = {"cameras": which.compared, "tune_steps": tune_steps, "tune_rate": tune_rate}
    request = _request("intra-camera", asked, trained_on, tests, base, [network])
    with _bench(request, out, device) as bench:
        _report(run(bench, base, tuning, tests[0], which), out, as_json=as_json)


@experiment.command(cls=ManyCommand)
def groups(
    test: TestOption,
    out: OutOption,
    by: Annotated[
        str, typer.Option(metavar="COLUMN", help="camera, continent, width … or a column of cameras.csv.")
    ] = "continent",
    train: TrainOption = None,
    model: ModelsOption = None,
    model_size: ModelSizeOption = "",
    network: NetworkOption = "vit-b",
    steps: StepsOption = 24_000,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = 4,
    seed: SeedOption = 0,
    settings: SetOption = None,
    protocol: ProtocolOption = "market1501",
    as_json: JsonOption = False,
) -> None:
    """Score the queries by season, or by any other column."""
    from entire_id.experiments.parts import score_groups

    base = _Training(network, steps, device, workers, seed, settings).config()
    trained_on, tests = _find(train, test)
    candidates = _candidates(trained_on, model, base, settings)
    asked = {"by": by, "models": model or [], "protocol": protocol}
    request = _request("groups", asked, trained_on, tests, base, [network])
    with _bench(request, out, device, model_size) as bench:
        _report(score_groups(bench, candidates, tests, by, protocol), out, as_json=as_json)


@experiment.command(cls=ManyCommand)
def size(
    train: OneTrainOption,
    test: TestOption,
    out: OutOption,
    of: Annotated[Share, typer.Option(help="What there is less of.")] = Share.PEOPLE,
    share: Annotated[
        list[float] | None, typer.Option(metavar="SHARE...", help="Shares in (0, 1]. [default: 0.25 0.5 1]")
    ] = None,
    network: NetworkOption = "vit-b",
    steps: StepsOption = 24_000,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = 4,
    seed: SeedOption = 0,
    settings: SetOption = None,
    protocol: ProtocolOption = "market1501",
    as_json: JsonOption = False,
) -> None:
    """Score against the share of people, cameras or continents that a model was trained on."""
    from entire_id.experiments.parts import plan_parts, score_parts

    trained_on, tests = _find([train], test)
    base = _on(_Training(network, steps, device, workers, seed, settings).config(), trained_on)
    with usage():
        parts = plan_parts(base, of.value, share or (0.25, 0.5, 1.0))
    asked = {"of": of.value, "shares": [one.share for one in parts], "protocol": protocol}
    request = _request("size", asked, trained_on, tests, base, [network])
    with _bench(request, out, device) as bench:
        _report(score_parts(bench, parts, tests, of.value, protocol), out, as_json=as_json)


@experiment.command(cls=ManyCommand)
def blur(
    out: OutOption,
    test: Annotated[list[str] | None, typer.Option(metavar="DIR...", help="Data sets to blur and score.")] = None,
    blur: Annotated[Blurred, typer.Option(help="head: the region of the head in crops of whole people.")] = (
        Blurred.HEAD
    ),
    pair: Annotated[
        list[str] | None, typer.Option(metavar="PLAIN BLURRED", help="The same crops packed plain and blurred.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train one model on each of the pair instead of --train or --model.")
    ] = False,
    train: TrainOption = None,
    model: ModelsOption = None,
    model_size: ModelSizeOption = "",
    network: NetworkOption = "vit-b",
    steps: StepsOption = 24_000,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = 4,
    seed: SeedOption = 0,
    settings: SetOption = None,
    protocol: ProtocolOption = "market1501",
    as_json: JsonOption = False,
) -> None:
    """Score the same crops plain and blurred: the difference, with its interval."""
    from entire_id.experiments.blur_cost import compare_blur, given_pairs, head_pairs

    if bool(test) == bool(pair):
        raise typer.BadParameter("give either --test DIR..., which are blurred here, or --pair PLAIN BLURRED")
    if retrain and (not pair or train or model):
        raise typer.BadParameter("--retrain goes with --pair, and without --train and --model")
    base = _Training(network, steps, device, workers, seed, settings).config()
    trained_on, tests = _find(pair if retrain else train, test or pair)
    if pair and (len(pair), len(tests)) != (2, 2):
        raise typer.BadParameter("--pair PLAIN BLURRED takes two data sets")
    candidates = _candidates(trained_on, model, base, settings)
    if pair:
        pairs = given_pairs(candidates, (tests[0], tests[1]), protocol, own=retrain)
    else:
        pairs = head_pairs(candidates, tests, protocol)
    asked = {"blur": None if pair else blur.value, "retrain": retrain, "models": model or [], "protocol": protocol}
    request = _request("blur", asked, trained_on, tests, base, [network])
    with _bench(request, out, device, model_size) as bench:
        _report(compare_blur(bench, pairs), out, as_json=as_json)


@experiment.command(cls=ManyCommand)
def tsne(
    data: Annotated[list[str], typer.Option(metavar="DIR...", help="Data sets.")],
    out: OutOption,
    model: Annotated[str, typer.Option(help="Model, as entire-id embed takes it.")] = "colour",
    model_size: ModelSizeOption = "",
    split: Annotated[str, typer.Option(help="Split whose crops are taken.")] = "query",
    crops: Annotated[int, typer.Option(min=2, max=5000, help="Crops of each data set, at most.")] = 1000,
    perplexity: Annotated[float, typer.Option(min=1, help="About how many neighbours of a crop count.")] = 30.0,
    device: DeviceOption = Device.AUTO,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw the features of several data sets in one plane, and measure the gaps between the sets."""
    from entire_id.experiments.cross_domain import find_candidates
    from entire_id.experiments.projection import ProjectionConfig, check_sklearn, project_sets

    check_sklearn()
    config = ProjectionConfig(split, crops, perplexity, seed)
    (sets,) = _find(data)
    (candidate,) = find_candidates((), [model])
    request = _request("tsne", {"model": model, **asdict(config)}, (), sets)
    with _bench(request, out, device, model_size) as bench:
        _report(project_sets(bench, candidate, sets, config), out, as_json=as_json)


# --- what they share --------------------------------------------------------------------------------------------------


def _find(*groups: Sequence[str] | None) -> list[tuple[DataSet, ...]]:
    """Return the data sets of each group of folders."""
    from entire_id.experiments.results import find_datasets

    found = find_datasets(folder for group in groups for folder in group or ())
    return [tuple(dict.fromkeys(found[folder] for folder in group or ())) for group in groups]


def _candidates(
    trained_on: Sequence[DataSet],
    models: Sequence[str] | None,
    base: TrainConfig,
    settings: Sequence[str] | None,
    *,
    joined: bool = False,
) -> tuple[Candidate, ...]:
    from entire_id.experiments.cross_domain import find_candidates

    if not trained_on and not models:
        raise typer.BadParameter("give data sets to --train on, or a --model that is there")
    if not trained_on and settings:
        raise typer.BadParameter("--set says how networks are trained; without --train there is none")
    every = [trained_on] if joined and len(trained_on) > 1 else []
    with usage():
        return find_candidates([*([one] for one in trained_on), *every], models or (), base)


def _on(base: TrainConfig, trained_on: Sequence[DataSet]) -> TrainConfig:
    from dataclasses import replace

    return replace(base, datasets=(trained_on[0].path,))


def _request(
    name: str,
    asked: dict[str, Any],
    trained_on: Sequence[DataSet],
    tests: Sequence[DataSet],
    base: TrainConfig | None = None,
    networks: Sequence[str] = (),
) -> Request:
    """Return what is asked; where nothing is trained, without settings of trainings."""
    from entire_id.experiments.results import Request

    sets = {"train": trained_on, "test": tests}
    if base is None or not trained_on:
        return Request(name, asked, sets)
    from entire_id.experiments.network import find_weights

    settings = {name: value for name, value in asdict(base).items() if name not in {"datasets", "num_workers"}}
    return Request(name, asked, sets, settings, {one: find_weights(one, base.revision).identity for one in networks})


@contextmanager
def _bench(request: Request, out: Path, device: Device, model_size: str = "") -> Iterator[Bench]:
    """Give a place to work at, which is claimed once all that is asked was looked at."""
    from entire_id.evaluation.plots import check_matplotlib
    from entire_id.experiments.bench import Bench
    from entire_id.experiments.results import begin_experiment
    from entire_id.loading.models import ModelOptions, is_trained

    check_matplotlib()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        advice = "train with accelerate launch … -m entire_id train, then give --model RUN/model"
        raise typer.BadParameter(f"an experiment is one process; {advice}")
    models = request.asked.get("models", [request.asked.get("model", "colour")])
    if model_size and all(one == "colour" or ":" in one or is_trained(one) for one in models):
        raise typer.BadParameter("--model-size is heeded by none of the models")
    with usage():
        options = ModelOptions(size=numbers(model_size, "x", int, 2), device=device.value)
    with ExitStack() as stack, progress_bar() as progress:

        def begin() -> None:
            for text in stack.enter_context(begin_experiment(out, request)):
                say(f"warning: {text}")

        yield Bench(out.resolve(), options, progress, say, begin)


def _report(outcome: Outcome, out: Path, *, as_json: bool) -> None:
    from entire_id.experiments.tables import write_outcome

    write_outcome(outcome, out)
    if as_json:
        print_json(outcome.to_dict())
    else:
        print(outcome.markdown())
    plots = ", ".join(f"{name}.png" for name in outcome.plots)
    say(f"wrote table.md, table.json and {plots} to {quoted(out)}")
