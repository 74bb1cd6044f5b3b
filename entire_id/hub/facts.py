"""What the owners of a data set know and its files do not: licence, consent, contact. Read from a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from string import Template
from typing import Any

from entire_id.errors import CardError

__all__ = ["OwnerFacts", "example_facts", "parse_facts", "read_facts", "read_template"]

_LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LINK = re.compile(r"https?://[^\s<>()\[\]]+")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_ONE_LINE = {"pretty_name", "owners", "homepage", "paper", "contact", "erasure_contact"}


@dataclass(frozen=True, slots=True)
class OwnerFacts:
    """What the owners state; `""` and `()` where they state nothing.

    Attributes:
        license_name: id of the images' licence.
        license_link: where its text can be read.
        pretty_name: how people write the name; `""` for that of the manifest.
        repository: `owner/name` on the Hub, which the examples then load.
        summary: what it is, in a paragraph.
        owners: who publishes it.
        homepage: a link.
        paper: a link.
        language: codes.
        tags: more words to find it by.
        collection: where, when and how the pictures were taken.
        annotation: how crops became identities.
        consent: what the people in the pictures agreed to.
        ethics: review board, legal ground.
        face_blurring: whether and how.
        contact: whom to ask.
        erasure_contact: whom to write to in order to be erased.
        erasure: what happens then.
        limits: what the data cannot tell.
        biases: who is in it more or less often than in the world.
        citation: BibTeX.
    """

    license_name: str
    license_link: str
    pretty_name: str = ""
    repository: str = ""
    summary: str = ""
    owners: str = ""
    homepage: str = ""
    paper: str = ""
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    collection: str = ""
    annotation: str = ""
    consent: str = ""
    ethics: str = ""
    face_blurring: str = ""
    contact: str = ""
    erasure_contact: str = ""
    erasure: str = ""
    limits: str = ""
    biases: str = ""
    citation: str = ""


def read_facts(path: str | Path) -> OwnerFacts:
    """Return the facts in the TOML file at `path`.

    Raises:
        CardError: it cannot be read, or see `parse_facts`.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CardError(path, f"cannot be read ({what}). Print a template with: entire-id card --example") from error
    return parse_facts(text, path)


def parse_facts(text: str, path: str | Path) -> OwnerFacts:
    """Return the facts that the text of a TOML file states.

    Args:
        text: see `example_facts`.
        path: where it came from, for messages.

    Raises:
        CardError: it is no TOML, has a key that nobody knows, a value of another type or form, or no licence.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CardError(path, f"no TOML ({error})") from error
    for problem in _problems(values):
        raise CardError(path, problem)
    stated: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value.strip() for name, value in values.items()
    }
    return OwnerFacts(**stated)


def _problems(values: dict[str, object]) -> Iterator[str]:
    known = {field.name: field for field in fields(OwnerFacts)}
    for name, value in values.items():
        if name not in known:
            (nearest,) = get_close_matches(name, known, n=1, cutoff=0)
            yield f"nobody knows the key {name!r}; the nearest is {nearest!r}"
        elif known[name].type == "str" and not isinstance(value, str):
            yield f"{name} is {value!r}, expected text in quotes"
        elif known[name].type != "str" and not _are_words(value):
            yield f'{name} is {value!r}, expected a list of words: ["one", "two"]'
        elif name in _ONE_LINE and "\n" in str(value).strip():
            yield f"{name} is {value!r}, expected one line"
    yield from _form_problems({name: str(value).strip() for name, value in values.items()})


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and word.strip() for word in value)


def _form_problems(values: dict[str, str]) -> Iterator[str]:
    """Yield what has another form than the Hub needs; a data set without a licence is nobody's to publish."""
    for name, form, expected in (
        ("license_name", _LICENSE_NAME, "an id in lower case: my-lab-research-1.0"),
        ("license_link", _LINK, "where its text can be read: https://…"),
    ):
        value = values.get(name, "")
        if not form.fullmatch(value):
            yield f"{name} is {value!r}, expected {expected}. Only the owners of the images can state their licence"
    for name in ("homepage", "paper"):
        if (link := values.get(name, "")) and not _LINK.fullmatch(link):
            yield f"{name} is {link!r}, expected a link: https://…"
    if (repository := values.get("repository", "")) and not _REPOSITORY.fullmatch(repository):
        yield f"repository is {repository!r}, expected owner/name"


def example_facts() -> str:
    """Return a TOML file with every key, empty, and what belongs there."""
    return _read_card_file("card.toml")


def read_template(name: str) -> Template:
    """Return one of the files that a card is made of."""
    return Template(_read_card_file(name))


def _read_card_file(name: str) -> str:
    installed = Path(__file__).with_name("templates")
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "card"  # in a clone they lie on top
    return (folder / name).read_text("utf-8")
