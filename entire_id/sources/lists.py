"""Lists that say which crops belong to which split, a crop a line."""

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
        folders: split → folders in which its crops lie; a later one where the ones before it do not hold a crop.
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
    """One line of a list."""

    split: str
    path: str
    pid: int | None
    name: str


def read_entries(lists: Lists, place: ListPlace, has: Callable[[str], bool]) -> tuple[dict[str, Entry], list[Rejected]]:
    """Return (folder and path of a crop → its line, lines that name a crop of another line).

    Args:
        lists: of the layout.
        place: where they lie.
        has: tells whether there is a crop of that folder and path.

    Raises:
        SourceError: a list cannot be read, a line is none, or one file would have to be in two splits.
    """
    entries: dict[str, Entry] = {}
    twice = []
    lines = [entry for name in place.there(lists) for entry in _read_list(lists, place, name)]
    for entry in lines:
        path = f"{lists.folders[entry.split][0]}/{entry.path}"
        first = entries.setdefault(path, entry)
        if first is not entry:
            twice.append(Rejected(path, Reason.DUPLICATE_KEY, f"{entry.name} names it, after {first.name}"))
    lost = []
    for entry in lines:
        first_folder, *others = lists.folders[entry.split]
        for folder in others:
            other = entries.setdefault(f"{folder}/{entry.path}", entry)
            if other.split != entry.split and not has(f"{first_folder}/{entry.path}"):
                lost.append(entry)
    if lost:
        what = f"{len(lost):,} of its crops, such as {lost[0].path}, are in another list too and lie in one folder only"
        advice = "Run the script of the lists' authors, which copies them, and pack the folder that it makes"
        raise SourceError(f"{place.files.name}/{place.prefix}{lost[0].name}", f"{what}. {advice}")
    return entries, twice


def _read_list(lists: Lists, place: ListPlace, name: str) -> Iterator[Entry]:
    where = f"{place.files.name}/{place.prefix}{name}"
    try:
        text = place.files.read(place.prefix + name).data.decode("utf-8-sig")
    except OSError as error:
        raise SourceError(where, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise SourceError(where, f"not UTF-8 ({error.reason})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            path, pid = lists.parse_line(line.strip())
        except ValueError as error:
            raise SourceError(where, f"line {number}: {line.strip()[:80]!r} is no line of such a list") from error
        yield Entry(lists.files[name], path.removeprefix("./"), pid, name)
