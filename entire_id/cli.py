"""The command line: one library call a verb. The only module that prints.

Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 known error, 2 usage, 3 verification found problems.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entire_id.errors import EntireIdError, PreviousVersionError
from entire_id.records import Progress

if TYPE_CHECKING:
    from entire_id.evaluation.breakdown import Interval
    from entire_id.evaluation.camera_pairs import CameraPairs
    from entire_id.evaluation.comparison import Comparison
    from entire_id.evaluation.reranking import RerankConfig
    from entire_id.evaluation.scores import Scores
    from entire_id.score import ScoringConfig
    from entire_id.shards.caches import Leftover
    from entire_id.shards.erase import ErasePlan, EraseReport
    from entire_id.shards.manifest import Manifest
    from entire_id.shards.pack import PackReport
    from entire_id.shards.repair import RepairReport
    from entire_id.shards.verify import VerifyReport

__all__ = ["app", "main"]

app = typer.Typer(
    name="entire-id",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

EXIT_ERROR, EXIT_PROBLEMS = 1, 3
_WIDE = 10_000  # columns of a table that no terminal folds
_PATIENCE_S = 2.0  # steps shorter than this show no progress bar


class Engine(StrEnum):
    """What gives the work to processes."""

    LOCAL = "local"
    RAY = "ray"


class Format(StrEnum):
    """Formats of shards."""

    PARQUET = "parquet"
    WEBDATASET = "webdataset"


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


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same bytes.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Processes at work.")]
TombstonesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What was erased for good, as keyed hashes; needs --secret.")
]
SecretOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Secret of the tombstones. Keep it out of every data set.")
]
LayoutOption = Annotated[str, typer.Option(help="Naming family of a folder or zip.")]
CamerasOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="cameras.csv with camid, continent. [default: beside the crops]")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A packed data set.")]
ModelOption = Annotated[str, typer.Option(help="Model that made the features, as given to embed.")]
FeaturesOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of features. [default: DIR.features/MODEL]")
]


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the caller closed it
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (EntireIdError, OSError) as error:
        _say(f"error: {error}")
        sys.exit(EXIT_ERROR)


def _say(text: str) -> None:
    if sys.stderr is not None:
        print(text, file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


@contextmanager
def _usage() -> Iterator[None]:
    """Turn a value that a configuration refuses into a usage error."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _print_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    names, cells = list(columns), [list(row) for row in rows]
    table = Table(box=SIMPLE_HEAD if any(names) else None, pad_edge=False, show_header=any(names))
    for number, name in enumerate(names):
        is_number = cells and all(isinstance(row[number], (int, float)) for row in cells)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else _WIDE
    Console(highlight=False, markup=False, width=width).print(table)


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.2f}"
    return str(value)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Give a progress bar on stderr that appears after two seconds, and only on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    bars = RichProgress(*columns, console=Console(stderr=True), disable=not is_terminal, transient=True)
    tasks: dict[str, Any] = {}
    start = time.monotonic()

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total or None, note="")
        if not bars.live.is_started and time.monotonic() - start > _PATIENCE_S:
            bars.start()
        bars.update(tasks[stage], completed=done, total=total or None, note=note)

    try:
        yield report
    finally:
        bars.stop()


def _quote(path: Path) -> str:
    return quote(str(path))


def _print_version(asked: bool) -> None:
    if asked:
        print(metadata.version("entire-id"))
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the package's version."),
    ] = False,
) -> None:
    """Pack, check, load and score ENTIRe-ID and other person re-identification data sets."""


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    crops: Annotated[int, typer.Option(min=50, help="About how many crops to draw.")] = 2000,
    train: Annotated[bool, typer.Option("--train", help="Draw a train part too.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Draw people in the layout of ENTIRe-ID: a toy to try everything on. No photograph of anyone."""
    from entire_id.sources.sample import SampleConfig, draw_sample

    with _usage():
        config = SampleConfig.of_size(crops, seed, train=train)
    with _progress() as progress:
        drawn = draw_sample(out, config, lambda done: progress("drawing", done, crops))
    _say(f"drew {drawn:,} crops in {out}\nnext: entire-id pack {_quote(out)} entire-id")


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="Folder (or its URL) or zip of crops, or a table (.csv, .parquet) of them.")
    ],
    out: Annotated[
        str, typer.Argument(help="Folder to make, or its URL (s3://…); call it entire-id to load it by that name.")
    ],
    layout: LayoutOption = "entire-id",
    cameras: CamerasOption = None,
    format_: Annotated[Format, typer.Option("--format", help="Parquet, or tar for WebDataset.")] = Format.PARQUET,
    version: Annotated[str, typer.Option(help="Version of the content.")] = "1.0.0",
    name: Annotated[str, typer.Option(help="Name of the data set. [default: that of the folder]")] = "",
    shard_size: Annotated[int, typer.Option(min=1, help="Crops a shard, unless one person has more.")] = 22_500,
    seed: SeedOption = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be packed.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image; reject what does not decode.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at work, on all machines together.")] = 1,
    previous: Annotated[
        str | None, typer.Option(metavar="DIR", help="The version before: people stay in their shards.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Processes of this machine, or of a Ray cluster.")] = Engine.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Ray cluster to join: auto or host:port. [default: one of this machine]"),
    ] = None,
    tombstones: TombstonesOption = None,
    secret: SecretOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack loose crops into shards that `load_dataset` reads."""
    from entire_id.remote import place_of
    from entire_id.shards.pack import PackConfig
    from entire_id.shards.pack import pack as pack_source
    from entire_id.sources.layouts import open_source
    from entire_id.sources.table import TABLE_SUFFIXES

    old = _here(previous)
    with _usage():
        config = PackConfig(
            version=version,
            format=format_.value,
            name=name,
            shard_rows=shard_size,
            seed=seed,
            strict=strict,
            decode=decode,
            jobs=jobs,
            previous=old,
            engine=engine.value,
            address=address,
            tombstones=tombstones,
            secret=secret,
        )
    opened = open_source(source, layout, cameras)
    unusable = sorted(str(camera.camid) for camera in opened.cameras if camera.continent is None)
    if unusable:
        _say(
            f"cameras.csv gives camera {', '.join(unusable)} a continent that cannot name a config (default, test and "
            "meta are taken; letters, digits and _ make a name): its crops will be rejected"
        )
    with _progress() as progress:
        report = pack_source(opened, out, config, progress)
    if as_json:
        rejected_csv = None if report.rejected_csv is None else str(report.rejected_csv)
        _print_json(_totals(report.manifest) | {"rejected": report.rejected, "rejected_csv": rejected_csv})
    else:
        _print_totals(report.manifest)
    _tell_pack(report)
    if not source.lower().endswith(tuple(TABLE_SUFFIXES)) and not {"train", "val"} & report.manifest.splits.keys():
        _say("there is no train part (ENTIRe-ID's was not released by the authors)")
    folder = place_of(out)
    if isinstance(folder, Path):
        _say(f"packed into {folder}\nnext: entire-id verify {_quote(folder)}")
    else:
        _say(f"packed into {report.folder}\nnext: copy it to a folder DIR here and type: entire-id verify DIR")


def _here(previous: str | None) -> Path | None:
    """Return the folder of the previous version, which is read where it lies."""
    from entire_id.remote import place_of

    folder = None if previous is None else place_of(previous)
    if isinstance(folder, str):
        raise PreviousVersionError(folder, "it is read file by file; copy it to a folder here first")
    return folder


def _tell_pack(report: PackReport) -> None:
    if report.num_resumed:
        _say(f"went on with {report.num_resumed} shards that an interrupted run had finished")
    if report.num_kept:
        _say(f"kept {report.num_kept} of {len(report.manifest.shards)} shards as they were in the previous version")
    if report.rejected:
        counts = ", ".join(f"{number:,} {reason}" for reason, number in sorted(report.rejected.items()))
        total = sum(report.rejected.values())
        _say(f"rejected {total:,} files ({counts}); each stands with its reason in {report.rejected_csv}")
    if report.cameras_undescribed:
        _say(
            f"continent is 'unknown' for {len(report.cameras_undescribed)} cameras that no cameras.csv describes; its "
            "columns are camid, continent, and whatever else you know"
        )


def _totals(manifest: Manifest) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": manifest.name,
        "version": manifest.version,
        "format": manifest.format,
        "content_sha256": manifest.content_sha256,
        "shards": len(manifest.shards),
        "continents": list(manifest.continents),
        "splits": {split: asdict(total) for split, total in manifest.splits.items()},
    }


def _print_totals(manifest: Manifest) -> None:
    shards = manifest.shards
    rows = [
        [split, total.rows, total.people, sum(shard.split == split for shard in shards), total.image_bytes]
        for split, total in manifest.splits.items()
    ]
    _print_table(["split", "crops", "identities", "shards", "image bytes"], rows)


@app.command()
def verify(
    folder: FolderArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes, digests and labels only.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image, too.")] = False,
    jobs: JobsOption = 1,
    repair: Annotated[
        Path | None, typer.Option(metavar="SOURCE", help="The raw crops: write broken files anew from them.")
    ] = None,
    layout: LayoutOption = "entire-id",
    cameras: CamerasOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file, row and image of a packed data set. Exit 3 if anything is wrong."""
    from entire_id.shards.repair import repair as repair_folder
    from entire_id.shards.verify import verify as verify_folder
    from entire_id.sources.layouts import open_source

    if repair is None and (layout != "entire-id" or cameras is not None):
        raise typer.BadParameter("--layout and --cameras describe the crops of --repair")
    repaired = None
    with _progress() as progress:
        if repair is None:
            report = verify_folder(folder, progress, quick=quick, decode=decode, jobs=jobs)
        else:
            opened = open_source(repair, layout, cameras)
            repaired = repair_folder(folder, opened, progress, quick=quick, decode=decode, jobs=jobs)
            report = repaired.verified
    _print_verify(report, repaired, as_json=as_json)
    if repaired is not None:
        _tell_repair(repaired, repair)
    _tell_verify(report)
    if report.problems:
        raise typer.Exit(EXIT_PROBLEMS)
    _say(f"next: entire-id embed {_quote(folder)}")


def _print_verify(report: VerifyReport, repaired: RepairReport | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        fields = asdict(report)
        del fields["num_resumed"]  # what was found is the same
        if repaired is not None:
            fields |= {"restored": repaired.restored, "unrestored": [asdict(one) for one in repaired.unrestored]}
        _print_json(fields)
    elif report.problems:
        _print_table(["problem", "where", "what"], [(p.kind, p.where, p.detail) for p in report.problems])


def _tell_verify(report: VerifyReport) -> None:
    if report.num_resumed:
        _say(f"went on with {report.num_resumed} shards that an interrupted run had checked")
    _say(f"{report.rows:,} rows checked, {len(report.problems):,} problems")
    if report.queries_without_positive:
        number = report.queries_without_positive
        _say(f"{number:,} queries have no crop of another camera in the gallery; no score counts them")
    if report.shared_pids:
        _say(f"{report.shared_pids:,} pid numbers stand in train and test; they are different people (train/N, test/N)")
    if report.duplicate_images:
        _say(f"{report.duplicate_images:,} images occur more than once within a part")


def _tell_repair(report: RepairReport, source: Path | None) -> None:
    for path in report.restored:
        _say(f"restored {path}")
    if report.old_readme is not None:
        _say(f"the README that stood there is {report.old_readme} now")
    for one in report.unrestored:
        _say(f"could not restore {one.path}: {one.why}")
    if report.unrestored:
        _say(f"next: pack a new version: entire-id pack {_quote(source or Path())} NEW --version VERSION")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A packed data set.")],
    new: Annotated[Path, typer.Argument(help="Another version of it.")],
    as_json: JsonOption = False,
) -> None:
    """Print what changed from one version to another: shards, people, crops, bytes to upload."""
    from dataclasses import asdict

    from entire_id.hub.versions import diff_versions

    found = diff_versions(old, new)
    if as_json:
        _print_json(asdict(found))
        return
    names = ("shards_kept", "shards_changed", "shards_added", "shards_removed", "people_added", "people_removed")
    rows = [(name.replace("_", " "), getattr(found, name)) for name in (*names, "upload_bytes")]
    _print_table([f"{found.old_version} → {found.new_version}", ""], rows)
    if found.splits:
        changes = [(split, one.added, one.removed, one.changed) for split, one in found.splits.items()]
        _print_table(["split", "crops added", "removed", "changed"], changes)
    if {"query", "gallery"} & found.splits.keys():
        _say("query or gallery changed: scores of the two versions are not comparable")


@app.command()
def card(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A packed data set.")] = None,
    facts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What its owners state: licence, consent, contact …")
    ] = None,
    previous: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The version before: its changelog goes on.")
    ] = None,
    notes: Annotated[str, typer.Option(help="What the owners say of this version in the changelog.")] = "",
    example: Annotated[bool, typer.Option("--example", help="Print a file for --facts, to be filled in.")] = False,
) -> None:
    """Write the card of a packed data set: its README.md, from its files and what its owners state."""
    from entire_id.hub.card import write_card
    from entire_id.hub.facts import example_facts, read_facts

    if example:
        print(example_facts(), end="")
        return
    if folder is None or facts is None:
        raise typer.BadParameter("give DIR and --facts FILE; --example prints such a file")
    stated = read_facts(facts)
    with _progress() as progress:
        write_card(folder, stated, previous=previous, notes=notes, progress=progress)
    _say(f"wrote {folder / 'README.md'}\nnext: read it, then: entire-id verify {_quote(folder)}")


@app.command()
def erase(
    folder: FolderArgument,
    out: Annotated[Path, typer.Argument(help="Folder to make: the version without them.")],
    person: Annotated[
        list[str] | None, typer.Option(metavar="PART/PID", help="Person to take out, such as test/17; repeatable.")
    ] = None,
    key: Annotated[list[str] | None, typer.Option(help="Key of a crop to take out; repeatable.")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="File with a person or a key a line.")
    ] = None,
    version: Annotated[str, typer.Option(help="Version of what remains. [default: the next minor one]")] = "",
    tombstones: TombstonesOption = None,
    secret: SecretOption = None,
    new_secret: Annotated[bool, typer.Option("--new-secret", help="Make the secret if it is not there.")] = False,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to append a line to: what was done and why, not to whom.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the log; must name nobody.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and write nothing.")] = False,
    jobs: JobsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Take people or crops out: a new version without them, and a list that keeps them out of later ones."""
    from entire_id.shards.caches import caches_of
    from entire_id.shards.erase import EraseRequest, plan_erasure, read_names
    from entire_id.shards.erase import erase as erase_people
    from entire_id.shards.manifest import read_manifest

    listed = () if from_ is None else read_names(from_)
    with _usage():
        request = EraseRequest(
            people=tuple(person or ()),
            keys=tuple(key or ()),
            listed=listed,
            version=version,
            jobs=jobs,
            tombstones=tombstones,
            secret=secret,
            new_secret=new_secret,
            log=log,
            reason=reason,
        )
    with _progress() as progress:
        if dry_run:
            _print_erase_plan(plan_erasure(folder, request, progress), as_json=as_json)
            return
        report = erase_people(folder, out, request, progress)
    leftovers = caches_of(folder, read_manifest(folder))
    _print_erased(report, leftovers, as_json=as_json)
    _tell_erased(report, leftovers, has_tombstones=tombstones is not None)
    _say(f"next: entire-id verify {_quote(out)}")


def _print_erase_plan(plan: ErasePlan, *, as_json: bool) -> None:
    fields = {
        "version": plan.version,
        "crops": len(plan.removed.keys),
        "copies": plan.num_copies,
        "shards": len(plan.touched),
    }
    if as_json:
        _print_json(fields)
    else:
        _print_table(["would go", ""], [(name, value) for name, value in fields.items() if name != "version"])
        _say(f"nothing was written; what remains would be version {plan.version}")


def _print_erased(report: EraseReport, leftovers: list[Leftover], *, as_json: bool) -> None:
    from dataclasses import asdict

    names = ("people", "crops", "copies", "rewritten", "dropped", "kept", "tombstones")
    numbers = {name: getattr(report, f"num_{name}") for name in names}
    if as_json:
        still = [asdict(one) | {"path": str(one.path)} for one in leftovers]
        erased = {"old_version": report.old_version, "erased": numbers, "leftovers": still}
        _print_json(_totals(report.manifest) | erased)
        return
    labels = {"rewritten": "shards rewritten", "dropped": "shards dropped", "kept": "shards kept"}
    change = f"{report.old_version} → {report.manifest.version}"
    _print_table([change, ""], [(labels.get(name, name), number) for name, number in numbers.items()])
    _print_totals(report.manifest)


def _tell_erased(report: EraseReport, leftovers: list[Leftover], *, has_tombstones: bool) -> None:
    if report.num_resumed:
        _say(f"went on with {report.num_resumed} shards that an interrupted run had written")
    if report.num_copies:
        _say(f"{report.num_copies:,} crops went that nobody named: their images are byte for byte those of others")
    if not has_tombstones:
        _say("no tombstones were written: a later pack of the same raw crops brings them back (see --tombstones)")
    _say(f"searched all of {report.folder}: nothing of what was taken out is in it")
    _say("this machine still holds what was taken out, or may; once nobody needs it, type:")
    for one in leftovers:
        _say(f"  {one.purge}  # {one.what}")
    _say("and delete the raw crops. Not looked for: backups, other machines, cache folders of your own naming")


@app.command()
def info(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Print what a packed data set holds."""
    from entire_id.shards.manifest import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        _print_json(_totals(manifest))
        return
    _print_table(["", ""], [(name, value) for name, value in _totals(manifest).items() if isinstance(value, str)])
    _print_totals(manifest)
    if len(manifest.continents) > 1:
        rows = [[place, *_crops_by_split(manifest, place)] for place in manifest.continents]
        _print_table(["continent", *manifest.splits], rows)


def _crops_by_split(manifest: Manifest, continent: str) -> list[int]:
    shards = [shard for shard in manifest.shards if shard.continent == continent]
    return [sum(shard.rows for shard in shards if shard.split == split) for split in manifest.splits]


@app.command()
def embed(
    folder: FolderArgument,
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
    mean: Annotated[str, typer.Option(metavar="R,G,B", help="Of an ONNX model's input. [default: ImageNet's]")] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", help="Of an ONNX model's input. [default: ImageNet's]")] = "",
    batch_rows: Annotated[int, typer.Option(min=1, help="Crops given to the model at once.")] = 64,
) -> None:
    """Compute a feature for every crop. The same command goes on where a killed one stopped."""
    from entire_id.loading.embed import embed as embed_folder
    from entire_id.loading.embed import features_folder
    from entire_id.loading.models import ModelOptions, open_model
    from entire_id.shards.manifest import read_manifest

    with _usage():
        options = ModelOptions(
            size=_numbers(size, "x", int, 2),
            device=device.value,
            revision=revision,
            mean=_numbers(mean, ",", float, 3),
            std=_numbers(std, ",", float, 3),
        )
    read_manifest(folder)  # before a model is downloaded
    if ":" in model:
        sys.path.append(str(Path.cwd()))  # where a module of the user's own lies
    out = features or features_folder(folder, model)
    with _progress() as progress:
        opened = open_model(model, options)
        embed_folder(folder, split or ["query", "gallery"], opened, out, progress, batch_rows)
    _say(f"features are in {out}")
    if all((out / f"{name}.npy").is_file() for name in ("query", "gallery")):
        option = f" --model {quote(model)}" if model != "colour" else ""
        option = f" --features {_quote(features)}" if features else option
        _say(f"next: entire-id evaluate {_quote(folder)}{option}")


def _numbers(text: str, separator: str, kind: type[int | float], count: int) -> Any:  # noqa: ANN401 a tuple
    """Return the numbers of an option such as 256x128; None where it was not given."""
    try:
        numbers = tuple(kind(part) for part in text.split(separator))
    except ValueError:
        numbers = ()
    if text and len(numbers) != count:
        raise ValueError(f"{text!r} is not of the form {'256x128' if count == 2 else '0.5,0.5,0.5'}")
    return numbers if text else None


@app.command()
def evaluate(
    folder: FolderArgument,
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
    from entire_id.score import CAMERA_PAIR, check_columns, read_query_gallery, score, score_with_camera_pairs

    reranking = _rerank_config(rerank, preset, {"k1": k1, "k2": k2, "lambda_": lambda_})
    config = _scoring_config(protocol, tie, max_rank, reranking, expand)
    columns = by or _usual_columns(protocol)
    if report is not None:
        _check_report(folder, report, is_plain=reranking is None and not expand)
    folders = [features or features_folder(folder, model), *([] if compare is None else [compare])]
    crops = [read_query_gallery(folder, one) for one in folders]
    check_columns(crops[0], columns, protocol)
    with _progress() as progress:
        if CAMERA_PAIR in columns or report is not None:
            scores, pairs = score_with_camera_pairs(crops[0], config, progress)
        else:
            scores, pairs = score(crops[0], config, progress), None
        others = [score(one, config, progress) for one in crops[1:]]
        if report is not None:
            models = [(scores, pairs), *((one, None) for one in others)]
            _write_report(folder, folders, models, report, progress)
    parts: dict[str, Any] = {name: pairs if name == CAMERA_PAIR else scores.by(name) for name in columns}
    difference = compare_scores(scores, others[0]) if others else None
    if as_json:
        _print_json(_scores_as_json(scores, parts, difference) | _ranking_as_json(reranking, preset, expand))
        return
    _print_scores(scores, parts, difference)
    if difference is not None:
        _say(f"{difference.summary()} with {compare}")
    _say(scores.summary() + _ranking_note(reranking, preset, expand))
    for warning in scores.warnings:
        _say(f"warning: {warning}")


def _scoring_config(
    protocol: str, tie: TieRule, max_rank: int, reranking: RerankConfig | None, expand: int
) -> ScoringConfig:
    from entire_id.score import ScoringConfig

    rule: Any = tie.value
    with _usage():
        return ScoringConfig(protocol, rule, max_rank, reranking, expand)


def _usual_columns(protocol: str) -> list[str]:
    """Return by what a protocol is broken down where nobody says so."""
    from entire_id.evaluation.protocols import find_protocol

    return ["continent"] if find_protocol(protocol).within == "continent" else []


def _print_scores(scores: Scores, parts: Mapping[str, Any], difference: Comparison | None) -> None:
    _print_table(["score", "%", "from", "to"], _in_percent(scores.intervals()))
    for part in parts.values():
        print(f"{part.table()}\n")
    if difference is not None:
        _print_table(["difference", "points", "from", "to"], _in_percent(difference.differences))


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
    folder: Path,
    features: list[Path],
    models: list[tuple[Scores, CameraPairs | None]],
    out: Path,
    progress: Progress,
) -> None:
    from entire_id.report import collect_report, scored_model, write_report

    scored = [scored_model(one, *result) for one, result in zip(features, models, strict=True)]
    write_report(collect_report(folder, scored, progress=progress), out)
    _say(f"wrote {out}; it contains crops of people: do not publish it")


def _check_report(folder: Path, out: Path, *, is_plain: bool) -> None:
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

    with _usage():
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
    folder: FolderArgument,
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
        picture = draw_ranking(folder, features or features_folder(folder, model), rows)
    else:
        picture = draw_people(folder, split, rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    legend = "; blue: query, green: same person, red: somebody else, best query first" if ranked else ""
    _say(f"drew {out}{legend}")


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to work in; an earlier demo there is replaced.")] = Path("demo"),
    crops: Annotated[int, typer.Option(min=200, help="About how many crops to draw.")] = 2000,
    seed: SeedOption = 0,
) -> None:
    """Go the whole way on drawn people: sample, pack, verify, load, stream, embed, evaluate, picture."""
    from entire_id.demo import DemoConfig, run_demo

    config = DemoConfig(out, crops, seed)
    with _usage():
        config.sample  # noqa: B018 refuses what cannot be drawn
    with _progress() as progress:
        steps = run_demo(config, progress)
    _print_table(["step", "result", "s"], [(step.name, step.result, step.seconds) for step in steps])
    _say(
        f"everything is in {out}: crops/, entire-id/, people.png, ranking.png\n"
        "with the real crops (query/ and bounding_box_test/ in one folder CROPS), type:\n"
        f"  {_quote(Path(sys.argv[0]))} pack CROPS entire-id\n"
        f"  {_quote(Path(sys.argv[0]))} verify entire-id"
    )
