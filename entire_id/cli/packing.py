"""Verbs that make and check packed data sets."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entire_id.cli.terminal import (
    EXIT_PROBLEMS,
    EXIT_STOPPED,
    FolderArgument,
    JobsOption,
    JsonOption,
    SecretOption,
    SeedOption,
    TombstonesOption,
    print_json,
    print_table,
    print_totals,
    progress_bar,
    quoted,
    say,
    tell_unscorable,
    totals,
    usage,
)
from entire_id.errors import PreviousVersionError

if TYPE_CHECKING:
    from entire_id.records import Source
    from entire_id.repository import Repository
    from entire_id.shards.manifest import Manifest
    from entire_id.shards.pack import PackReport
    from entire_id.shards.repair import RepairReport
    from entire_id.shards.verify import VerifyReport
    from entire_id.sources.crops import CropSource, Layout
    from entire_id.sources.official import Count


__all__ = ["app"]

app = typer.Typer()


class Engine(StrEnum):
    """What gives the work to processes."""

    LOCAL = "local"
    RAY = "ray"


class Format(StrEnum):
    """Formats of shards."""

    PARQUET = "parquet"
    WEBDATASET = "webdataset"


LayoutOption = Annotated[
    str,
    typer.Option(
        metavar="LAYOUT",
        help="Naming family of a folder or zip: entire-id, market1501, market1501-500k, msmt17-v1, msmt17-v2, "
        "dukemtmc-reid, occluded-duke, cuhk03-np-detected, cuhk03-np-labeled, last; auto finds out.",
    ),
]
ListsOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the layout's lists. [default: beside the crops]")
]
CamerasOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="cameras.csv with camid, continent. [default: beside the crops]")
]


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    crops: Annotated[int, typer.Option(min=50, help="About how many crops to draw.")] = 2000,
    train: Annotated[bool, typer.Option("--train", help="Draw a train part too.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Draw people in the layout of ENTIRe-ID: a toy to try everything on. No photograph of anyone."""
    from entire_id.sources.sample import SampleConfig, draw_sample

    with usage():
        config = SampleConfig.of_size(crops, seed, train=train)
    with progress_bar() as progress:
        drawn = draw_sample(out, config, lambda done: progress("drawing", done, crops))
    say(f"drew {drawn:,} crops in {out}\nnext: entire-id pack {quoted(out)} entire-id")


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
    lists: ListsOption = None,
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
    from dataclasses import asdict

    from entire_id.remote import place_of
    from entire_id.shards.pack import PackConfig
    from entire_id.shards.pack import pack as pack_source
    from entire_id.sources.crops import CropSource

    old = _here(previous)
    with usage():
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
    opened = _open(source, layout, cameras, lists)
    unusable = sorted(str(camera.camid) for camera in opened.cameras if camera.continent is None)
    if unusable:
        say(
            f"cameras.csv gives camera {', '.join(unusable)} a continent that cannot name a config (default, test and "
            "meta are taken; letters, digits and _ make a name): its crops will be rejected"
        )
    with progress_bar() as progress:
        report = pack_source(opened, out, config, progress)
    known = opened.layout if isinstance(opened, CropSource) else None
    counts = _official_counts(report, known) if known else ()
    if as_json:
        rejected_csv = None if report.rejected_csv is None else str(report.rejected_csv)
        fields = {"rejected": report.rejected, "rejected_csv": rejected_csv, "layout": known and known.name}
        print_json(totals(report.manifest) | fields | {"official": [asdict(count) for count in counts]})
    else:
        print_totals(report.manifest)
    _tell_pack(report)
    if isinstance(opened, CropSource):
        _tell_layout(opened, counts)
    if known and known.name == "entire-id" and not {"train", "val"} & report.manifest.splits.keys():
        say("there is no train part (ENTIRe-ID's was not released by the authors)")
    folder = place_of(out)
    tell_unscorable(out, report.manifest.splits)
    if isinstance(folder, Path):
        say(f"packed into {folder}\nnext: entire-id verify {quoted(folder)}")
    else:
        say(f"packed into {report.folder}\nnext: copy it to a folder DIR here and type: entire-id verify DIR")


def _open(source: str | Path, layout: str, cameras: Path | None, lists: Path | None) -> Source:
    """Open the crops; say which layout they have where that was asked."""
    from entire_id.sources.crops import CropSource
    from entire_id.sources.layouts import AUTO, is_table, open_source, recognise

    if layout == AUTO and not is_table(source):
        found = recognise(source, lists)
        layout = found.layout.name
        say(f"layout {layout}: {found.why}")
    opened = open_source(source, layout, cameras, lists)
    if isinstance(opened, CropSource) and opened.missing_lists:
        _tell_missing_lists(opened)
    return opened


def _tell_missing_lists(source: CropSource) -> None:
    name, missing = source.layout.name, ", ".join(source.missing_lists)
    if source.has_lists:
        say(f"{name}: not all of its lists are there, {missing} missing: crops that no other list names are rejected")
    else:
        say(
            f"{name}: none of its lists is there ({missing}): crops are taken as the folders have them, which is right "
            "where the lists were applied to them already; else name the folder of the lists with --lists"
        )


def _official_counts(report: PackReport, layout: Layout) -> tuple[Count, ...]:
    from entire_id.sources.official import Found, compare_counts

    manifest = report.manifest
    pids = {
        split: {pid for shard in manifest.shards if shard.split == split for pid in shard.pids}
        for split in manifest.splits
    }
    found = {
        split: Found(total.rows, pids[split], report.junk.get(split, 0)) for split, total in manifest.splits.items()
    }
    return compare_counts(layout.official, found)


def _tell_layout(source: CropSource, counts: tuple[Count, ...]) -> None:
    name = source.layout.name
    if source.left_out:
        say(f"left out {', '.join(source.left_out)}: they come with the data set and are crops of no split")
    for count in counts:
        if not count.is_official:
            where = " and ".join(count.splits)
            say(f"{name}: {count.found:,} {count.what} in {where}, by the authors' count {count.expected:,}")
    if counts:
        num_official = sum(count.is_official for count in counts)
        rest = "" if num_official == len(counts) else "; that is as it should be for a part of it, or another edition"
        say(f"{name}: {num_official} of {len(counts)} counts are those of its authors{rest}")


def _here(previous: str | None) -> Path | None:
    """Return the folder of the previous version, which is read where it lies."""
    from entire_id.remote import place_of

    folder = None if previous is None else place_of(previous)
    if isinstance(folder, str):
        raise PreviousVersionError(folder, "it is read file by file; copy it to a folder here first")
    return folder


def _tell_pack(report: PackReport) -> None:
    if report.num_resumed:
        say(f"went on with {report.num_resumed} shards that an interrupted run had finished")
    if report.num_kept:
        say(f"kept {report.num_kept} of {len(report.manifest.shards)} shards as they were in the previous version")
    if report.rejected:
        counts = ", ".join(f"{number:,} {reason}" for reason, number in sorted(report.rejected.items()))
        total = sum(report.rejected.values())
        say(f"rejected {total:,} files ({counts}); each stands with its reason in {report.rejected_csv}")
    if report.cameras_undescribed:
        say(
            f"continent is 'unknown' for {len(report.cameras_undescribed)} cameras that no cameras.csv describes; its "
            "columns are camid, continent, and whatever else you know"
        )


@app.command()
def verify(
    where: Annotated[str, typer.Argument(metavar="DIR", help="A packed data set; also owner/name@v1.0.0 on the Hub.")],
    quick: Annotated[bool, typer.Option("--quick", help="Sizes, digests and labels only.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image, too.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Of one on the Hub, read every byte.")] = False,
    jobs: JobsOption = 1,
    repair: Annotated[
        Path | None, typer.Option(metavar="SOURCE", help="The raw crops: write broken files anew from them.")
    ] = None,
    layout: LayoutOption = "entire-id",
    cameras: CamerasOption = None,
    lists: ListsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file, row and image of a packed data set. Exit 3 if anything is wrong."""
    from entire_id.repository import repository_at
    from entire_id.shards.manifest import read_manifest
    from entire_id.shards.repair import repair as repair_folder
    from entire_id.shards.verify import verify as verify_folder

    repository = repository_at(where)
    if repository is not None:
        if quick or decode or repair or jobs > 1:
            raise typer.BadParameter(
                "--quick, --decode, --jobs and --repair are for a folder; of the Hub there is --deep"
            )
        _verify_revision(repository, deep=deep, as_json=as_json)
        return
    if deep:
        raise typer.BadParameter("--deep is for a repository; of a folder every byte is read without --quick")
    if repair is None and (layout != "entire-id" or cameras is not None or lists is not None):
        raise typer.BadParameter("--layout, --cameras and --lists describe the crops of --repair")
    folder, repaired = Path(where), None
    with progress_bar() as progress:
        if repair is None:
            report = verify_folder(folder, progress, quick=quick, decode=decode, jobs=jobs)
        else:
            opened = _open(repair, layout, cameras, lists)
            repaired = repair_folder(folder, opened, progress, quick=quick, decode=decode, jobs=jobs)
            report = repaired.verified
    _print_verify(report, repaired, as_json=as_json)
    if repaired is not None:
        _tell_repair(repaired, repair)
    _tell_verify(report)
    if report.problems:
        raise typer.Exit(EXIT_PROBLEMS)
    if not tell_unscorable(folder, read_manifest(folder).splits):
        say(f"next: entire-id embed {quoted(folder)}")


def _verify_revision(repository: Repository, *, deep: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from entire_id.hub.repo import MAIN, HubRepo
    from entire_id.hub.versions import verify_revision

    try:
        with progress_bar() as progress:
            problems = verify_revision(HubRepo(repository.name), repository.revision or MAIN, progress, deep=deep)
    except KeyboardInterrupt:
        say("stopped")  # unlike that of a folder, it does not go on
        raise typer.Exit(EXIT_STOPPED) from None
    if as_json:
        print_json({"problems": [asdict(one) for one in problems]})
    elif problems:
        print_table(["problem", "where", "what"], [(one.kind, one.where, one.detail) for one in problems])
    how = "every byte read" if deep else "names, sizes and digests compared; --deep reads every byte"
    say(f"{repository}: {len(problems):,} problems ({how})")
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)


def _print_verify(report: VerifyReport, repaired: RepairReport | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        fields = asdict(report)
        del fields["num_resumed"]  # what was found is the same
        if repaired is not None:
            fields |= {"restored": repaired.restored, "unrestored": [asdict(one) for one in repaired.unrestored]}
        print_json(fields)
    elif report.problems:
        print_table(["problem", "where", "what"], [(p.kind, p.where, p.detail) for p in report.problems])


def _tell_verify(report: VerifyReport) -> None:
    if report.num_resumed:
        say(f"went on with {report.num_resumed} shards that an interrupted run had checked")
    say(f"{report.rows:,} rows checked, {len(report.problems):,} problems")
    if report.queries_without_positive:
        number = report.queries_without_positive
        say(f"{number:,} queries have no crop of another camera in the gallery; no score counts them")
    if report.shared_pids:
        say(f"{report.shared_pids:,} pid numbers stand in train and test; they are different people (train/N, test/N)")
    if report.duplicate_images:
        say(f"{report.duplicate_images:,} images occur more than once within a part")


def _tell_repair(report: RepairReport, source: Path | None) -> None:
    for path in report.restored:
        say(f"restored {path}")
    if report.old_readme is not None:
        say(f"the README that stood there is {report.old_readme} now")
    for one in report.unrestored:
        say(f"could not restore {one.path}: {one.why}")
    if report.unrestored:
        say(f"next: pack a new version: entire-id pack {quoted(source or Path())} NEW --version VERSION")


@app.command()
def info(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Print what a packed data set holds."""
    from entire_id.shards.manifest import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        print_json(totals(manifest))
        return
    print_table(["", ""], [(name, value) for name, value in totals(manifest).items() if isinstance(value, str)])
    print_totals(manifest)
    if len(manifest.continents) > 1:
        rows = [[place, *_crops_by_split(manifest, place)] for place in manifest.continents]
        print_table(["continent", *manifest.splits], rows)


def _crops_by_split(manifest: Manifest, continent: str) -> list[int]:
    shards = [shard for shard in manifest.shards if shard.continent == continent]
    return [sum(shard.rows for shard in shards if shard.split == split) for split in manifest.splits]


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to work in; an earlier demo there is replaced.")] = Path("demo"),
    crops: Annotated[int, typer.Option(min=200, help="About how many crops to draw.")] = 2000,
    seed: SeedOption = 0,
) -> None:
    """Go the whole way on drawn people: sample, pack, verify, load, stream, embed, evaluate, picture."""
    from entire_id.demo import DemoConfig, run_demo

    config = DemoConfig(out, crops, seed)
    with usage():
        config.sample  # noqa: B018 refuses what cannot be drawn
    with progress_bar() as progress:
        steps = run_demo(config, progress)
    print_table(["step", "result", "s"], [(step.name, step.result, step.seconds) for step in steps])
    say(
        f"everything is in {out}: crops/, entire-id/, people.png, ranking.png\n"
        "with the real crops (query/ and bounding_box_test/ in one folder CROPS), type:\n"
        f"  {quoted(Path(sys.argv[0]))} pack CROPS entire-id\n"
        f"  {quoted(Path(sys.argv[0]))} verify entire-id"
    )
