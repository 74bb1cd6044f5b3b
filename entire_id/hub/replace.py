"""A version in place of all others: how an erasure ends on the Hub. Checked before anything is erased."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from entire_id.errors import PublishError
from entire_id.hub.card import write_card
from entire_id.hub.facts import OwnerFacts
from entire_id.hub.publish import PublishConfig, Published, plan_publish, publish
from entire_id.hub.repo import HubRepo
from entire_id.hub.versions import list_versions
from entire_id.hub.withdraw import Withdrawn, plan_withdrawal, withdraw
from entire_id.records import Progress, no_progress
from entire_id.shards.erase import EraseReport
from entire_id.shards.manifest import README_FILE, read_manifest
from entire_id.shards.remains import find_in_text

__all__ = ["Replacement", "check_replaceable", "replace_versions"]


@dataclass(frozen=True, slots=True)
class Replacement:
    """What was done on the Hub.

    Attributes:
        published: the version that is there now.
        withdrawn: what became of the others.
    """

    published: Published
    withdrawn: Withdrawn


def check_replaceable(folder: str | Path, repo: HubRepo) -> PublishConfig:
    """Return how a version that follows `folder` is to be published; refuse a repository that does not hold `folder`.

    A name typed wrong would otherwise make a new repository and leave the real one as it is, or empty another one.

    Raises:
        PublishError: there is no such repository, or none of its versions has the content of `folder`.
        DatasetNotFoundError, ManifestError: no data set lies in `folder`.
        HubError, RepositoryNotFoundError: the Hub refuses, or does not answer.
    """
    access = repo.access()
    if access is None:
        raise PublishError(folder, f"there is no repository {repo.name!r}, or your token may not see it")
    content = read_manifest(folder).content_sha256
    versions = list_versions(repo)
    if content not in {version.content_sha256 for version in versions}:
        known = ", ".join(version.version for version in versions) or "none"
        what = f"no version of {repo.name!r} has its content (there are: {known})"
        raise PublishError(folder, f"{what}. Erase from a folder that was published there")
    return PublishConfig(public=not access.private)


def replace_versions(
    folder: str | Path,
    report: EraseReport,
    facts: OwnerFacts,
    repo: HubRepo,
    config: PublishConfig,
    progress: Progress = no_progress,
) -> Replacement:
    """Publish what an erasure left, and take every other version from the Hub for good.

    Args:
        folder: the version from which was erased.
        report: what the erasure did.
        facts: what the owners state, for the card.
        repo: where to.
        config: what `check_replaceable` returned.
        progress: told how far it is.

    Raises:
        PublishError: the card names somebody who was erased, or the new version is not fit to be published.
        HubError, RemoteChangedError, RepositoryNotFoundError: the Hub refuses, or somebody else publishes.
    """
    write_card(report.folder, facts, previous=folder, progress=progress)
    named = list(find_in_text((report.folder / README_FILE).read_text("utf-8"), report.removed))
    if named:
        what = f"its card names {len(named)} of the people or crops that were erased, in the facts or in older notes"
        raise PublishError(report.folder, f"{what} of the changelog. Take them out of both, and make the card again")
    published = publish(report.folder, repo, plan_publish(report.folder, repo, config, progress), progress)
    return Replacement(published, withdraw(repo, plan_withdrawal(repo, report.manifest.version)))
