"""Older versions → nothing, as far as the Hub allows: their tags, their history, and the bytes of their shards.

For the day when somebody is taken out of the data set: a new version does not help as long as old ones can be fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from entire_id.errors import HubError, PublishError, RemoteChangedError
from entire_id.hub.publish import tag_of
from entire_id.hub.repo import MAIN, HubRepo, Refs, StoredFile
from entire_id.hub.versions import verify_revision
from entire_id.shards.manifest import MANIFEST_FILE

__all__ = ["Withdrawal", "Withdrawn", "plan_withdrawal", "withdraw"]


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What withdrawing will do, for a repository as it was seen.

    Attributes:
        repo: `owner/name`.
        version: the one that stays, which is that of `main`.
        parent: commit of `main` that was seen.
        tags: that go: those of all other versions, and whatever else names an older state.
        branches: that go: all but `main`.
        has_history: whether `main` leads back to older states.
        files: large files that go for good: `main` does not use them.
    """

    repo: str
    version: str
    parent: str
    tags: tuple[str, ...]
    branches: tuple[str, ...]
    has_history: bool
    files: tuple[StoredFile, ...]

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to withdraw."""
        return not (self.tags or self.branches or self.has_history or self.files)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What was withdrawn, and what cannot be.

    Attributes:
        done: what was done, a sentence each.
        remains: where the bytes may still be, a sentence each.
    """

    done: tuple[str, ...]
    remains: tuple[str, ...]


def plan_withdrawal(repo: HubRepo, version: str) -> Withdrawal:
    """Return what it takes to leave nothing but one version; nothing is changed.

    Args:
        repo: the repository.
        version: the one that stays; `main` must have its content.

    Raises:
        PublishError: `main` is another version, or not what its manifest, or the version's tag, says.
        RepositoryNotFoundError, HubError: the Hub refuses, or does not answer.
    """
    refs = repo.refs()
    head = refs.branches[MAIN]
    found = repo.manifest(head).version
    if found != version:
        raise PublishError(repo.name, f"{MAIN} is version {found}, not {version}. Publish that one first")
    _check_whole(repo, version, refs)
    used = {file.sha256 for file in repo.tree(head).values() if file.sha256}
    stored = repo.stored()
    if not used <= frozenset[str]().union(*(file.ids for file in stored)):
        what = "the Hub's list of its large files does not name those of main by their SHA-256: none is safe to delete"
        raise PublishError(repo.name, what)
    return Withdrawal(
        repo=repo.name,
        version=version,
        parent=head,
        tags=tuple(sorted(refs.tags.keys() - {tag_of(version)})),
        branches=tuple(sorted(refs.branches.keys() - {MAIN})),
        has_history=repo.num_commits(MAIN) > 1 or refs.tags.get(tag_of(version)) != head,
        files=tuple(file for file in stored if used.isdisjoint(file.ids)),
    )


def _check_whole(repo: HubRepo, version: str, refs: Refs) -> None:
    """Refuse to keep what somebody damaged: afterwards there would be no other copy."""
    head, tag = refs.branches[MAIN], tag_of(version)
    problems = verify_revision(repo, head)
    if problems:
        what = f"{MAIN} has {len(problems):,} problems, the first: {problems[0].where}: {problems[0].detail}"
        raise PublishError(repo.name, f"{what}. Mend it with: entire-id rollback {repo.name} {tag} --apply")
    if tag in refs.tags and repo.tree(refs.tags[tag])[MANIFEST_FILE] != repo.tree(head)[MANIFEST_FILE]:
        raise PublishError(repo.name, f"{MAIN} says that it is version {version}, and is not what {tag} names")


def withdraw(repo: HubRepo, plan: Withdrawal) -> Withdrawn:
    """Take all versions but one from the Hub for good, and say what was done. After a break, plan anew and go on.

    History goes first, so that no pointer is left to what is deleted. The tag of the version that stays is set anew,
    for it led back to older states; the files that it names are the same, which is compared.

    Raises:
        RemoteChangedError: `main` moved since the plan was made.
        RepositoryNotFoundError, HubError: the Hub refuses, or does not answer.
    """
    refs = repo.refs()
    _check_refs(repo, refs, plan.parent, {MAIN, *plan.branches}, {*plan.tags, tag_of(plan.version)})
    done = list(_drop_history(repo, plan, refs))
    if plan.files:
        now = repo.refs()
        _check_refs(repo, now, now.tags.get(tag_of(plan.version), ""), {MAIN}, {tag_of(plan.version)})
        repo.destroy(plan.files)
        doomed = {file.ids for file in plan.files}
        num_left = sum(file.ids in doomed for file in repo.stored())
        if num_left:
            raise HubError(repo.name, f"{num_left:,} of {len(plan.files):,} files were not deleted")
        size = sum(file.bytes for file in plan.files) / 1e6
        done.append(f"deleted {len(plan.files):,} large files ({size:,.1f} MB) of older states from the Hub's storage")
    return Withdrawn(tuple(done), tuple(_remains(repo)))


def _check_refs(repo: HubRepo, refs: Refs, head: str, branches: set[str], tags: set[str]) -> None:
    """Refuse to go on where somebody publishes meanwhile: a new version may use what is about to be deleted."""
    if refs.branches[MAIN] != head:
        raise RemoteChangedError(repo.name, f"{MAIN} is at {refs.branches[MAIN][:8]}, the plan saw {head[:8]}")
    new = sorted((refs.branches.keys() - branches) | (refs.tags.keys() - tags))
    if new:
        raise RemoteChangedError(repo.name, f"{', '.join(new)} came since the plan was made")


def _drop_history(repo: HubRepo, plan: Withdrawal, refs: Refs) -> Iterator[str]:
    for tag in plan.tags:
        repo.delete_tag(tag)
        yield f"deleted the tag {tag}"
    for branch in plan.branches:
        repo.delete_branch(branch)
        yield f"deleted the branch {branch}"
    if not plan.has_history:
        return
    files = repo.tree(plan.parent)
    repo.squash(MAIN, f"Version {plan.version}")
    commit = repo.refs().branches[MAIN]
    if repo.tree(commit) != files:
        raise HubError(repo.name, f"{MAIN} lost files when its history went: look at it before anything else")
    tag = tag_of(plan.version)
    if tag in refs.tags:
        repo.delete_tag(tag)
    repo.create_tag(tag, commit, f"content sha256:{repo.manifest(commit).content_sha256}")
    yield f"left of the history of {MAIN} its last state alone, {commit[:8]}, and set the tag {tag} to it"


def _remains(repo: HubRepo) -> Iterator[str]:
    yield "whoever downloaded an older version has it; ask those to whom access was given to delete it"
    yield (
        "small files of older commits (manifest.json, README.md, cameras.csv), which hold no picture, can be read by "
        "whoever noted the name of a commit, until the Hub collects what nothing leads to"
    )
    yield "what the Hub keeps in backups, and chunks that Xet shares between files, cannot be seen from here"
    for ref in repo.refs().others:
        yield f"{ref} is the Hub's own and still there: close the pull request, or have the conversion removed"
