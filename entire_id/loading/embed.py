"""Crops → features on disk, one row a crop, with the keys that say whose they are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from entire_id.errors import FeaturesError, ModelError, WriteFailedError
from entire_id.loading.files import open_files, pinned
from entire_id.loading.index import fetch_manifest
from entire_id.loading.models import Model, Run, open_model
from entire_id.loading.reader import CropReader
from entire_id.records import SPLITS, Camera, Progress, no_progress
from entire_id.remote import is_url
from entire_id.repository import repository_at
from entire_id.staging import new_folder, sync

__all__ = ["Features", "are_features_of", "crop_columns", "embed", "features_folder", "model_of", "read_features"]

_FACTS_FILE = "features.json"
_NEEDED_FACTS = {"model", "content_sha256"}  # all that the first versions wrote
_FACTS = _NEEDED_FACTS | {"dim", "preprocessing"}
_NOTE_EVERY_S = 0.5  # how much work a killed run loses, at most, besides a batch
_GO_ON_AFTER = (OSError, KeyboardInterrupt, MemoryError, RuntimeError)
_KEYS_AT_ONCE = 1 << 16
_UNKNOWN = "unknown"  # as continents are
_COLUMNS = ("continent", "seq", "frame", "width", "height")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The features of one split.

    Attributes:
        values: (n, d) float32, in the order of the split's rows.
        pids: (n,) int32 identities.
        camids: (n,) int32 cameras.
        keys: n keys.
        columns: (n,) each: continent, seq, frame, width and height, as in the meta files, and what `cameras.csv` says
            of the camera of each crop, such as season: strings, `unknown` where it says nothing.
    """

    values: npt.NDArray[np.float32]
    pids: npt.NDArray[np.int32]
    camids: npt.NDArray[np.int32]
    keys: list[str]
    columns: Mapping[str, npt.NDArray[Any]]


def features_folder(where: str | Path, model: str) -> Path:
    """Return where the features of a data set lie by default: `<folder>.features/<model>`, beside it.

    Those of a data set elsewhere lie in the working directory. What cannot stand in the name of a folder becomes a
    hyphen.

    >>> features_folder(Path("/sets/entire-id"), "owner/name").as_posix()
    '/sets/entire-id.features/owner-name'
    >>> features_folder("hf://datasets/owner/entire-id@v1.0.0", "colour").relative_to(Path.cwd()).as_posix()
    'entire-id.features/colour'
    """
    is_remote = is_url(str(where)) or repository_at(where) is not None
    place = str(where).rstrip("/").rpartition("/")[2].partition("@")[0] if is_remote else where
    folder = Path(place).expanduser().resolve()
    name = re.sub(r"[^\w.]+", "-", model).strip("-.")
    return folder.with_name(folder.name + ".features") / (name or "model")


def embed(
    folder: str | Path,
    splits: str | Sequence[str],
    model: str | Path | Run | Model,
    out: str | Path,
    progress: Progress = no_progress,
    batch_rows: int = 64,
) -> Path:
    """Write the features of `splits` to the folder `out` and return it.

    `out` holds `<split>.npy` ((n, d) float32), `<split>.keys.npy` (n keys) and `features.json` (model, content digest).
    Features of the same splits, of another model or of another content there are replaced; anything else is refused.

    In memory are a batch, and the labels and keys of one split. The work lies in `<out>.partial` until it is complete;
    the same call goes on where a killed one stopped, with the same bytes in the end.

    Args:
        folder: a packed data set: a folder, a repository or a URL; see `open_files`.
        splits: which splits, or the only one.
        model: what `open_model` takes, or returned; `open_trained` opens what `train` wrote.
        out: folder to make.
        progress: told how far it is.
        batch_rows: crops given to the model at once, at least 1. Another number may change the last digits.

    Raises:
        DatasetNotFoundError: no data set lies in `folder`.
        RepositoryNotFoundError, DownloadError: it lies elsewhere, and cannot be fetched.
        ManifestError: it is damaged.
        SplitNotFoundError: the data set has no such split.
        ImageDecodeError: an image does not decode.
        OutputExistsError: `out` holds something else than features.
        ModelError: no such model, it gives something else than a feature a crop, or one that is not finite.
        ModelCodeError: a function of the user's own raises an error; the work stays.
        MissingExtraError: the packages that run the model are not installed.
        WriteFailedError: the disk is full, or refuses.
    """
    out = Path(out)
    folder = pinned(folder)
    content = _content(folder)
    opened = model if isinstance(model, Model) else open_model(model)
    splits = [splits] if isinstance(splits, str) else splits
    facts = _facts_of(opened, content)
    with new_folder(out, _is_features, _GO_ON_AFTER) as tree:
        how = json.dumps([facts, batch_rows, opened.device], sort_keys=True)
        work = _Work(tree, tree.parent / "notes", hashlib.sha256(how.encode()).hexdigest())
        work.tidy(splits)
        if out.is_dir() and _read_facts(out) == facts:
            for path in out.glob("*.npy"):
                if path.name.split(".")[0] not in splits:
                    shutil.copyfile(path, tree / path.name)
        for split in splits:
            with CropReader(folder, split) as reader:
                _write_features(reader, opened, work, progress, batch_rows)
                _write_keys(tree / f"{split}.keys.npy", reader.keys)
        (tree / _FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    return out


def _content(folder: str | Path) -> str:
    return fetch_manifest(open_files(folder)).content_sha256


def _facts_of(model: Model, content: str) -> dict[str, Any]:
    """Return what `features.json` says of the features that a model makes of a content."""
    preprocessing = json.loads(json.dumps(model.facts))
    return {"model": model.name, "content_sha256": content, "dim": model.dim, "preprocessing": preprocessing}


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done so far.

    Attributes:
        tree: folder that becomes the features.
        notes: folder that remembers how many rows of each split are on disk.
        digest: of everything that the features depend on: another one's work is of no use.
    """

    tree: Path
    notes: Path
    digest: str

    def tidy(self, splits: Sequence[str]) -> None:
        """Remove what an earlier run left that this one cannot go on with."""
        usable = {f"{split}.npy" for split in splits if self.rows_done(split)}
        for path in self.tree.iterdir():
            if path.name not in usable:
                path.unlink()

    def rows_done(self, split: str) -> int:
        """Return how many rows of the split are on disk."""
        try:
            note = json.loads((self.notes / f"{split}.json").read_bytes())
            usable = note["digest"] == self.digest and (self.tree / f"{split}.npy").stat().st_size >= note["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return int(note["rows"]) if usable else 0

    def write_note(self, split: str, rows: int, file: BinaryIO) -> None:
        """Bring the rows to the disk, then say so."""
        os.fsync(file.fileno())
        partial = self.notes / f"{split}.json.new"
        partial.write_text(json.dumps({"digest": self.digest, "rows": rows, "bytes": file.tell()}))
        sync(partial)
        partial.replace(self.notes / f"{split}.json")


def _write_features(reader: CropReader, model: Model, work: _Work, progress: Progress, batch_rows: int) -> None:
    """Write `<split>.npy` row by row, from where an earlier run stopped."""
    split, num_rows = reader.split, len(reader)
    path, done = work.tree / f"{split}.npy", work.rows_done(split)
    header = _npy_header(np.float32, num_rows, model.dim)
    noted_s = time.monotonic()
    column = reader.meta[model.column].to_numpy() if model.knows(reader.manifest.name) else None
    with path.open("r+b" if done else "wb", buffering=0) as file:
        _write(file, b"" if done else header, path)
        file.truncate(len(header) + 4 * done * model.dim)
        file.seek(0, os.SEEK_END)
        for start in range(done, num_rows, batch_rows):
            rows = range(start, min(start + batch_rows, num_rows))
            told = None if column is None else column[rows.start : rows.stop].tolist()
            values = model(reader.pixels_of(rows), told)
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                raise ModelError(model.name, f"the feature of {reader.keys[rows[finite.argmin()]]!r} is not finite")
            _write(file, np.ascontiguousarray(values).tobytes(), path)
            if rows.stop == num_rows or time.monotonic() - noted_s > _NOTE_EVERY_S:
                work.write_note(split, rows.stop, file)
                noted_s = time.monotonic()
            progress(f"embedding {split}", rows.stop, num_rows)


def _write_keys(path: Path, keys: Sequence[str]) -> None:
    """Write what `numpy.save` would, without an array of all keys: 4 bytes a letter, each as long as the longest."""
    dtype = np.dtype(("U", max(map(len, keys))))
    with path.open("wb", buffering=0) as file:
        _write(file, _npy_header(dtype, len(keys)), path)
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            _write(file, np.array(keys[start : start + _KEYS_AT_ONCE], dtype).tobytes(), path)


def _npy_header(dtype: npt.DTypeLike, *shape: int) -> bytes:
    """Return what `numpy.save` writes before the values of an array."""
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _write(file: BinaryIO, values: bytes, path: Path) -> None:
    try:
        left = memoryview(values)
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise WriteFailedError(path, error.strerror or str(error)) from error


def _is_features(folder: Path) -> bool:
    """Tell whether a folder holds features and nothing else."""
    names = {name for split in SPLITS for name in (f"{split}.npy", f"{split}.keys.npy")} | {_FACTS_FILE}
    return names.issuperset(path.name for path in folder.iterdir()) and _read_facts(folder) is not None


def _read_facts(folder: Path) -> dict[str, Any] | None:
    """Return which model made the features of a folder, how, and of which content; None if nothing says so."""
    try:
        facts = json.loads((folder / _FACTS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and _NEEDED_FACTS <= facts.keys() <= _FACTS else None


def model_of(features: str | Path) -> str:
    """Return the name of the model that made the features of a folder.

    Raises:
        FeaturesError: it holds none.
    """
    facts = _read_facts(Path(features))
    if facts is None:
        raise FeaturesError(features, "nothing says which model made these features")
    return str(facts["model"])


def are_features_of(features: str | Path, folder: str | Path, splits: Sequence[str], model: Model) -> bool:
    """Tell whether a folder holds the features that a model makes of all `splits` of a data set.

    Raises:
        DatasetNotFoundError, SplitNotFoundError, ManifestError, CamerasFileError: see `read_features`.
    """
    if _read_facts(Path(features)) != _facts_of(model, _content(folder)):
        return False
    try:
        for split in splits:
            read_features(folder, split, features)
    except FeaturesError:
        return False
    return True


def read_features(folder: str | Path, split: str, features: str | Path) -> Features:
    """Return the features of `split`, joined with its labels by key.

    Args:
        folder: the data set that was embedded.
        split: which split.
        features: folder that `embed` wrote.

    Raises:
        DatasetNotFoundError: no data set lies in `folder`.
        ManifestError: it is damaged.
        SplitNotFoundError: it has no such split.
        FeaturesError: there are none, or they are of another content.
        CamerasFileError: its `cameras.csv` is malformed.
    """
    features = Path(features)
    facts = _read_facts(features)
    with CropReader(folder, split) as reader:
        try:
            values, keys = (
                np.load(features / name, mmap_mode="r", allow_pickle=False)
                for name in (f"{split}.npy", f"{split}.keys.npy")
            )
        except (OSError, ValueError) as error:
            raise FeaturesError(features, f"no features of {split} ({error})") from error
        if facts is None or facts["content_sha256"] != reader.manifest.content_sha256:
            raise FeaturesError(features, f"they were made of another content than that of {folder}")
        if len(values) != len(reader) or not _are_keys(keys, reader.keys):
            raise FeaturesError(features, f"their keys are not those of {split}")
        return Features(np.asarray(values), reader.pids, reader.camids, reader.keys, crop_columns(reader))


def _are_keys(stored: npt.NDArray[Any], keys: Sequence[str]) -> bool:
    return stored.shape == (len(keys),) and all(
        stored[start : start + _KEYS_AT_ONCE].tolist() == keys[start : start + _KEYS_AT_ONCE]
        for start in range(0, len(keys), _KEYS_AT_ONCE)
    )


def crop_columns(reader: CropReader) -> dict[str, npt.NDArray[Any]]:
    """Return what is known of the crops of a split besides person and camera: see `Features.columns`.

    Raises:
        CamerasFileError: `cameras.csv` is malformed.
    """
    described = _camera_columns(reader.cameras, reader.camids)
    return described | {name: reader.meta[name].to_numpy() for name in _COLUMNS}


def _camera_columns(stated: Sequence[Camera], camids: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
    """Return what the owner says of the camera of each crop, by column of `cameras.csv`; nothing without that file."""
    cameras = {camera.camid: camera.columns for camera in stated}
    names = dict.fromkeys(name for columns in cameras.values() for name in columns if name != "camid")
    found, rows = np.unique(camids, return_inverse=True)
    return {
        name: np.array([cameras.get(camid, {}).get(name) or _UNKNOWN for camid in found.tolist()], object)[rows]
        for name in names
    }
