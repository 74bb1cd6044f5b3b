"""The versions that a repository has: list them, compare one with its manifest, make `main` an older one again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from entire_id.errors import RemoteChangedError, RepositoryNotFoundError
from entire_id.hub.publish import published_versions, tag_of
from entire_id.hub.repo import MAIN, HubRepo, RemoteFile, Tree, is_loaded
from entire_id.records import Progress, no_progress
from entire_id.repository import repository_at
from entire_id.shards.check import Kind, Problem
from entire_id.shards.configs import loading_rules, render_readme
from entire_id.shards.diff import VersionDiff, diff_manifests
from entire_id.shards.manifest import (
    MANIFEST_FILE,
    README_FILE,
    Manifest,
    parse_manifest,
    read_manifest,
)

__all__ = [
    "Rollback",
    "Version",
    "diff_versions",
    "list_versions",
    "plan_rollback",
    "rollback",
    "verify_revision",
]


@dataclass(frozen=True, slots=True)
class Version:
    """A version that was published.

    Attributes:
        version: its number.
        commit: that its tag means.
        is_main: `main` has its content now.
        crops: in all splits.
        people: identities of both parts.
        bytes: size of its files, README.md and manifest.json aside.
        content_sha256: digest of its content.
    """

    version: str
    commit: str
    is_main: bool
    crops: int
    people: int
    bytes: int
    content_sha256: str


def list_versions(repo: HubRepo) -> list[Version]:
    """Return the versions that were published, the newest first.

    Raises:
        RepositoryNotFoundError: no such repository, or the token may not see it.
        HubError: the Hub refuses, or does not answer.
        ManifestError: the manifest of a version is damaged.
    """
    refs = repo.refs()
    head = refs.branches[MAIN]
    main = repo.manifest(head).content_sha256 if MANIFEST_FILE in repo.tree(head) else ""
    found = []
    for version in reversed(published_versions(refs.tags)):
        commit = refs.tags[tag_of(version)]
        manifest = repo.manifest(commit)
        size = sum(entry.bytes for entry in manifest.files)
        digest = manifest.content_sha256
        found.append(Version(version, commit, digest == main, manifest.num_rows, len(manifest.people()), size, digest))
    return found


def diff_versions(old: str | Path, new: str | Path) -> VersionDiff:
    """Return what changed between two data sets, each a folder or `owner/name@revision`.

    Of one on the Hub the manifest comes, and the meta files of shards that differ.

    Raises:
        DatasetNotFoundError, RepositoryNotFoundError: one of them is not there.
        ManifestError: one is damaged.
    """
    return diff_manifests(*_opened(old), *_opened(new))


def _opened(where: str | Path) -> tuple[Manifest, Callable[[str], Path]]:
    """Return a manifest, and what gives a file of the data set as one of this machine."""
    repository = repository_at(where)
    if repository is None:
        return read_manifest(where), Path(where).joinpath
    repo = HubRepo(repository.name)
    commit = repo.commit(repository.revision or MAIN)
    return repo.manifest(commit), partial(repo.file, revision=commit)


# --- verify -----------------------------------------------------------------------------------------------------------


def verify_revision(
    repo: HubRepo, revision: str = MAIN, progress: Progress = no_progress, *, deep: bool = False
) -> tuple[Problem, ...]:
    """Compare a revision with its manifest; return what is wrong, nothing for a sound one.

    The Hub names every file with its size and, for large ones, the SHA-256 that was checked when it came: nothing but
    the small ones is downloaded. `deep` reads every byte that the Hub gives out, and keeps none.

    Args:
        repo: the repository.
        revision: branch, tag or commit.
        progress: told how far it is.
        deep: read everything.

    Raises:
        RepositoryNotFoundError: there is no such repository or revision.
        HubError: the Hub refuses, or does not answer.
    """
    commit = repo.commit(revision)
    tree = repo.tree(commit)
    if MANIFEST_FILE not in tree:
        return (Problem(Kind.MISSING, MANIFEST_FILE, "not on the Hub"),)
    data = repo.file(MANIFEST_FILE, commit).read_bytes()
    try:
        manifest = parse_manifest(data, MANIFEST_FILE)
    except ValueError as error:
        return (Problem(Kind.MANIFEST, MANIFEST_FILE, str(error)),)
    return (*_differences(repo, commit, manifest, tree, progress, deep=deep), *_strangers(manifest, tree))


def _differences(
    repo: HubRepo, commit: str, manifest: Manifest, tree: Tree, progress: Progress, *, deep: bool
) -> Iterator[Problem]:
    done, total = 0, sum(entry.bytes for entry in manifest.files)
    yield from _check_readme(repo, commit, manifest, tree)
    for entry in manifest.files:
        progress("verifying", done, total, entry.path)
        found = tree.get(entry.path)
        if found is None:
            yield Problem(Kind.MISSING, entry.path, "not on the Hub")
        elif found.bytes != entry.bytes:
            yield Problem(Kind.SIZE, entry.path, f"{found.bytes:,} bytes, not {entry.bytes:,}")
        elif (digest := _digest(repo, commit, found, deep=deep)) != entry.sha256:
            yield Problem(Kind.SHA256, entry.path, f"sha256 {digest[:12]}…, not {entry.sha256[:12]}…")
        done += entry.bytes


def _check_readme(repo: HubRepo, commit: str, manifest: Manifest, tree: Tree) -> Iterator[Problem]:
    if README_FILE not in tree:
        yield Problem(Kind.MISSING, README_FILE, "not on the Hub")
        return
    readme = repo.file(README_FILE, commit).read_text("utf-8", errors="replace")
    if loading_rules(readme) != loading_rules(render_readme(manifest)):
        yield Problem(Kind.README, README_FILE, "its configs are not those of the manifest")


def _digest(repo: HubRepo, commit: str, file: RemoteFile, *, deep: bool) -> str:
    if file.sha256 and not deep:
        return file.sha256
    digest = hashlib.sha256()
    for chunk in repo.chunks(file.path, commit):
        digest.update(chunk)
    return digest.hexdigest()


def _strangers(manifest: Manifest, tree: Tree) -> Iterator[Problem]:
    for path in sorted(tree.keys() - manifest.entries.keys()):
        if is_loaded(path):
            yield Problem(Kind.UNLISTED, path, "the manifest does not list it, but `datasets` would load it")


# --- roll back --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rollback:
    """What rolling back will do.

    Attributes:
        version: whose content `main` will have.
        source: the commit of that version.
        parent: the commit that `main` is at.
        copy: paths that become what they were.
        delete: paths that go.
    """

    version: str
    source: str
    parent: str
    copy: tuple[str, ...]
    delete: tuple[str, ...]


def plan_rollback(repo: HubRepo, version: str) -> Rollback:
    """Return what it takes to make `main` a published version again; nothing is changed.

    Raises:
        RepositoryNotFoundError: no such repository or version.
        HubError: the Hub refuses, or does not answer.
    """
    refs = repo.refs()
    tag = tag_of(version)
    if tag not in refs.tags:
        known = ", ".join(published_versions(refs.tags)) or "none"
        raise RepositoryNotFoundError(f"{repo.name}@{tag}", f"no such version; there are: {known}")
    source, parent = refs.tags[tag], refs.branches[MAIN]
    old, now = repo.tree(source), repo.tree(parent)
    return Rollback(
        version,
        source,
        parent,
        tuple(sorted(path for path, file in old.items() if now.get(path) != file)),
        tuple(sorted(now.keys() - old.keys())),
    )


def rollback(repo: HubRepo, plan: Rollback) -> str:
    """Make `main` the version again, by one commit more: its history and all tags stay. Return the commit.

    Raises:
        RemoteChangedError: `main` moved since the plan was made.
        RepositoryNotFoundError, HubError: the Hub refuses, or does not answer.
    """
    if not plan.copy and not plan.delete:
        return plan.parent
    head = repo.refs().branches[MAIN]
    if head != plan.parent:
        raise RemoteChangedError(repo.name, f"{MAIN} is at {head[:8]}, the plan saw {plan.parent[:8]}")
    return repo.copy(MAIN, head, plan.source, plan.copy, plan.delete, f"Back to version {plan.version}")
