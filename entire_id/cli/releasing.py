"""Verbs for versions: what changed, the card, the Hub, and taking people out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entire_id.cli.terminal import (
    FolderArgument,
    JobsOption,
    JsonOption,
    SecretOption,
    TombstonesOption,
    print_json,
    print_table,
    print_totals,
    progress_bar,
    quoted,
    say,
    totals,
    usage,
)

if TYPE_CHECKING:
    from entire_id.hub.publish import PublishPlan
    from entire_id.hub.repo import HubRepo
    from entire_id.hub.withdraw import Withdrawal, Withdrawn
    from entire_id.shards.caches import Leftover
    from entire_id.shards.erase import ErasePlan, EraseReport


__all__ = ["app"]

app = typer.Typer()


class GateOption(StrEnum):
    """Who gets in."""

    MANUAL = "manual"
    AUTO = "auto"
    NONE = "none"


RepoArgument = Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub, owner/name.")]
ApplyOption = Annotated[bool, typer.Option("--apply", help="Do it; without, only the plan is shown.")]
FactsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What the owners state: licence, consent, contact …")
]


def _open_repo(name: str) -> HubRepo:
    """Return the repository of that name: never a folder."""
    from entire_id.hub.repo import HubRepo
    from entire_id.repository import HUB, repository_at

    repository = repository_at(name if name.startswith(HUB) else HUB + name)
    if repository is None or repository.revision is not None:
        raise typer.BadParameter(f"{name!r}: a repository without a revision is asked for, owner/name")
    return HubRepo(repository.name)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A packed data set; also owner/name@v1.0.0 on the Hub.")],
    new: Annotated[str, typer.Argument(help="Another version of it, likewise.")],
    as_json: JsonOption = False,
) -> None:
    """Print what changed from one version to another: shards, people, crops, bytes to upload."""
    from dataclasses import asdict

    from entire_id.hub.versions import diff_versions

    found = diff_versions(old, new)
    if as_json:
        print_json(asdict(found))
        return
    names = ("shards_kept", "shards_changed", "shards_added", "shards_removed", "people_added", "people_removed")
    rows = [(name.replace("_", " "), getattr(found, name)) for name in (*names, "upload_bytes")]
    print_table([f"{found.old_version} → {found.new_version}", ""], rows)
    if found.splits:
        changes = [(split, one.added, one.removed, one.changed) for split, one in found.splits.items()]
        print_table(["split", "crops added", "removed", "changed"], changes)
    if {"query", "gallery"} & found.splits.keys():
        say("query or gallery changed: scores of the two versions are not comparable")


@app.command()
def card(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A packed data set.")] = None,
    facts: FactsOption = None,
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
    with progress_bar() as progress:
        write_card(folder, stated, previous=previous, notes=notes, progress=progress)
    say(f"wrote {folder / 'README.md'}\nnext: read it, then: entire-id verify {quoted(folder)}")


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
    apply: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Then publish OUT there, and take all older versions from it for good."),
    ] = None,
    facts: FactsOption = None,
    jobs: JobsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Take people or crops out: a new version without them, and a list that keeps them out of later ones."""
    from entire_id.hub.facts import read_facts
    from entire_id.hub.replace import check_replaceable, replace_versions
    from entire_id.shards.caches import caches_of
    from entire_id.shards.erase import EraseRequest, plan_erasure, read_names
    from entire_id.shards.erase import erase as erase_people
    from entire_id.shards.manifest import read_manifest

    if (apply is None) != (facts is None):
        raise typer.BadParameter("--apply REPO needs --facts FILE, of which the card is made, and only then")
    repo = None if apply is None else _open_repo(apply)
    stated = None if facts is None else read_facts(facts)
    config = None if repo is None else check_replaceable(folder, repo)
    listed = () if from_ is None else read_names(from_)
    with usage():
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
    with progress_bar() as progress:
        if dry_run:
            _print_erase_plan(plan_erasure(folder, request, progress), as_json=as_json)
            return
        report = erase_people(folder, out, request, progress)
    leftovers = caches_of(folder, read_manifest(folder))
    _print_erased(report, leftovers, as_json=as_json)
    _tell_erased(report, leftovers, has_tombstones=tombstones is not None)
    if repo is None or stated is None or facts is None or config is None:
        say(f"next: entire-id verify {quoted(out)}")
        return
    say(f"publishing, then withdrawing the older versions of {repo.name}. Should that break, go on with:")
    tag, public = f"v{report.manifest.version}", " --public" * config.public
    say(f"  entire-id card {quoted(out)} --facts {quoted(facts)} --previous {quoted(folder)}")
    say(f"  entire-id publish {quoted(out)} {repo.name}{public} --apply")
    say(f"  entire-id withdraw {repo.name} --keep {tag} --apply")
    with progress_bar() as progress:
        done = replace_versions(folder, report, stated, repo, config, progress)
    say(f"{repo.name} is at {done.published.tag} ({done.published.commit[:8]})")
    _tell_withdrawn(done.withdrawn)


def _print_erase_plan(plan: ErasePlan, *, as_json: bool) -> None:
    fields = {
        "version": plan.version,
        "crops": len(plan.removed.keys),
        "copies": plan.num_copies,
        "shards": len(plan.touched),
    }
    if as_json:
        print_json(fields)
    else:
        print_table(["would go", ""], [(name, value) for name, value in fields.items() if name != "version"])
        say(f"nothing was written; what remains would be version {plan.version}")


def _print_erased(report: EraseReport, leftovers: list[Leftover], *, as_json: bool) -> None:
    from dataclasses import asdict

    names = ("people", "crops", "copies", "rewritten", "dropped", "kept", "tombstones")
    numbers = {name: getattr(report, f"num_{name}") for name in names}
    if as_json:
        still = [asdict(one) | {"path": str(one.path)} for one in leftovers]
        erased = {"old_version": report.old_version, "erased": numbers, "leftovers": still}
        print_json(totals(report.manifest) | erased)
        return
    labels = {"rewritten": "shards rewritten", "dropped": "shards dropped", "kept": "shards kept"}
    change = f"{report.old_version} → {report.manifest.version}"
    print_table([change, ""], [(labels.get(name, name), number) for name, number in numbers.items()])
    print_totals(report.manifest)


def _tell_erased(report: EraseReport, leftovers: list[Leftover], *, has_tombstones: bool) -> None:
    if report.num_resumed:
        say(f"went on with {report.num_resumed} shards that an interrupted run had written")
    if report.num_copies:
        say(f"{report.num_copies:,} crops went that nobody named: their images are byte for byte those of others")
    if not has_tombstones:
        say("no tombstones were written: a later pack of the same raw crops brings them back (see --tombstones)")
    say(f"searched all of {report.folder}: nothing of what was taken out is in it")
    say("this machine still holds what was taken out, or may; once nobody needs it, type:")
    for one in leftovers:
        say(f"  {one.purge}  # {one.what}")
    say("and delete the raw crops. Not looked for: backups, other machines, cache folders of your own naming")


# --- the Hub ----------------------------------------------------------------------------------------------------------


@app.command()
def publish(
    folder: FolderArgument,
    repo: RepoArgument,
    apply: ApplyOption = False,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the plan there; with --apply, run the one that it holds.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may see the repository.")] = False,
    gate: Annotated[
        GateOption, typer.Option(help="Who gets in: whom you accept, who fills in the form, or anybody.")
    ] = GateOption.MANUAL,
    jobs: JobsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Publish a packed data set as a version on the Hub: private, gated, complete or not at all."""
    from entire_id.hub.publish import PublishConfig, plan_publish, read_plan
    from entire_id.hub.publish import publish as publish_folder

    target = _open_repo(repo)
    with progress_bar() as progress:
        if apply and plan is not None:
            planned = read_plan(plan)
            if planned.repo != target.name:
                raise typer.BadParameter(f"the plan in {plan} is for {planned.repo}, not for {target.name}")
        else:
            planned = plan_publish(folder, target, PublishConfig(public, gate.value, jobs), progress)
    if not apply:
        if plan is not None:
            plan.write_text(planned.to_json(), encoding="utf-8")
        _print_plan(planned, as_json=as_json)
        options = " --public" * public + (f" --gate {gate.value}" if gate is not GateOption.MANUAL else "")
        options = f" --plan {quoted(plan)}" if plan is not None else options
        say(f"nothing was changed\nnext: entire-id publish {quoted(folder)} {target.name}{options} --apply")
        return
    with progress_bar() as progress:
        done = publish_folder(folder, target, planned, progress)
    if as_json:
        print_json({"repo": target.name, "tag": done.tag, "commit": done.commit, "uploaded": list(done.uploaded)})
    say(f"{target.name} has {done.tag} ({done.commit[:8]}); {len(done.uploaded):,} files were sent")
    if planned.is_published and planned.parent != done.commit:
        say(f"it was there already; if main is to be it again: entire-id rollback {target.name} {done.tag} --apply")
    say(f"next: entire-id verify {target.name}@{done.tag}")


def _print_plan(plan: PublishPlan, *, as_json: bool) -> None:
    if as_json:
        print(plan.to_json(), end="")
        return
    sizes = {entry.path: entry.bytes for entry in plan.files}
    new = "to be made, " * (plan.parent is None)
    rows = [
        ("repository", f"{plan.repo} ({new}{plan.access})"),
        ("version", f"{plan.version}{' (published already)' if plan.is_published else ''}"),
        ("add", f"{len(plan.add):,} files, {sum(map(sizes.__getitem__, plan.add)):,} bytes"),
        ("keep", f"{len(plan.files) - len(plan.add):,} files"),
        ("delete", f"{len(plan.delete):,} files"),
        ("bytes that travel", f"{plan.upload_bytes:,} at most"),
    ]
    print_table(["", ""], rows)
    changes = [("add", path, sizes[path]) for path in plan.add] + [("delete", path, "") for path in plan.delete]
    if changes:
        print_table(["", "file", "bytes"], changes)
    if plan.others:
        say(f"{len(plan.others):,} files of no version stay: {', '.join(plan.others)}")


@app.command()
def versions(repo: RepoArgument, as_json: JsonOption = False) -> None:
    """Print the versions that a repository has."""
    from dataclasses import asdict

    from entire_id.hub.versions import list_versions

    found = list_versions(_open_repo(repo))
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [
        (
            one.version,
            "main" if one.is_main else "",
            one.crops,
            one.people,
            one.bytes,
            one.commit[:8],
            one.content_sha256,
        )
        for one in found
    ]
    print_table(["version", "", "crops", "identities", "bytes", "commit", "content sha256"], rows)


@app.command()
def rollback(
    repo: RepoArgument,
    version: Annotated[str, typer.Argument(help="Version that main becomes again, such as v1.0.0.")],
    apply: ApplyOption = False,
) -> None:
    """Make main a published version again, by one commit more; history and tags stay."""
    from entire_id.hub.versions import plan_rollback
    from entire_id.hub.versions import rollback as roll_back

    target, number = _open_repo(repo), version.removeprefix("v")
    plan = plan_rollback(target, number)
    changes = [("becomes what it was", path) for path in plan.copy] + [("goes", path) for path in plan.delete]
    print_table(["", "file"], changes)
    if not changes:
        say(f"main of {target.name} is version {number} already")
    elif apply:
        commit = roll_back(target, plan)
        say(f"main of {target.name} is version {number} again ({commit[:8]}); no bytes travelled")
    else:
        say(f"nothing was changed\nnext: entire-id rollback {target.name} v{number} --apply")


@app.command()
def withdraw(
    repo: RepoArgument,
    keep: Annotated[str, typer.Option(metavar="VERSION", help="The version that stays; main must be at it.")],
    apply: ApplyOption = False,
) -> None:
    """Take all versions but one from the Hub for good, as after an erasure. This cannot be undone."""
    from entire_id.hub.withdraw import plan_withdrawal
    from entire_id.hub.withdraw import withdraw as take_back

    target, number = _open_repo(repo), keep.removeprefix("v")
    plan = plan_withdrawal(target, number)
    _print_withdrawal(plan)
    if plan.is_done:
        say(f"{target.name} holds nothing but version {number}")
    elif apply:
        _tell_withdrawn(take_back(target, plan))
    else:
        say(f"nothing was changed\nnext, for good: entire-id withdraw {target.name} --keep v{number} --apply")


def _print_withdrawal(plan: Withdrawal) -> None:
    gone = [("tag", tag, "") for tag in plan.tags] + [("branch", branch, "") for branch in plan.branches]
    gone += [("history of main", "", "")] if plan.has_history else []
    print_table(["", "what goes", "bytes"], [*gone, *(("stored file", file.path, file.bytes) for file in plan.files)])


def _tell_withdrawn(report: Withdrawn) -> None:
    for line in report.done:
        say(line)
    say("what is not in your hands:")
    for line in report.remains:
        say(f"  {line}")
