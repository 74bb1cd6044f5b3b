"""Every error that the package raises on purpose.

    EntireIdError
    ├── SourceError (ValueError)              raw crops cannot be read as a whole
    │   ├── LayoutNotFoundError               no folder that a layout knows
    │   ├── CamerasFileError                  cameras.csv is malformed
    │   ├── TableError                        the table lacks a column
    │   ├── CropRejectedError                 --strict, and one crop was rejected
    │   ├── SourceChangedError                a file changed or vanished while it was packed
    │   └── SourceUnreachableError            the other end of a URL refuses, or does not answer
    ├── OutputExistsError (FileExistsError)   the target folder holds something
    ├── WriteFailedError (OSError)            the disk is full, or refuses
    ├── WorkerDiedError (RuntimeError)        a worker process was killed
    ├── ClusterError (RuntimeError)           a Ray cluster does not answer, or breaks down
    ├── MissingExtraError (ImportError)       a package that only some need is not installed
    ├── PreviousVersionError (ValueError)     a version cannot follow the previous one
    ├── CardError (ValueError)                what the owners state is not what a card needs
    ├── ErasureError (ValueError)             people or crops cannot be taken out as asked
    ├── TombstonesError (ValueError)          tombstones, or the secret that made them, cannot be used
    ├── NothingToPackError (ValueError)       no crop survived
    ├── DatasetNotFoundError (FileNotFoundError)     no packed data set
    ├── RepositoryNotFoundError (FileNotFoundError)  no such repository or revision, or it cannot be reached
    ├── DownloadError (OSError)               bytes of a remote data set cannot be fetched
    ├── HubError (OSError)                    the Hub refuses to do something, or does not answer
    ├── PublishError (ValueError)             a data set is not fit to be published
    ├── VersionExistsError (FileExistsError)  a version of that number was published
    ├── RemoteChangedError (RuntimeError)     a repository is no longer what a plan was made for
    ├── ManifestError (ValueError)            a data set is not what its manifest says
    │   └── CorruptCropError                  one crop's bytes are not those that were packed
    ├── SelectionError (ValueError)           crops cannot be chosen, labelled or joined as asked
    ├── ImageDecodeError (OSError)            a packed image does not decode
    ├── ConfigNotFoundError (KeyError)        no such config
    ├── SplitNotFoundError (KeyError)         no such split, e.g. the unreleased train part
    ├── ModelError (ValueError)               a model cannot be opened, or gives no features
    │   └── ModelCodeError (RuntimeError)     the user's own code raises an error
    ├── FeaturesError (ValueError)            features do not belong to the data set
    ├── EvaluationError (ValueError)          arrays that cannot be scored
    ├── SamplingError (ValueError)            batches that cannot be drawn as asked
    ├── TrainingError (ValueError)            a training cannot be begun, or gone on with, as asked
    └── ExperimentError (ValueError)          an experiment cannot be begun, or gone on with, as asked

A constructor takes facts, keeps them as attributes and builds the sentence: what happened, where, the bad value,
what was expected, and what to type next.

Out of the workers of a torch `DataLoader` most arrive as a RuntimeError with the sentence: torch makes an error anew
from its text alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote

__all__ = [
    "CamerasFileError",
    "CardError",
    "ClusterError",
    "ConfigNotFoundError",
    "CorruptCropError",
    "CropRejectedError",
    "DatasetNotFoundError",
    "DownloadError",
    "EntireIdError",
    "ErasureError",
    "EvaluationError",
    "ExperimentError",
    "FeaturesError",
    "HubError",
    "ImageDecodeError",
    "LayoutNotFoundError",
    "ManifestError",
    "MissingExtraError",
    "ModelCodeError",
    "ModelError",
    "NothingToPackError",
    "OutputExistsError",
    "PreviousVersionError",
    "PublishError",
    "RemoteChangedError",
    "RepositoryNotFoundError",
    "SamplingError",
    "SelectionError",
    "SourceChangedError",
    "SourceError",
    "SourceUnreachableError",
    "SplitNotFoundError",
    "TableError",
    "TombstonesError",
    "TrainingError",
    "VersionExistsError",
    "WorkerDiedError",
    "WriteFailedError",
]


class EntireIdError(Exception):
    """Root of all errors of this package."""

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders whole: the constructor's arguments are not the sentence."""
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        """The sentence; KeyError would show its quoted repr instead."""
        return str(self.args[0]) if self.args else ""


def _rebuild(kind: type[EntireIdError], args: tuple[object, ...], facts: dict[str, object]) -> EntireIdError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class SourceError(EntireIdError, ValueError):
    """Raw crops cannot be read as a whole: a missing path, an unknown kind of file."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r}: {what}")


class LayoutNotFoundError(SourceError):
    """No folder of the layout lies in the source."""

    def __init__(self, path: str | Path, expected: Iterable[str], found: Iterable[str]) -> None:
        self.expected = tuple(expected)
        self.found = tuple(found)
        shown = ", ".join(repr(name) for name in self.found[:8]) or "nothing"
        if Path(path).resolve().name in self.expected:
            advice = "That is one of them: give the folder that holds it"
        elif (Path(path) / "manifest.json").is_file():
            advice = "It is packed already: see entire-id info"
        else:
            advice = (
                "Give the folder or zip that holds them, or another --layout (auto finds out), or describe your own "
                "crops in a table: entire-id pack crops.csv OUT (columns path, pid, camid, split)"
            )
        super().__init__(path, f"none of the folders {', '.join(self.expected)} is there; found {shown}. {advice}")


class CamerasFileError(SourceError):
    """`cameras.csv` is malformed."""

    def __init__(self, path: str | Path, line: int, what: str) -> None:
        self.line = line
        super().__init__(
            path,
            f"line {line}: {what}. Expected a header with camid and continent, then one camera a line: 21,asia",
        )


class TableError(SourceError):
    """A table of crops lacks a column or cannot be parsed."""

    def __init__(self, path: str | Path, what: str, found: Iterable[str] = ()) -> None:
        self.found = tuple(found)
        columns = f" (its columns: {', '.join(self.found)})" if self.found else ""
        if len(self.found) == 1 and ";" in self.found[0]:
            columns += "; separate columns by commas"
        needs = "A table needs path, pid, camid, split, and may have seq, frame, continent"
        super().__init__(path, f"{what}{columns}. {needs}")


class CropRejectedError(SourceError):
    """A crop was rejected while `strict` was asked for."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        tail = f" ({detail})" if detail else ""
        super().__init__(
            path, f"rejected: {reason}{tail}. Mend or remove it, or leave --strict out to list it and go on"
        )


class SourceChangedError(SourceError):
    """A file that was listed is gone, or was written to while it was read."""

    def __init__(self, path: str | Path, what: str) -> None:
        super().__init__(path, f"{what} while it was packed. Type the same command again: it goes on where it stopped")


class SourceUnreachableError(SourceError):
    """The other end of a URL refuses, or does not answer."""

    def __init__(self, path: str | Path, what: str) -> None:
        again = "See to it, then type the same command again: it goes on where it stopped"
        super().__init__(path, f"cannot be read ({what}). {again}")


class OutputExistsError(EntireIdError, FileExistsError):
    """The target folder holds something; nothing is ever overwritten."""

    def __init__(self, path: str | Path, why: str = "it is not empty") -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r} cannot be written: {why}. Name a new folder, or move the old one away")


class WriteFailedError(EntireIdError, OSError):
    """A file of the data set cannot be written."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        again = "Make room, then type the same command again: it goes on where it stopped"
        super().__init__(f"{self.path!r} cannot be written: {what}. {again}")


class WorkerDiedError(EntireIdError, RuntimeError):
    """A worker process was killed, perhaps for want of memory."""

    def __init__(self) -> None:
        again = "Type the same command again: it goes on where it stopped; --jobs 1 needs the least memory"
        super().__init__(f"a worker process was killed. {again}")


class ClusterError(EntireIdError, RuntimeError):
    """A Ray cluster does not answer, or breaks down."""

    def __init__(self, address: str, what: str) -> None:
        self.address = address
        again = "Look at it with: ray status. The same command goes on where it stopped, also with --engine local"
        super().__init__(f"the Ray cluster {address!r} does not do the work: {what}. {again}")


class MissingExtraError(EntireIdError, ImportError):
    """A package that only some need is not installed."""

    def __init__(self, package: str, needed_for: str, extra: str = "") -> None:
        self.package = package
        self.needed_for = needed_for
        self.extra = extra
        install = f"'entire-id[{extra}]'" if extra else package
        super().__init__(f"{package} is not installed; {needed_for} needs it. Type: pip install {install}")


class PreviousVersionError(EntireIdError, ValueError):
    """A version cannot follow the one that `--previous` names."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"the new version cannot follow {self.path!r}: {what}")


class CardError(EntireIdError, ValueError):
    """What the owners state of their data set is not what a card needs."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r}: {what}")


class ErasureError(EntireIdError, ValueError):
    """People or crops cannot be taken out of a data set as asked."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"nothing was taken out of {self.path!r}: {what}")


class TombstonesError(EntireIdError, ValueError):
    """Tombstones, or the secret that made them, cannot be used."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r}: {what}")


class NothingToPackError(EntireIdError, ValueError):
    """The source holds no crop that can be packed."""

    def __init__(self, path: str | Path, num_rejected: int, rejected_csv: str | Path | None) -> None:
        self.path = str(path)
        self.num_rejected = num_rejected
        why = (
            f"{num_rejected} files, all rejected; the reasons are in {str(rejected_csv)!r}. Names of another data set "
            "are read with its --layout (auto finds out)"
        )
        super().__init__(f"{self.path!r} holds no crop that can be packed: {why if rejected_csv else 'no file at all'}")


class DatasetNotFoundError(EntireIdError, FileNotFoundError):
    """No packed data set lies there."""

    def __init__(self, path: str | Path, why: str, next_step: str = "Make one with: entire-id pack CROPS OUT") -> None:
        self.path = str(path)
        super().__init__(f"no packed data set at {self.path!r}: {why}. {next_step}")


class RepositoryNotFoundError(EntireIdError, FileNotFoundError):
    """No repository has that name or revision, or it cannot be reached."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        super().__init__(f"no data set {name!r} on the Hub: {why}")


class DownloadError(EntireIdError, OSError):
    """Bytes of a remote data set cannot be fetched."""

    def __init__(self, url: str, span: tuple[int, int | None], attempts: int, reason: str) -> None:
        self.url = url
        self.span = span
        self.attempts = attempts
        self.reason = reason
        start, stop = span
        which = f"bytes {start:,} to {stop:,}" if stop is not None else "the file"
        tries = "once" if attempts == 1 else f"{attempts} times"
        super().__init__(f"{url!r}: {which} cannot be fetched ({reason}); tried {tries}")


class HubError(EntireIdError, OSError):
    """The Hub refuses to do something, or does not answer."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        again = "Once that is mended, type the same command again: it goes on where it stopped"
        super().__init__(f"the Hub does not do what was asked of {name!r} ({what}). {again}")


class PublishError(EntireIdError, ValueError):
    """A data set is not fit to be published, or not to that repository."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r} is not published: {what}")


class VersionExistsError(EntireIdError, FileExistsError):
    """A version of that number was published; it never changes."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        again = "Pack again with a higher one: entire-id pack CROPS NEW --version VERSION --previous OLD"
        super().__init__(f"{name!r} has a version {version} with other content, and a version never changes. {again}")


class RemoteChangedError(EntireIdError, RuntimeError):
    """A repository is not, or no longer, what a plan was made for: somebody else changes it."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        again = "Nothing was taken back. Make a new plan, and see what differs, by leaving --apply out"
        super().__init__(f"{name!r} was changed by somebody else meanwhile ({what}). {again}")


class ManifestError(EntireIdError, ValueError):
    """A packed data set is not what its manifest says."""

    def __init__(self, path: str | Path, what: str, folder: str | Path | None = None) -> None:
        self.path = str(path)
        self.folder = None if folder is None else str(folder)
        hint = f". See every problem with: entire-id verify {quote(self.folder)}" if self.folder else ""
        super().__init__(f"{self.path!r}: {what}{hint}")


class CorruptCropError(ManifestError):
    """One crop's bytes are not those that were packed; `row` is its number in the shard."""

    def __init__(self, path: str | Path, key: str, row: int, offset: int, folder: str | Path | None = None) -> None:
        self.key = key
        self.row = row
        self.offset = offset
        super().__init__(path, f"the bytes of {key!r} (row {row}, at byte {offset:,}) are not those packed", folder)


class ImageDecodeError(EntireIdError, OSError):
    """A packed image does not decode."""

    def __init__(self, folder: str | Path, key: str, what: str) -> None:
        self.folder = str(folder)
        self.key = key
        super().__init__(f"{self.folder!r}: the image of {key!r} does not decode ({what})")


class ConfigNotFoundError(EntireIdError, KeyError):
    """The data set has no such config."""

    def __init__(self, path: str | Path, config: str, configs: Iterable[str]) -> None:
        self.path = str(path)
        self.config = config
        self.configs = tuple(configs)
        super().__init__(f"{self.path!r} has no config {config!r}; it has {', '.join(self.configs)}")


class SplitNotFoundError(EntireIdError, KeyError):
    """The config has no such split; the train part of ENTIRe-ID has not been released by its authors."""

    def __init__(self, path: str | Path, split: str, splits: Iterable[str], others: Iterable[str] = ()) -> None:
        self.path = str(path)
        self.split = split
        self.splits = tuple(splits)
        self.others = tuple(others)
        if self.others:
            reason = f" It is in config {', '.join(self.others)}."
        elif split == "train":
            reason = (
                " The train part of ENTIRe-ID was not released by the authors; only query and gallery were. Once you "
                "have it, put it beside them as bounding_box_train/ and pack again."
            )
        else:
            reason = ""
        super().__init__(f"{self.path!r} has no split {split!r} here; there is {', '.join(self.splits)}.{reason}")


class SelectionError(EntireIdError, ValueError):
    """Crops of a data set cannot be chosen, labelled or joined as asked."""

    def __init__(self, name: str | Path, what: str) -> None:
        self.name = str(name)
        super().__init__(f"{self.name!r}: {what}")


class ModelError(EntireIdError, ValueError):
    """A model cannot be opened, or does not give a feature for every crop."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        super().__init__(f"model {name!r}: {what}")


class ModelCodeError(ModelError, RuntimeError):
    """The user's own code raises an error, which is the `__cause__`, as it is imported or run as a model."""

    def __init__(self, name: str, doing: str, error: Exception, place: str) -> None:
        self.error = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        self.place = place
        where = f" ({place})" if place else ""
        super().__init__(name, f"{doing} raised {self.error}{where}")


class FeaturesError(EntireIdError, ValueError):
    """Stored features do not belong to the data set that they are used with."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r}: {what}. Make them anew with: entire-id embed DIR --model MODEL")


class EvaluationError(EntireIdError, ValueError):
    """Arrays given to the evaluation have the wrong shape, length or values."""


class SamplingError(EntireIdError, ValueError):
    """Batches cannot be drawn as asked: too few identities, arrays of different lengths, a state of other crops."""


class TrainingError(EntireIdError, ValueError):
    """A training cannot be begun, or gone on with, as asked."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r}: {what}")


class ExperimentError(EntireIdError, ValueError):
    """An experiment cannot be begun, or gone on with, as asked."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path!r}: {what}")
