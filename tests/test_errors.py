"""Errors: one root, standard ancestors, sentences with the facts in them."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

from entire_id import errors
from entire_id.errors import (
    CamerasFileError,
    CardError,
    ClusterError,
    ConfigNotFoundError,
    CorruptCropError,
    CropRejectedError,
    DatasetNotFoundError,
    DownloadError,
    EntireIdError,
    ErasureError,
    EvaluationError,
    ExperimentError,
    FeaturesError,
    HubError,
    ImageDecodeError,
    LayoutNotFoundError,
    ManifestError,
    MissingExtraError,
    ModelCodeError,
    ModelError,
    NothingToPackError,
    OutputExistsError,
    PreviousVersionError,
    PublishError,
    RemoteChangedError,
    RepositoryNotFoundError,
    SamplingError,
    SelectionError,
    SourceChangedError,
    SourceError,
    SourceUnreachableError,
    SplitNotFoundError,
    TableError,
    TombstonesError,
    TrainingError,
    VersionExistsError,
    WorkerDiedError,
    WriteFailedError,
)

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, EntireIdError)]

# error, the built-in that a caller may catch instead, what the sentence must hold
EXAMPLES = [
    (SourceError("a b", "no such file"), ValueError, ["'a b'", "no such file"]),
    (LayoutNotFoundError("d", ["query"], ["x", "y"]), ValueError, ["'d'", "query", "'x', 'y'", "entire-id pack"]),
    (LayoutNotFoundError("d", ["query"], []), ValueError, ["found nothing"]),
    (CamerasFileError("c.csv", 3, "twice"), ValueError, ["'c.csv'", "line 3", "twice", "21,asia"]),
    (TableError("t.csv", "no column pid", ["path"]), ValueError, ["'t.csv'", "no column pid", "path", "camid, split"]),
    (CropRejectedError("x.jpg", "empty", ""), ValueError, ["'x.jpg'", "rejected: empty.", "--strict"]),
    (CropRejectedError("x.jpg", "name", "expected y"), ValueError, ["name (expected y)"]),
    (SourceChangedError("x.jpg", "vanished"), ValueError, ["'x.jpg'", "vanished", "Type the same command again"]),
    (WriteFailedError("o/d.tar", "No space"), OSError, ["'o/d.tar'", "No space", "Make room", "same command again"]),
    (SourceUnreachableError("s3://b", "Forbidden"), ValueError, ["'s3://b'", "(Forbidden)", "same command again"]),
    (ClusterError("auto", "nobody answers"), RuntimeError, ["'auto'", "nobody answers", "ray status"]),
    (MissingExtraError("ray", "--engine ray", "ray"), ImportError, ["--engine ray", "pip install 'entire-id[ray]'"]),
    (MissingExtraError("s3fs", "s3://"), ImportError, ["s3fs is not installed", "pip install s3fs"]),
    (DownloadError("http://h/a", (5, 1200), 7, "503"), OSError, ["'http://h/a'", "bytes 5 to 1,200", "503", "7 times"]),
    (DownloadError("http://h/a", (0, None), 1, "403"), OSError, ["the file cannot be fetched (403)", "tried once"]),
    (CorruptCropError("d/a.tar", "query/x", 3, 9999, "d"), ManifestError, ["'d/a.tar'", "'query/x'", "row 3", "9,999"]),
    (SelectionError("d", "no camera 9 in it"), ValueError, ["'d'", "no camera 9"]),
    (WorkerDiedError(), RuntimeError, ["killed", "Type the same command again", "--jobs 1"]),
    (PreviousVersionError("old", "that is version 2.0.0"), ValueError, ["'old'", "cannot follow", "version 2.0.0"]),
    (CardError("card.toml", "contact is 3"), ValueError, ["'card.toml'", "contact is 3"]),
    (ErasureError("d", "no person '7'"), ValueError, ["'d'", "nothing was taken out", "no person"]),
    (TombstonesError("t.jsonl", "another secret"), ValueError, ["'t.jsonl'", "another secret"]),
    (HubError("a/b", "500: oh"), OSError, ["'a/b'", "500: oh", "type the same command again"]),
    (PublishError("d", "no licence"), ValueError, ["'d'", "not published", "no licence"]),
    (VersionExistsError("a/b", "1.0.0"), FileExistsError, ["'a/b'", "1.0.0", "never changes", "entire-id pack"]),
    (RemoteChangedError("a/b", "main is at 1"), RuntimeError, ["'a/b'", "somebody else", "main is at 1", "--apply"]),
    (OutputExistsError(Path("out")), FileExistsError, ["'out'", "not empty", "Name a new folder"]),
    (NothingToPackError("d", 7, "o.rejected.csv"), ValueError, ["'d'", "7 files", "'o.rejected.csv'"]),
    (DatasetNotFoundError("d", "no such folder"), FileNotFoundError, ["'d'", "no such folder", "entire-id pack"]),
    (DatasetNotFoundError("x://d", "refused", "Look at it"), FileNotFoundError, ["'x://d'", "refused. Look at it"]),
    (ManifestError("d/x.parquet", "no rows"), ValueError, ["'d/x.parquet'", "no rows"]),
    (ManifestError("d e/m.json", "no JSON", "d e"), ValueError, ["'d e/m.json'", "entire-id verify 'd e'"]),
    (RepositoryNotFoundError("a/b", "no such"), FileNotFoundError, ["'a/b'", "no such"]),
    (ImageDecodeError("d", "query/1", "broken"), OSError, ["'d'", "'query/1'", "broken"]),
    (LayoutNotFoundError("d/query", ["query"], []), ValueError, ["give the folder that holds it"]),
    (ConfigNotFoundError("d", "asia", ["default"]), KeyError, ["'d'", "'asia'", "it has default"]),
    (SplitNotFoundError("d", "val", ["query", "gallery"]), KeyError, ["'val'", "query, gallery"]),
    (SplitNotFoundError("d", "train", ["query"]), KeyError, ["'train'", "not released by the authors"]),
    (
        ModelCodeError("m:f", "it", KeyError("x\ny"), "m.py:3"),
        RuntimeError,
        ["'m:f': it raised KeyError: 'x", "(m.py:3)"],
    ),
    (ModelCodeError("m:f", "it", AssertionError(), ""), ModelError, ["it raised AssertionError"]),
    (ModelError("vit", "no such file"), ValueError, ["'vit'", "no such file"]),
    (FeaturesError("f.npy", "too short"), ValueError, ["'f.npy'", "too short", "entire-id embed"]),
    (EvaluationError("shapes differ"), ValueError, ["shapes differ"]),
    (SamplingError("3 identities"), ValueError, ["3 identities"]),
    (ExperimentError("out", "another one"), ValueError, ["'out'", "another one"]),
    (TrainingError("run", "seed 0 there, 1 now"), ValueError, ["'run'", "seed 0 there"]),
]


@pytest.mark.parametrize(("error", "builtin", "parts"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_sentence_holds_the_facts_and_the_next_step(error, builtin, parts):
    assert isinstance(error, EntireIdError)
    assert isinstance(error, builtin)
    assert [part for part in parts if part not in str(error)] == []


def test_every_error_has_an_example_here():
    assert {type(error) for error, *_ in EXAMPLES} == set(CLASSES) - {EntireIdError}


def test_every_error_is_public_and_in_the_drawn_tree():
    names = {cls.__name__ for cls in CLASSES}
    assert set(errors.__all__) == names
    assert set(re.findall(r"\b[A-Z]\w+(?:Error)\b", errors.__doc__)) - {"ValueError", "KeyError"} >= names


def test_facts_stay_as_attributes():
    error = CropRejectedError("x.jpg", "empty", "0 bytes")
    assert (error.path, error.reason, error.detail) == ("x.jpg", "empty", "0 bytes")
    layout = LayoutNotFoundError(Path("d"), ["query"], iter(["x"]))
    assert (layout.path, layout.expected, layout.found) == ("d", ("query",), ("x",))


def test_a_key_error_reads_as_a_sentence_and_not_as_a_repr():
    assert not str(ConfigNotFoundError("d", "asia", ["default"])).startswith(('"', "'\""))


def test_a_long_list_of_folders_is_cut_in_the_message_but_not_in_the_attribute():
    error = LayoutNotFoundError("d", ["query"], [f"folder{number}" for number in range(1000)])
    assert len(str(error)) < 1000
    assert len(error.found) == 1000


@pytest.mark.parametrize("error", [error for error, *_ in EXAMPLES], ids=lambda value: type(value).__name__)
def test_errors_cross_process_borders_whole(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)
