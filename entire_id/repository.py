"""Repositories on the Hugging Face Hub: their names, one file of theirs, and what its client raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from entire_id.errors import DatasetNotFoundError, RepositoryNotFoundError
from entire_id.remote import is_url

__all__ = ["HUB", "Repository", "hub_errors", "hub_file", "repository_at", "without_signatures"]

HUB = "hf://datasets/"
_NEITHER = "no such folder, and no repository name (owner/name)"
_QUERY = re.compile(r"\?[^\s'\"]*")
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


class Repository(NamedTuple):
    """A data set on the Hub.

    Attributes:
        name: `owner/name`.
        revision: branch, tag or commit; None for its default branch.
    """

    name: str
    revision: str | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def repository_at(where: str | Path, revision: str | None = None) -> Repository | None:
    """Return the repository that `where` means, None for a folder of this machine or another URL.

    Args:
        where: `owner/name` or `hf://datasets/owner/name`, either with `@revision` behind it. A `Path` is always a
            folder, and a folder wins over a repository of that name. Where `owner` is a folder of the working
            directory, `owner/name` is taken for a mistyped folder, and the Hub is not asked: `hf://datasets/owner/name`
            and what states a revision still mean the repository.
        revision: said apart from the name.

    Raises:
        DatasetNotFoundError: neither a folder nor the name of a repository, or a folder that is not there.
        ValueError: name and `revision` say different ones.

    >>> repository_at("hf://datasets/owner/entire-id@v1.0.0")
    Repository(name='owner/entire-id', revision='v1.0.0')
    """
    text = str(where)
    if not text.startswith(HUB) and (isinstance(where, Path) or is_url(text) or Path(text).expanduser().is_dir()):
        return None
    name, at, stated = text.removeprefix(HUB).partition("@")
    if not _NAME.fullmatch(name):
        raise DatasetNotFoundError(where, _NEITHER)
    if at and revision not in (None, stated):
        raise ValueError(f"{text!r} names revision {stated!r}, and {revision!r} was asked for")
    found = Repository(name, stated if at else revision)
    owner = name.partition("/")[0]
    if found.revision is None and not text.startswith(HUB) and Path(owner).is_dir():
        here = f"there is no such folder in {owner!r}"
        raise DatasetNotFoundError(where, here, f"If you mean the repository on the Hub: {HUB}{name}")
    return found


def without_signatures(text: str) -> str:
    """Return a message without what follows a `?` in its addresses: for a while a signature opens them to anybody.

    >>> without_signatures("403 for 'https://host/file?Signature=abc'")
    "403 for 'https://host/file'"
    """
    return _QUERY.sub("", text)


def hub_file(name: str, path: str, revision: str | None) -> tuple[str, Path]:
    """Return the commit that `revision` of a repository means now, and a copy of the file `path` in the cache.

    Raises:
        DatasetNotFoundError: `name` is no name of a repository.
        RepositoryNotFoundError: see `hub_errors`.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(name):
        file = Path(hf_hub_download(name, path, repo_type="dataset", revision=revision))
    return file.parents[path.count("/")].name, file


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the Hub's client raises into errors of this package.

    Raises:
        DatasetNotFoundError: `name` is no name of a repository.
        RepositoryNotFoundError: no such repository or revision, access to it is gated, or it cannot be reached.
    """
    from httpx2 import TransportError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise DatasetNotFoundError(name, _NEITHER) from error
    except GatedRepoError as error:
        raise RepositoryNotFoundError(name, "access is gated: ask for it on its page, then `hf auth login`") from error
    except LocalEntryNotFoundError as error:
        raise RepositoryNotFoundError(name, "the Hub cannot be reached, and it is not in the cache") from error
    except HfHubHTTPError as error:
        raise RepositoryNotFoundError(
            name, f"the Hub says no ({without_signatures(str(error).splitlines()[0])})"
        ) from error
    except TransportError as error:
        raise RepositoryNotFoundError(name, f"the Hub does not answer ({without_signatures(str(error))})") from error
