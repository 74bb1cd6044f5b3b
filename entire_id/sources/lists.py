"""Lists that say which crops belong to which split, a crop a line.

The file that a line takes lies in the folder of its split, or else in another: so two lines may take one file, which
then is a crop of both splits. Most queries of Occluded-Duke are in its gallery, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from entire_id.errors import SourceError
from entire_id.records import Reason, Rejected
from entire_id.sources.files import Files

__all__ = ["Entry", "ListPlace", "Lists", "read_entries"]


@dataclass(frozen=True, slots=True)
class Lists:
    """The lists of a layout.

    Attributes:
        files: name → split, first those whose claim to a crop is the stronger.
        folders: split → the folder of its crops, then those from which a crop is taken that is not there.
        parse_line: line → path below such a folder, and identity, None where the name says it; raises ValueError.
        are_needed: whether there is no data set without them.
    """

    files: Mapping[str, str]
    folders: Mapping[str, tuple[str, ...]]
    parse_line: Callable[[str], tuple[str, int | None]]
    are_needed: bool = True


class ListPlace(NamedTuple):
    """Where lists lie: in these files, below `prefix`, which is empty or ends in `/`."""

    files: Files
    prefix: str

    def there(self, lists: Lists) -> list[str]:
        """Return the names of the lists that are there."""
        return [name for name in lists.files if not isinstance(self.files.check(self.prefix + name), Rejected)]


class Entry(NamedTuple):
    """One line of a list.

    Attributes:
        split: of its crop.
        name: path of the crop below a folder of its split.
        paths: where its file may be, each of these folders in turn; the first that is there is taken.
        pid: identity; None where the name says it.
        list_name: of the list.
    """

    split: str
    name: str
    paths: tuple[str, ...]
    pid: int | None
    list_name: str


def read_entries(lists: Lists, place: ListPlace, prefix: str) -> tuple[list[Entry], list[Rejected]]:
    """Return (a line for each crop, lines that name a crop of another line).

    Args:
        lists: of the layout.
        place: where they lie.
        prefix: what the paths of the layout's folders start with, `""` or ending in `/`.

    Raises:
        SourceError: a list cannot be read, or a line is none.
    """
    entries: dict[str, Entry] = {}
    twice = []
    for name in place.there(lists):
        for entry in _read_list(lists, place, name, prefix):
            first = entries.setdefault(entry.paths[0], entry)
            if first is not entry:
                detail = f"{entry.list_name} names it, after {first.list_name}"
                twice.append(Rejected(entry.paths[0], Reason.DUPLICATE_KEY, detail))
    return list(entries.values()), twice


def _read_list(lists: Lists, place: ListPlace, name: str, prefix: str) -> Iterator[Entry]:
    where = f"{place.files.name}/{place.prefix}{name}"
    try:
        text = place.files.read(place.prefix + name).data.decode("utf-8-sig")
    except OSError as error:
        raise SourceError(where, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise SourceError(where, f"not UTF-8 ({error.reason})") from error
    split = lists.files[name]
    folders = [f"{prefix}{folder}/" for folder in lists.folders[split]]
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            path, pid = lists.parse_line(line.strip())
        except ValueError as error:
            raise SourceError(where, f"line {number}: {line.strip()[:80]!r} is no line of such a list") from error
        path = path.removeprefix("./")
        yield Entry(split, path, tuple([folder + path for folder in folders]), pid, name)
