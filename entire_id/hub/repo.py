"""One repository on the Hub: what it holds at a revision, and what is done to it. Every request is made here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError
from huggingface_hub.errors import RepositoryNotFoundError as NoRepositoryError
from huggingface_hub.errors import RevisionNotFoundError as NoRevisionError
from huggingface_hub.hf_api import LFSFileInfo, RepoFile

from entire_id.errors import HubError, RemoteChangedError, RepositoryNotFoundError
from entire_id.repository import hub_errors, hub_file, without_signatures
from entire_id.shards.manifest import MANIFEST_FILE, FileEntry, Manifest, parse_manifest

__all__ = [
    "MAIN",
    "Access",
    "Gate",
    "HubRepo",
    "Refs",
    "RemoteFile",
    "StoredFile",
    "Tree",
    "blob_id",
    "is_loaded",
    "is_same",
]

MAIN = "main"
Gate = Literal["manual", "auto", "none"]
"""Who gets in: those whom the owners accept one by one, everybody who fills in the form, or anybody."""

_CONFLICT, _STALE = 409, 412


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a revision.

    Attributes:
        path: `/`-separated.
        bytes: its size.
        sha256: digest of its bytes; `""` for a small one, which git itself holds.
        blob_id: git's name of it: of a small one the digest of its bytes, see `blob_id`.
    """

    path: str
    bytes: int
    sha256: str
    blob_id: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A large file that the Hub keeps for a repository, in whatever revision it is.

    Attributes:
        path: one that it had.
        bytes: its size.
        ids: by which the Hub knows it; the SHA-256 of its bytes is among them.
        listed: what the client takes to delete it.
    """

    path: str
    bytes: int
    ids: frozenset[str]
    listed: LFSFileInfo


Tree = Mapping[str, RemoteFile]
"""The files of a revision, by path."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may see a repository.

    Attributes:
        private: only its owners.
        gate: others have to ask.
    """

    private: bool
    gate: Gate

    def __str__(self) -> str:
        return f"{'private' if self.private else 'public'}, gate {self.gate}"


@dataclass(frozen=True, slots=True)
class Refs:
    """The names of commits.

    Attributes:
        branches: name → commit.
        tags: name → commit.
        others: what the Hub itself keeps: pull requests and conversions.
    """

    branches: Mapping[str, str]
    tags: Mapping[str, str]
    others: tuple[str, ...]


def blob_id(data: bytes) -> str:
    """Return git's name of a file with these bytes: the SHA-1 of `blob`, its size, a NUL and them."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_loaded(path: str) -> bool:
    """Tell whether `datasets` would load a file of that path: whether it lies among the shards."""
    return path.startswith(("data/", "meta/"))


def is_same(entry: FileEntry, remote: RemoteFile | None, folder: Path) -> bool:
    """Tell whether a file of a version, which `folder` holds, is what the Hub has under its path."""
    if remote is None or remote.bytes != entry.bytes:
        return False
    if remote.sha256:
        return remote.sha256 == entry.sha256
    data = (folder / entry.path).read_bytes()
    return hashlib.sha256(data).hexdigest() == entry.sha256 and remote.blob_id == blob_id(data)


class HubRepo:
    """A repository of type dataset. Whoever asks is named by the token that `hf auth login` or HF_TOKEN gave."""

    def __init__(self, name: str, api: HfApi | None = None) -> None:
        """Note its name, `owner/name`; nothing is asked yet."""
        self.name = name
        self._api = api or HfApi(library_name="entire-id")
        self._where: dict[str, Any] = {"repo_id": name, "repo_type": "dataset"}

    # --- looking ---

    def access(self) -> Access | None:
        """Return who may see it; None where there is no such repository, or the token may not know of it.

        Raises:
            HubError: the Hub refuses, or does not answer.
        """
        try:
            with self._asked():
                info = self._api.repo_info(**self._where)
        except RepositoryNotFoundError as error:
            if isinstance(error.__cause__, GatedRepoError):
                raise
            return None
        return Access(bool(info.private), info.gated or "none")

    def refs(self) -> Refs:
        """Return its branches, tags, and whatever else names a commit.

        Raises:
            HubError, RepositoryNotFoundError: the Hub refuses, or does not answer; there is no such repository.
        """
        with self._asked():
            found = self._api.list_repo_refs(**self._where, include_pull_requests=True)
        return Refs(
            {ref.name: ref.target_commit for ref in found.branches},
            {ref.name: ref.target_commit for ref in found.tags},
            tuple(ref.ref for ref in [*found.converts, *(found.pull_requests or [])]),
        )

    def commit(self, revision: str) -> str:
        """Return the commit that a branch, a tag or a commit means now.

        Raises:
            HubError, RepositoryNotFoundError: see `refs`.
        """
        with self._asked():
            return str(self._api.repo_info(**self._where, revision=revision).sha)

    def tree(self, revision: str) -> Tree:
        """Return the files of a revision.

        Raises:
            HubError, RepositoryNotFoundError: see `refs`.
        """
        with self._asked():
            found = list(self._api.list_repo_tree(**self._where, revision=revision, recursive=True))
        files = [entry for entry in found if isinstance(entry, RepoFile)]
        return {
            file.path: RemoteFile(file.path, file.size, file.lfs.sha256 if file.lfs else "", file.blob_id)
            for file in files
        }

    def file(self, path: str, revision: str) -> Path:
        """Return a copy of a file in the Hub's cache.

        Raises:
            RepositoryNotFoundError: there is no such file or revision, or the Hub does not answer.
        """
        return hub_file(self.name, path, revision)[1]

    def manifest(self, revision: str) -> Manifest:
        """Return the manifest of a revision.

        Raises:
            RepositoryNotFoundError: see `file`.
            ManifestError: it is none.
        """
        path = f"{self.name}@{revision}/{MANIFEST_FILE}"
        return parse_manifest(self.file(MANIFEST_FILE, revision).read_bytes(), path)

    def chunks(self, path: str, revision: str) -> Iterator[bytes]:
        """Yield the bytes of a file, which are kept nowhere.

        Raises:
            HubError, RepositoryNotFoundError: see `refs`.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.name, path, repo_type="dataset", revision=revision, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token, library_name="entire-id")
        headers["Accept-Encoding"] = "identity"
        with self._asked(), get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield from response.iter_bytes(1 << 20)

    # --- doing ---

    def create(self, *, private: bool) -> None:
        """Make the repository, unless it is there.

        Raises:
            HubError: the Hub refuses, or does not answer.
        """
        with self._asked():
            self._api.create_repo(self.name, repo_type="dataset", private=private, exist_ok=True)

    def set_gate(self, gate: Gate) -> None:
        """Say who gets in.

        Raises:
            HubError, RepositoryNotFoundError: see `refs`.
        """
        with self._asked():
            self._api.update_repo_settings(**self._where, gated=False if gate == "none" else gate)

    def create_branch(self, branch: str, commit: str) -> None:
        """Name a commit, unless there is a branch of that name.

        Raises:
            HubError, RepositoryNotFoundError: see `refs`.
        """
        with self._asked():
            self._api.create_branch(**self._where, branch=branch, revision=commit, exist_ok=True)

    def delete_branch(self, branch: str) -> None:
        """Forget a branch. Raises as `refs` does."""
        with self._asked():
            self._api.delete_branch(**self._where, branch=branch)

    def create_tag(self, tag: str, commit: str, message: str) -> None:
        """Name a commit for good.

        Raises:
            RemoteChangedError: there is a tag of that name.
            HubError, RepositoryNotFoundError: see `refs`.
        """
        with self._asked():
            self._api.create_tag(**self._where, tag=tag, revision=commit, tag_message=message)

    def delete_tag(self, tag: str) -> None:
        """Forget a tag. Raises as `refs` does."""
        with self._asked():
            self._api.delete_tag(**self._where, tag=tag)

    def upload(self, branch: str, parent: str, files: Mapping[str, Path], delete: Iterable[str], message: str) -> str:
        """Put files on a branch and take others off, in one commit, and return that.

        Args:
            branch: its name.
            parent: the commit that it must be at.
            files: path → the file of this machine.
            delete: paths.
            message: what was done.

        Raises:
            RemoteChangedError: the branch is somewhere else.
            HubError, RepositoryNotFoundError: see `refs`.
        """
        adding = [CommitOperationAdd(path, file) for path, file in files.items()]
        return self._commit(branch, parent, [*adding, *map(CommitOperationDelete, delete)], message)

    def copy(
        self, branch: str, parent: str, source: str, paths: Iterable[str], delete: Iterable[str], message: str
    ) -> str:
        """Put files of the commit `source` on a branch, without their bytes travelling; else as `upload`."""
        copying = [CommitOperationCopy(path, path, src_revision=source) for path in paths]
        return self._commit(branch, parent, [*copying, *map(CommitOperationDelete, delete)], message)

    def _commit(self, branch: str, parent: str, operations: list[Any], message: str) -> str:
        with self._asked():
            done = self._api.create_commit(
                **self._where, operations=operations, commit_message=message, revision=branch, parent_commit=parent
            )
        return str(done.oid)

    def squash(self, branch: str, message: str) -> None:
        """Leave of a branch's history its last state alone. Raises as `refs` does."""
        with self._asked():
            self._api.super_squash_history(**self._where, branch=branch, commit_message=message)

    def num_commits(self, revision: str) -> int:
        """Return how many commits lead to a revision, itself included. Raises as `refs` does."""
        with self._asked():
            return len(self._api.list_repo_commits(**self._where, revision=revision))

    def stored(self) -> list[StoredFile]:
        """Return every large file that the Hub keeps for the repository. Raises as `refs` does."""
        with self._asked():
            found = list(self._api.list_lfs_files(**self._where))
        return [StoredFile(file.filename, file.size, frozenset((file.oid, file.file_oid)), file) for file in found]

    def destroy(self, stored: Iterable[StoredFile]) -> None:
        """Have the Hub delete large files for good; commits that name them stay as they are. Raises as `refs` does."""
        with self._asked():
            self._api.permanently_delete_lfs_files(
                **self._where, lfs_files=[file.listed for file in stored], rewrite_history=False
            )

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Turn what the client raises into errors of this package, without the signatures that addresses may hold."""
        try:
            yield
        except (NoRepositoryError, NoRevisionError, HFValidationError):  # a gated one is one of the first
            with hub_errors(self.name):
                raise
        except HfHubHTTPError as error:
            what = without_signatures(error.server_message or str(error).splitlines()[0])
            if error.response.status_code in (_CONFLICT, _STALE):
                raise RemoteChangedError(self.name, what) from error
            raise HubError(self.name, f"{error.response.status_code}: {what}") from error
        except UnicodeError as error:  # in a header: its text would show a piece of the token
            raise HubError(self.name, "the token holds characters that no token has") from error
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # ValueError: a card that it refuses
            raise HubError(self.name, without_signatures(f"{type(error).__name__}: {error}")) from error
