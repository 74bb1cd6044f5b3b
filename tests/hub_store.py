"""What the look-alike of the Hub keeps: repositories, commits and refs in memory, the bytes of files below a folder.

Whatever changes is written at once, to a JSON file that is only ever replaced whole: a server that is killed and
started anew on the same folder has all that it answered for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

LFS_ENDINGS = ("7z", "arrow", "bin", "gz", "jpg", "jpeg", "npy", "npz", "parquet", "png", "safetensors", "tar", "zip")
REGULAR_BYTES = 10 << 20  # a larger file is an LFS object whatever its name
GITATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS_ENDINGS).encode()


class Refused(Exception):
    """An answer other than success: its status, what it says, and the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a commit: git's id of it (of the pointer to an LFS object), its size, and the object's sha256."""

    oid: str
    size: int
    sha256: str = ""

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


Tree = dict[str, Entry]


@dataclass
class Commit:
    """A state of a repository, and the one before it."""

    parent: str | None
    tree: Tree
    title: str
    message: str
    author: str
    date: str

    @property
    def sha(self) -> str:
        return hashlib.sha1(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass
class LfsObject:
    """An LFS object that a repository has: where it was seen first, and its Xet hash if it came that way."""

    size: int
    pushed_at: str
    filename: str = ""
    xet_hash: str = ""


@dataclass
class Repo:
    """A repository; `access` is what became of each user's request for a gated one."""

    kind: str
    name: str
    created_at: str
    private: bool = False
    gated: str | bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, LfsObject] = field(default_factory=dict)
    access: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        """Return the sha of a branch, a tag or a commit.

        Raises:
            Refused: there is none.
        """
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def history(self, sha: str | None) -> Iterator[tuple[str, Commit]]:
        """Yield a commit and those before it."""
        while sha is not None:
            commit = self.commits[sha]
            yield sha, commit
            sha = commit.parent

    def last_change(self, sha: str, path: str) -> tuple[str, Commit]:
        """Return the commit that last changed a file, or anything in a folder."""
        found = next(self.history(sha))
        for older in self.history(sha):
            if _below(older[1].tree, path) != _below(found[1].tree, path):
                break
            found = older
        return found

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Repo:
        commits = {
            sha: Commit(**commit | {"tree": {path: Entry(**entry) for path, entry in commit["tree"].items()}})
            for sha, commit in fields["commits"].items()
        }
        objects = {sha256: LfsObject(**stored) for sha256, stored in fields["objects"].items()}
        return cls(**fields | {"commits": commits, "objects": objects})


class Store:
    """All repositories of a Hub; hold `lock` while asking or changing anything.

    Args:
        root: what is below belongs to the store; what an earlier one left there is taken over.
    """

    def __init__(self, root: Path) -> None:
        self.lock = threading.RLock()
        self.cas = root / "cas"
        self._root, self._state = root, root / "state.json"
        for folder in ("blobs", "lfs", "parts", "incoming"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        repos = json.loads(self._state.read_text()) if self._state.exists() else {}
        self.repos = {key: Repo.from_json(fields) for key, fields in repos.items()}

    def save(self) -> None:
        """Write what is in memory."""
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps({key: asdict(repo) for key, repo in self.repos.items()}))
        new.replace(self._state)

    def create(self, kind: str, name: str, private: bool, author: str) -> Repo:
        """Return a new repository; like the Hub's it starts with a `.gitattributes`."""
        repo = self.repos[f"{kind}/{name}"] = Repo(kind, name, now(), private)
        tree = {".gitattributes": self._add_blob(GITATTRIBUTES)}
        repo.branches["main"] = _add_commit(repo, Commit(None, tree, "initial commit", "", author, now()))
        self.save()
        return repo

    def delete(self, repo: Repo) -> None:
        """Drop a repository, and the objects that no other has."""
        del self.repos[f"{repo.kind}/{repo.name}"]
        self._drop_objects(repo.objects)
        self.save()

    def path(self, repo: Repo, entry: Entry) -> Path:
        """Return where the bytes of a file are.

        Raises:
            Refused: the repository no longer has its LFS object.
        """
        if entry.sha256 and entry.sha256 not in repo.objects:
            raise Refused(404, f"LFS object {entry.sha256} does not exist")
        return self.lfs_path(entry.sha256) if entry.sha256 else self._root / "blobs" / entry.oid

    def lfs_path(self, sha256: str) -> Path:
        return self._root / "lfs" / sha256

    def part_path(self, sha256: str, number: int) -> Path:
        return self._root / "parts" / f"{sha256}.{number}"

    def put(self, path: Path, body: BinaryIO) -> str:
        """Store a body as a whole or not at all; return its sha256."""
        incoming = self._root / "incoming" / path.name
        with incoming.open("wb") as file:
            shutil.copyfileobj(body, file, 1 << 20)
        incoming.replace(path)
        return file_sha256(path)

    def add_object(self, repo: Repo, sha256: str, xet_hash: str = "") -> None:
        """Let a repository have an object whose bytes are stored.

        Raises:
            Refused: they are other bytes.
        """
        path = self.lfs_path(sha256)
        if file_sha256(path) != sha256:
            path.unlink()
            raise Refused(400, f"the bytes are not those of {sha256}")
        repo.objects[sha256] = LfsObject(path.stat().st_size, now(), xet_hash=xet_hash)
        self.save()

    def commit(self, repo: Repo, branch: str, lines: list[dict[str, Any]], author: str) -> str:
        """Return the sha of a new commit of what the lines of a request say.

        Raises:
            Refused: the branch is not there or has moved on, a file to delete or an object to point to is missing.
        """
        head = repo.branches.get(branch)
        if head is None:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header = next((line["value"] for line in lines if line["key"] == "header"), {})
        if not head.startswith(header.get("parentCommit") or ""):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.commits[head].tree)
        for line in lines:
            self._apply(repo, tree, line["key"], line["value"])
        title, message = header.get("summary", ""), header.get("description", "")
        repo.branches[branch] = _add_commit(repo, Commit(head, tree, title, message, author, now()))
        self.save()
        return repo.branches[branch]

    def squash(self, repo: Repo, branch: str, title: str, author: str) -> None:
        """Leave one commit in a branch."""
        tree = repo.commits[repo.branches[branch]].tree
        repo.branches[branch] = _add_commit(repo, Commit(None, tree, title, "", author, now()))
        self.save()

    def purge(self, repo: Repo, sha256s: Iterable[str], rewrite: bool) -> None:
        """Delete objects for good, and take the files that point to them out of every commit if `rewrite`."""
        gone = {sha256: repo.objects.pop(sha256) for sha256 in sha256s if sha256 in repo.objects}
        self._drop_objects(gone)
        if rewrite:
            _rewrite(repo, set(gone))
        self.save()

    def collect(self) -> None:
        """Forget the commits that no branch and no tag leads to."""
        for repo in self.repos.values():
            heads = {*repo.branches.values(), *repo.tags.values()}
            kept = {sha for head in heads for sha, _ in repo.history(head)}
            repo.commits = {sha: commit for sha, commit in repo.commits.items() if sha in kept}
        self.save()

    def stored_chunks(self) -> int:
        """Return how many bytes have come by Xet."""
        return sum(path.stat().st_size for path in self.cas.glob("xet/xorbs/xorbs/*"))

    def _apply(self, repo: Repo, tree: Tree, key: str, value: dict[str, Any]) -> None:
        path = value.get("path", "")
        match key:
            case "file":
                tree[path] = self._add_blob(base64.b64decode(value["content"]))
            case "lfsFile":
                stored = self._object(repo, value["oid"])
                stored.filename = stored.filename or path
                tree[path] = Entry(git_sha1(lfs_pointer(value["oid"], stored.size)), stored.size, value["oid"])
            case "deletedFile" | "deletedFolder":
                gone = (
                    [path]
                    if key == "deletedFile"
                    else [file for file in tree if file.startswith(f"{path.strip('/')}/")]
                )
                if not gone or not tree.keys() >= {*gone}:
                    raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for file in gone:
                    del tree[file]

    def _object(self, repo: Repo, sha256: str) -> LfsObject:
        """Return an object of a repository, looking for it among what came by Xet if need be."""
        if sha256 not in repo.objects and (found := find_xet_file(self.cas, sha256)):
            with self.lfs_path(sha256).open("wb") as file:
                file.writelines(read_xet_file(self.cas, found))
            self.add_object(repo, sha256, found.xet_hash)
        if sha256 not in repo.objects:
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        return repo.objects[sha256]

    def _add_blob(self, data: bytes) -> Entry:
        entry = Entry(git_sha1(data), len(data))
        new = self._root / "incoming" / entry.oid
        new.write_bytes(data)
        new.replace(self._root / "blobs" / entry.oid)
        return entry

    def _drop_objects(self, sha256s: Iterable[str]) -> None:
        for sha256 in sha256s:
            if not any(sha256 in repo.objects for repo in self.repos.values()):
                self.lfs_path(sha256).unlink(missing_ok=True)


def _add_commit(repo: Repo, commit: Commit) -> str:
    repo.commits[commit.sha] = commit
    return commit.sha


def _rewrite(repo: Repo, sha256s: set[str]) -> None:
    """Make every commit anew without the files that point to these objects, and move the refs."""
    renamed: dict[str | None, str | None] = {None: None}
    commits, repo.commits = repo.commits, {}
    for sha in commits:  # a parent comes before its children
        old = commits[sha]
        tree = {path: entry for path, entry in old.tree.items() if entry.sha256 not in sha256s}
        new = Commit(renamed[old.parent], tree, old.title, old.message, old.author, old.date)
        renamed[sha] = _add_commit(repo, new)
    for refs in (repo.branches, repo.tags):
        refs.update({name: renamed[sha] or sha for name, sha in refs.items()})


def _below(tree: Tree, path: str) -> Tree:
    return {file: entry for file, entry in tree.items() if file == path or file.startswith(f"{path}/")}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Xet: what the client leaves in the folder that it takes for the storage service, `local://…`. Shards list the files,
# each as runs of chunks of a xorb; a xorb is chunks, each behind a header of its own.


@dataclass(frozen=True)
class XetFile:
    """A file in the storage of Xet: its hash, and (xorb, first chunk, last chunk exclusive) of its parts."""

    xet_hash: str
    parts: tuple[tuple[str, int, int], ...]


def find_xet_file(cas: Path, sha256: str) -> XetFile | None:
    """Return the file with that content."""
    for shard in cas.glob("xet/xorbs/shards/*.mdb"):
        if sha256 in (files := _shard_files(shard)):
            return files[sha256]
    return None


@cache  # shards are named by what is in them
def _shard_files(shard: Path) -> dict[str, XetFile]:
    """Return sha256 → file. Records of 48 bytes: a file, its parts, their proofs and its sha256 where flags say so."""
    data, at, files = shard.read_bytes(), 48, {}
    while data[at : at + 32] != b"\xff" * 32:
        flags, num_parts = struct.unpack_from("<II", data, at + 32)
        records = [data[at + 48 * number :][:48] for number in range(1, num_parts + 1)]
        parts = tuple((_hex(record), *struct.unpack_from("<II", record, 40)) for record in records)
        end = at + 48 * (1 + num_parts * (2 if flags & 1 << 31 else 1))
        if flags & 1 << 30:
            files[_hex(data[end:])] = XetFile(_hex(data[at:]), parts)
            end += 48
        at = end
    return files


def read_xet_file(cas: Path, file: XetFile) -> Iterator[bytes]:
    """Yield the chunks of a file."""
    for xorb, first, last in file.parts:
        (path,) = (cas / "xet/xorbs/xorbs").glob(f"*.{xorb}")
        with path.open("rb") as chunks:
            for number in range(last):
                header = chunks.read(8)
                packed, size = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
                if number < first:
                    chunks.seek(packed, os.SEEK_CUR)
                else:
                    yield _unpack(chunks.read(packed), size, scheme=header[4])


def _unpack(data: bytes, size: int, scheme: int) -> bytes:
    """Return a chunk: as it is (0), by LZ4 (1), or by LZ4 of every fourth byte, then every fourth of the rest … (2)."""
    if scheme == 0:
        return data
    import pyarrow as pa

    plain = pa.Codec("lz4").decompress(data, size, asbytes=True)
    if scheme == 1:
        return plain
    whole, start = bytearray(size), 0
    for lane in range(4):
        length = (size - lane + 3) // 4
        whole[lane::4] = plain[start : start + length]
        start += length
    return bytes(whole)


def _hex(data: bytes) -> str:
    """Return how Xet writes the hash that these bytes start with: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", data))
