"""A packed data set → a tagged version on the Hub: a plan of what travels, then steps that go on after any break.

    folder ── plan_publish ──► PublishPlan ── publish ──► staging branch ──► one commit on main ──► tag

Nobody sees a half-made version: files go to a branch of their own, the Hub's listing of it is compared with the
manifest, and only then one commit brings them all to `main`, from inside the Hub. Every step first looks what is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote

from entire_id.errors import HubError, PublishError, RemoteChangedError, RepositoryNotFoundError, VersionExistsError
from entire_id.hub.card import licence_of
from entire_id.hub.changelog import changelog_versions
from entire_id.hub.repo import MAIN, Access, Gate, HubRepo, Refs, Tree, is_loaded, is_same
from entire_id.records import Progress, no_progress
from entire_id.shards.manifest import (
    MANIFEST_FILE,
    README_FILE,
    VERSION,
    FileEntry,
    Manifest,
    file_digest,
    read_manifest,
    version_numbers,
)
from entire_id.shards.verify import verify

__all__ = [
    "PublishConfig",
    "PublishPlan",
    "Published",
    "plan_publish",
    "publish",
    "published_versions",
    "read_plan",
    "tag_of",
]

_COMMIT_FILES = 50  # in one commit: the Hub gives up after 60 s, and recommends 50 to 100
_PLAN_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """How to publish.

    Attributes:
        public: the repository may be seen by everybody; a new one is made so. Without it a public one is refused.
        gate: who gets in. See `Gate`.
        jobs: processes that verify the folder.
    """

    public: bool = False
    gate: Gate = "manual"
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """What publishing will do, for a repository as it was seen.

    Attributes:
        repo: `owner/name`.
        version: of the content; the tag is `v<version>`.
        content_sha256: digest of the content.
        parent: commit of `main` that was seen; None where the repository is to be made.
        access: who may see the repository while files are sent, and afterwards.
        sets_gate: whether the gate is another now.
        files: every file of the version.
        add: paths of those that `main` does not have so.
        delete: paths of `main` that the version does not have.
        others: paths of `main` that belong to no version, and stay.
        upload_bytes: size of the files whose bytes the Hub has nowhere in the repository: at most that much travels.
        is_published: the version is there, and the same; `main` may be at another one.
    """

    repo: str
    version: str
    content_sha256: str
    parent: str | None
    access: Access
    sets_gate: bool
    files: tuple[FileEntry, ...]
    add: tuple[str, ...]
    delete: tuple[str, ...]
    others: tuple[str, ...]
    upload_bytes: int
    is_published: bool

    def to_json(self) -> str:
        """Return the text of a plan's file; `read_plan` reads it."""
        fields = {"plan": _PLAN_FORMAT, **asdict(self)}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Published:
    """What was published.

    Attributes:
        tag: its name.
        commit: that it means.
        uploaded: paths that were sent now; those that an interrupted run had sent are not among them.
    """

    tag: str
    commit: str
    uploaded: tuple[str, ...]


def tag_of(version: str) -> str:
    """Return the tag of a version.

    >>> tag_of("1.2.0")
    'v1.2.0'
    """
    return f"v{version}"


def version_of(tag: str) -> str | None:
    """Return the version that a tag names; None where it names something else.

    >>> version_of("v1.2.0"), version_of("draft")
    ('1.2.0', None)
    """
    version = tag.removeprefix("v")
    return version if tag.startswith("v") and VERSION.fullmatch(version) else None


def published_versions(tags: Iterable[str]) -> list[str]:
    """Return the versions that tags name, the oldest first.

    >>> published_versions(["v1.10.0", "draft", "v1.9.0"])
    ['1.9.0', '1.10.0']
    """
    return sorted(filter(None, map(version_of, tags)), key=version_numbers)


def read_plan(path: Path) -> PublishPlan:
    """Return the plan that a file holds.

    Raises:
        PublishError: it holds none.
        OSError: it cannot be read.
    """
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("plan") != _PLAN_FORMAT:
            raise KeyError("plan")
        fields["files"] = tuple(FileEntry(**entry) for entry in fields["files"])
        fields["access"] = Access(**fields["access"])
        lists = {name: tuple(fields[name]) for name in ("add", "delete", "others")}
        return PublishPlan(**{**fields, **lists})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PublishError(path, f"no plan of this version of entire-id ({error}). Make one with --plan") from error


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_publish(
    folder: str | Path, repo: HubRepo, config: PublishConfig | None = None, progress: Progress = no_progress
) -> PublishPlan:
    """Verify a folder and return what publishing it would do; nothing is changed.

    Args:
        folder: a packed data set with its card.
        repo: where to.
        config: how; `PublishConfig()` by default.
        progress: told how far the verification is.

    Raises:
        PublishError: something is wrong with the folder, its card names no licence, or the repository is public.
        VersionExistsError: that version was published, and is another.
        DatasetNotFoundError, ManifestError: no data set lies in the folder.
        HubError, RepositoryNotFoundError: the Hub refuses, or does not answer.
    """
    folder, config = Path(folder), config or PublishConfig()
    manifest = read_manifest(folder)
    _check_folder(folder, config, progress)
    files = _files(folder, manifest)
    seen = _look(repo)
    tag = seen.tags.get(tag_of(manifest.version))
    if tag is not None and not _is_there(files, repo.tree(tag), folder):
        raise VersionExistsError(repo.name, manifest.version)
    if seen.access is not None:
        _check_repository(repo, folder, manifest, seen, config)
    if tag is None:
        _check_follows(folder, manifest.version, seen)
    add = _missing(files, seen.tree, folder) if tag is None else []
    outdated = _outdated(files, seen.tree) if tag is None else []
    access = seen.access or Access(not config.public, "none")
    sets_gate = access.gate == "none" != config.gate
    return PublishPlan(
        repo=repo.name,
        version=manifest.version,
        content_sha256=manifest.content_sha256,
        parent=seen.parent,
        access=replace(access, gate=config.gate) if sets_gate else access,
        sets_gate=sets_gate,
        files=files,
        add=tuple(entry.path for entry in add),
        delete=tuple(outdated),
        others=tuple(sorted(seen.tree.keys() - {entry.path for entry in files} - {*outdated})),
        upload_bytes=sum(entry.bytes for entry in add if entry.sha256 not in seen.stored),
        is_published=tag is not None,
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a repository holds; nothing where there is none.

    Attributes:
        access: who may see it; None where there is none.
        parent: commit of `main`.
        tags: name → commit.
        tree: the files of `main`.
        stored: digests of the large files of every branch and tag: their bytes need not travel.
    """

    access: Access | None = None
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    tree: Tree = field(default_factory=dict)
    stored: frozenset[str] = frozenset()


def _look(repo: HubRepo) -> _Seen:
    access = repo.access()
    if access is None:
        return _Seen()
    refs = repo.refs()
    trees = {commit: repo.tree(commit) for commit in {*refs.branches.values(), *refs.tags.values()}}
    stored = frozenset(file.sha256 for tree in trees.values() for file in tree.values())
    return _Seen(access, refs.branches[MAIN], refs.tags, trees[refs.branches[MAIN]], stored)


def _check_repository(repo: HubRepo, folder: Path, manifest: Manifest, seen: _Seen, config: PublishConfig) -> None:
    name = repo.name
    if seen.access is not None and not seen.access.private and not config.public:
        raise PublishError(folder, f"everybody may see {name!r}. Make it private, or say --public")
    script = f"{name.rpartition('/')[2]}.py"
    if script in seen.tree:
        what = f"it holds {script}, for which `datasets` refuses the whole repository. Delete that file first"
        raise PublishError(name, what)
    if MANIFEST_FILE in seen.tree and seen.parent is not None:
        found = repo.manifest(seen.parent).name
        if found != manifest.name:
            what = f"{name!r} holds the data set {found!r}, and this is {manifest.name!r}: another one"
            raise PublishError(folder, f"{what}. Name another repository, or pack with --name {quote(found)}")


def _check_follows(folder: Path, version: str, seen: _Seen) -> None:
    """Refuse what is older than a published version, for people may have been taken out of it since, or leaves one out.

    Versions that were withdrawn have no tag any more: nobody has to tell of them.
    """
    published = published_versions(seen.tags)
    if published and version_numbers(version) < version_numbers(published[-1]):
        raise PublishError(folder, f"it is version {version}, and {published[-1]} was published. Pack a higher one")
    told = changelog_versions((folder / README_FILE).read_text("utf-8"))
    untold = [tag_of(one) for one in published if one not in told]
    if untold:
        what = f"the changelog of its card leaves out {', '.join(untold)}. Make the card with"
        raise PublishError(folder, f"{what}: entire-id card {quote(str(folder))} --facts card.toml --previous OLD")


def _missing(files: Iterable[FileEntry], tree: Tree, folder: Path) -> list[FileEntry]:
    """Return the files of a version that a revision does not have so."""
    return [entry for entry in files if not is_same(entry, tree.get(entry.path), folder)]


def _outdated(files: Iterable[FileEntry], tree: Tree) -> list[str]:
    """Return which files of a revision would be loaded with a version and are none of it, sorted."""
    return sorted(filter(is_loaded, tree.keys() - {entry.path for entry in files}))


def _files(folder: Path, manifest: Manifest) -> tuple[FileEntry, ...]:
    """Return every file of the version: those of the manifest, itself, and the card."""
    own = [
        FileEntry(name, 0, (folder / name).stat().st_size, file_digest(folder / name))
        for name in (MANIFEST_FILE, README_FILE)
    ]
    return tuple(sorted([*manifest.files, *own], key=lambda entry: entry.path))


def _check_folder(folder: Path, config: PublishConfig, progress: Progress) -> None:
    report = verify(folder, progress, jobs=config.jobs)
    if report.problems:
        first = report.problems[0]
        what = f"{len(report.problems):,} problems, the first: {first.where}: {first.detail}"
        raise PublishError(folder, f"{what}. See them with: entire-id verify {quote(str(folder))}")
    readme = (folder / README_FILE).read_text("utf-8")
    if licence_of(readme) is None:
        what = "its README states no licence. Make a card: entire-id card --example > card.toml, fill it in, then"
        raise PublishError(folder, f"{what} entire-id card {quote(str(folder))} --facts card.toml")


def _is_there(files: tuple[FileEntry, ...], tree: Tree, folder: Path) -> bool:
    """Tell whether a revision is the version: every file of it, and no other shard."""
    return not _outdated(files, tree) and not _missing(files, tree, folder)


# --- doing it ---------------------------------------------------------------------------------------------------------


def publish(folder: str | Path, repo: HubRepo, plan: PublishPlan, progress: Progress = no_progress) -> Published:
    """Do what `plan` says, and return what was done. After a break the same call goes on.

    Args:
        folder: the data set that the plan was made for.
        repo: the repository that it was made for.
        plan: what to do.
        progress: told how far it is.

    Raises:
        RemoteChangedError: the repository is not what the plan saw, or somebody else publishes too.
        VersionExistsError: that version was published, and is another.
        PublishError: the folder is not what the plan saw.
        HubError, RepositoryNotFoundError: the Hub refuses, or does not answer.
    """
    folder = Path(folder)
    _check_same(folder, plan)
    tag, staging = tag_of(plan.version), f"publish-{tag_of(plan.version)}"
    if plan.parent is None:
        repo.create(private=plan.access.private)
    if plan.sets_gate:
        repo.set_gate(plan.access.gate)
    _check_access(repo, plan)
    refs = repo.refs()
    uploaded: tuple[str, ...] = ()
    if tag in refs.tags:
        commit = refs.tags[tag]
        if not _is_there(plan.files, repo.tree(commit), folder):
            raise VersionExistsError(repo.name, plan.version)
    else:
        commit, uploaded = _bring(folder, repo, plan, refs, staging, progress)
        _tag(folder, repo, plan, commit)
    if staging in repo.refs().branches:
        repo.delete_branch(staging)
    return Published(tag, commit, uploaded)


def _check_access(repo: HubRepo, plan: PublishPlan) -> None:
    found = repo.access()
    if found != plan.access:
        raise RemoteChangedError(repo.name, f"who may see it: {found or 'nobody'}, and {plan.access} was planned")


def _check_same(folder: Path, plan: PublishPlan) -> None:
    digests = {entry.path: entry.sha256 for entry in plan.files}
    for name in (MANIFEST_FILE, README_FILE):
        try:
            is_there = file_digest(folder / name) == digests.get(name)
        except OSError as error:
            raise PublishError(folder, f"{name} cannot be read ({error})") from error
        if not is_there:
            raise PublishError(folder, f"{name} is not the one that the plan was made for. Make a new plan")


def _bring(
    folder: Path, repo: HubRepo, plan: PublishPlan, refs: Refs, staging: str, progress: Progress
) -> tuple[str, tuple[str, ...]]:
    """Bring the version to `main`, if it is not there; return its commit, and which files were sent."""
    head = refs.branches[MAIN]
    tree = repo.tree(head)
    if _is_there(plan.files, tree, folder):
        return head, ()
    _check_parent(repo, plan, head, tree)
    source, uploaded = _stage(folder, repo, plan, head, staging, progress)
    missing = [entry.path for entry in _missing(plan.files, tree, folder)]
    _check_access(repo, plan)
    commit = repo.copy(MAIN, head, source, missing, _outdated(plan.files, tree), f"Version {plan.version}")
    _check_there(folder, repo, plan, commit)
    return commit, uploaded


def _check_parent(repo: HubRepo, plan: PublishPlan, head: str, tree: Tree) -> None:
    if plan.parent is None:
        if _outdated((), tree):
            raise RemoteChangedError(repo.name, "it was not there when the plan was made, and holds shards now")
    elif plan.parent != head:
        raise RemoteChangedError(repo.name, f"{MAIN} is at {head[:8]}, the plan saw {plan.parent[:8]}")


def _stage(
    folder: Path, repo: HubRepo, plan: PublishPlan, head: str, staging: str, progress: Progress
) -> tuple[str, tuple[str, ...]]:
    """Bring the version to the staging branch; return the commit there, and which files were sent."""
    repo.create_branch(staging, head)
    commit = repo.refs().branches[staging]
    tree = repo.tree(commit)
    missing = _missing(plan.files, tree, folder)
    missing.sort(key=lambda entry: entry.path in (MANIFEST_FILE, README_FILE))  # they come last
    delete = _outdated(plan.files, tree)
    total, done = sum(entry.bytes for entry in missing), 0
    for start in range(0, len(missing), _COMMIT_FILES):
        batch = missing[start : start + _COMMIT_FILES]
        sent: Mapping[str, Path] = {entry.path: folder / entry.path for entry in batch}
        what = f"Version {plan.version}: {start + len(batch)} of {len(missing)} files"
        progress("uploading", done, total, f"{start:,} of {len(missing):,} files")
        commit = repo.upload(staging, commit, sent, delete, what)
        delete = []
        done += sum(entry.bytes for entry in batch)
    if delete:
        commit = repo.upload(staging, commit, {}, delete, f"Version {plan.version}: old shards go")
    progress("uploading", total, total, f"{len(missing):,} of {len(missing):,} files")
    _check_there(folder, repo, plan, commit)
    return commit, tuple(entry.path for entry in missing)


def _check_there(folder: Path, repo: HubRepo, plan: PublishPlan, commit: str) -> None:
    """Compare what the Hub lists with the manifest: names, sizes, digests."""
    tree = repo.tree(commit)
    wrong = [entry.path for entry in _missing(plan.files, tree, folder)] + _outdated(plan.files, tree)
    if wrong:
        raise HubError(repo.name, f"at {commit[:8]} {len(wrong):,} files are not those of the manifest: {wrong[0]} …")


def _tag(folder: Path, repo: HubRepo, plan: PublishPlan, commit: str) -> None:
    tag = tag_of(plan.version)
    try:
        repo.create_tag(tag, commit, f"content sha256:{plan.content_sha256}")
    except RemoteChangedError:  # somebody was quicker, or an answer was lost
        found = repo.refs().tags.get(tag)
        if found is None or not _is_there(plan.files, repo.tree(found), folder):
            raise VersionExistsError(repo.name, plan.version) from None
    except RepositoryNotFoundError as error:
        raise RemoteChangedError(repo.name, "the commit to be tagged is gone") from error
