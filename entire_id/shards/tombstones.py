"""What was erased for good, as keyed hashes: they keep it out of later packs and name nobody.

A file of lines: `{"kind": "person", "hmac": "…"}`, where hmac is HMAC-SHA256(secret, kind + NUL + value). The value of
a `person` is `test/17`, of a `key` the key, of an `image` the SHA-256 of its bytes. The first line is of kind `secret`,
with no value: by it a wrong secret is found out. There are some ten thousand numbers of people, which anyone could hash
one by one: so the hash needs a secret, and only its holder can tell who is meant, or enforce it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from entire_id.errors import TombstonesError, WriteFailedError
from entire_id.records import PART_OF_SPLIT, Person, Sample
from entire_id.shards.manifest import MANIFEST_FILE
from entire_id.staging import rewrite, sync

__all__ = [
    "Entry",
    "Tombstones",
    "add_tombstones",
    "check_outside",
    "image_entry",
    "make_secret",
    "read_secret",
    "read_tombstones",
]

_SECRET_BYTES = 32
_KINDS = ("secret", "person", "key", "image")
_HEX = re.compile(r"[0-9a-f]{64}")

Entry = tuple[str, bytes]
"""A kind and its value."""


@dataclass(frozen=True)
class Tombstones:
    """What must not be packed again. Can be sent to other processes.

    Attributes:
        secret: 32 bytes.
        hashes: kind → the hashes of that kind.
    """

    secret: bytes = field(repr=False)
    hashes: dict[str, frozenset[bytes]] = field(repr=False)

    def names(self, sample: Sample) -> str:
        """Return what was erased of a crop by its name, its person or its key; nothing if neither was."""
        person = Person(PART_OF_SPLIT[sample.split], sample.pid)
        if self._holds("person", str(person).encode()):
            return "its person"
        return "its key" if self._holds("key", sample.key.encode()) else ""

    def shows(self, image: bytes) -> str:
        """Return the same of its bytes."""
        kind, value = image_entry(hashlib.sha256(image).digest())
        return "its image" if self._holds(kind, value) else ""

    def _holds(self, kind: str, value: bytes) -> bool:
        hashes = self.hashes[kind]
        return bool(hashes) and _hash(self.secret, kind, value) in hashes

    @cached_property
    def digest(self) -> str:
        """What tells these from others; it does not tell the secret."""
        state = hashlib.sha256(_hash(self.secret, "secret", b""))
        for kind in _KINDS[1:]:
            state.update(kind.encode() + b"".join(sorted(self.hashes[kind])))
        return state.hexdigest()


def image_entry(sha256: bytes) -> Entry:
    """Return the entry of an image, by the SHA-256 of its bytes."""
    return "image", sha256


def _hash(secret: bytes, kind: str, value: bytes) -> bytes:
    return hmac.digest(secret, kind.encode() + b"\0" + value, "sha256")


# --- the secret -------------------------------------------------------------------------------------------------------


def make_secret(path: Path) -> bytes:
    """Return a new secret, written to the file `path`, which only its owner may read; the one that is there if any is.

    Raises:
        TombstonesError: it lies in a data set, or what is there is no secret.
        WriteFailedError: the file cannot be written.
    """
    check_outside(path, "the secret")
    secret = secrets.token_bytes(_SECRET_BYTES)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a run that was killed
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret.hex() + "\n")
        sync(partial)
        try:
            os.link(partial, path)  # complete from the first moment, and never over another
            sync(path.parent)
        except FileExistsError:
            secret = read_secret(path)
        finally:
            partial.unlink()
    except OSError as error:
        raise WriteFailedError(path, error.strerror or str(error)) from error
    return secret


def read_secret(path: Path) -> bytes:
    """Return the secret in the file `path`.

    Raises:
        TombstonesError: nothing is there, others may read it, it lies in a data set, or it is no secret.
    """
    check_outside(path, "the secret")
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii", errors="replace").strip()
    except FileNotFoundError as error:
        raise TombstonesError(path, "no secret is there. Make one with: entire-id erase … --new-secret") from error
    except OSError as error:
        raise TombstonesError(path, f"the secret cannot be read ({error.strerror})") from error
    if mode & 0o077:
        raise TombstonesError(path, f"others may read the secret (mode {mode & 0o777:o}). Type: chmod 600 {path}")
    if not _HEX.fullmatch(text):
        raise TombstonesError(path, f"no secret: expected {2 * _SECRET_BYTES} hexadecimal digits and nothing else")
    return bytes.fromhex(text)


def check_outside(path: Path, what: str, new: Path | None = None) -> None:
    """Refuse a file that lies in a data set, and so would be published with it.

    Args:
        path: of the file.
        what: it is.
        new: folder that is to become a data set.

    Raises:
        TombstonesError: it does.
    """
    for folder in path.resolve().parents:
        if (folder / MANIFEST_FILE).is_file() or (new is not None and folder == new.resolve()):
            raise TombstonesError(path, f"{what} must not lie in a data set ({str(folder)!r}). Name a file outside")


# --- the file ---------------------------------------------------------------------------------------------------------


def read_tombstones(path: Path, secret: bytes) -> Tombstones:
    """Return the tombstones in the file `path`.

    Raises:
        TombstonesError: nothing is there, it is something else, or another secret made it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TombstonesError(path, f"the tombstones cannot be read ({error.strerror or error})") from error
    return Tombstones(secret, _parse(path, data, secret))


def add_tombstones(path: Path, secret: bytes, entries: Iterable[Entry]) -> int:
    """Add to the file `path`, which is made if need be, and return how many entries were not there yet.

    The order tells nothing of what was erased together: lines are sorted by their hash.

    Raises:
        TombstonesError: it is something else, or another secret made it.
        WriteFailedError: it cannot be written.
    """
    hashes = {(_hash(secret, kind, value), kind) for kind, value in entries}
    num_known = 0

    def add(data: bytes) -> bytes:
        nonlocal num_known
        known = _parse(path, data, secret) if data else {}
        all_known = {(digest, kind) for kind in _KINDS[1:] for digest in known.get(kind, ())}
        num_known = len(all_known & hashes)
        lines = [(_hash(secret, "secret", b""), "secret"), *sorted(all_known | hashes)]
        return "".join(json.dumps({"kind": kind, "hmac": digest.hex()}) + "\n" for digest, kind in lines).encode()

    try:
        rewrite(path, add)
    except OSError as error:
        raise WriteFailedError(path, error.strerror or str(error)) from error
    return len(hashes) - num_known


def _parse(path: Path, data: bytes, secret: bytes) -> dict[str, frozenset[bytes]]:
    found: dict[str, set[bytes]] = {kind: set() for kind in _KINDS}
    for kind, digest in _entries(path, data):
        found[kind].add(digest)
    if found["secret"] != {_hash(secret, "secret", b"")}:
        raise TombstonesError(path, "another secret made these tombstones, or none did. Name the secret that did")
    return {kind: frozenset(hashes) for kind, hashes in found.items()}


def _entries(path: Path, data: bytes) -> Iterator[Entry]:
    for number, line in enumerate(data.splitlines(), 1):
        try:
            fields = json.loads(line)
            kind, digest = fields["kind"], fields["hmac"]
        except (ValueError, KeyError, TypeError) as error:
            raise TombstonesError(path, f"line {number} is no tombstone ({error})") from error
        if kind not in _KINDS or not isinstance(digest, str) or not _HEX.fullmatch(digest):
            raise TombstonesError(path, f"line {number} is no tombstone (kind {kind!r})")
        yield kind, bytes.fromhex(digest)
