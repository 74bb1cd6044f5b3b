"""Crops → features on disk, one row a crop, with the keys that say whose they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import FeaturesError
from entire_id.images import RgbImage
from entire_id.loading.colour import describe_colour
from entire_id.loading.reader import CropReader
from entire_id.records import SPLITS, Progress, no_progress
from entire_id.shards.manifest import read_manifest
from entire_id.staging import new_folder

__all__ = ["MODELS", "Features", "Model", "embed", "features_folder", "model_of", "read_features"]

Model = Callable[[Sequence[RgbImage]], npt.NDArray[np.float32]]
"""Takes n crops, each (height, width, 3) uint8 RGB, and returns (n, d) float32."""

MODELS: dict[str, Model] = {"colour": describe_colour}
"""Models by the name that `--model` takes."""

_FACTS_FILE = "features.json"
_COLUMNS = ("continent", "seq", "frame", "width", "height")


@dataclass(frozen=True, slots=True)
class Features:
    """The features of one split.

    Attributes:
        values: (n, d) float32, in the order of the split's rows.
        pids: (n,) int32 identities.
        camids: (n,) int32 cameras.
        keys: n keys.
        columns: (n,) each: continent, seq, frame, width and height, as in the meta files.
    """

    values: npt.NDArray[np.float32]
    pids: npt.NDArray[np.int32]
    camids: npt.NDArray[np.int32]
    keys: list[str]
    columns: Mapping[str, npt.NDArray[Any]]


def features_folder(folder: Path, model: str) -> Path:
    """Return where the features of `folder` lie by default: `<folder>.features/<model>`, beside it."""
    folder = folder.resolve()
    return folder.with_name(folder.name + ".features") / model


def embed(
    folder: str | Path,
    splits: Sequence[str],
    model: str,
    out: str | Path,
    progress: Progress = no_progress,
    batch_rows: int = 64,
) -> Path:
    """Write the features of `splits` to the folder `out` and return it.

    `out` holds `<split>.npy` ((n, d) float32), `<split>.keys.npy` (n keys) and `features.json` (model, content digest).
    Features of the same splits, of another model or of another content there are replaced; anything else is refused.

    Args:
        folder: a packed data set.
        splits: which splits.
        model: a name of `MODELS`.
        out: folder to make.
        progress: told how far it is.
        batch_rows: crops given to the model at once.

    Raises:
        DatasetNotFoundError: no data set lies in `folder`.
        ManifestError: it is damaged.
        SplitNotFoundError: the data set has no such split.
        ImageDecodeError: an image does not decode.
        OutputExistsError: `out` holds something else than features.
        FeaturesError: no such model.
    """
    out = Path(out)
    if model not in MODELS:
        raise FeaturesError(out, f"no model {model!r}; there is {', '.join(MODELS)}")
    facts = {"model": model, "content_sha256": read_manifest(folder).content_sha256}
    with new_folder(out, replaces=_is_features) as tree:
        if out.is_dir() and _read_facts(out) == facts:
            for path in out.glob("*.npy"):
                shutil.copyfile(path, tree / path.name)
        for split in splits:
            with CropReader(folder, split) as reader:
                np.save(tree / f"{split}.npy", _features(reader, MODELS[model], progress, batch_rows))
                np.save(tree / f"{split}.keys.npy", np.array(reader.keys))
        (tree / _FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    return out


def _is_features(folder: Path) -> bool:
    """Tell whether a folder holds features and nothing else."""
    names = {name for split in SPLITS for name in (f"{split}.npy", f"{split}.keys.npy")} | {_FACTS_FILE}
    return names.issuperset(path.name for path in folder.iterdir()) and _read_facts(folder) is not None


def _read_facts(folder: Path) -> dict[str, str] | None:
    """Return which model made the features of a folder, of which content; None if nothing says so."""
    try:
        facts = json.loads((folder / _FACTS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.keys() == {"model", "content_sha256"} else None


def model_of(features: str | Path) -> str:
    """Return the name of the model that made the features of a folder.

    Raises:
        FeaturesError: it holds none.
    """
    facts = _read_facts(Path(features))
    if facts is None:
        raise FeaturesError(features, "nothing says which model made these features")
    return str(facts["model"])


def _features(reader: CropReader, model: Model, progress: Progress, batch_rows: int) -> npt.NDArray[np.float32]:
    batches = []
    for start in range(0, len(reader), batch_rows):
        rows = range(start, min(start + batch_rows, len(reader)))
        batches.append(model([reader.pixels(row) for row in rows]))
        progress(f"embedding {reader.split}", rows.stop, len(reader))
    return np.concatenate(batches)


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
    """
    features = Path(features)
    facts = _read_facts(features)
    with CropReader(folder, split) as reader:
        try:
            values = np.load(features / f"{split}.npy", mmap_mode="r", allow_pickle=False)
            keys = np.load(features / f"{split}.keys.npy", allow_pickle=False).tolist()
        except (OSError, ValueError) as error:
            raise FeaturesError(features, f"no features of {split} ({error})") from error
        if facts is None or facts["content_sha256"] != reader.manifest.content_sha256:
            raise FeaturesError(features, f"they were made of another content than that of {folder}")
        if keys != reader.keys or len(values) != len(keys):
            raise FeaturesError(features, f"their keys are not those of {split}")
        columns = {name: reader.meta[name].to_numpy() for name in _COLUMNS}
        return Features(np.asarray(values), reader.pids, reader.camids, reader.keys, columns)
