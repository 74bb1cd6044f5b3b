from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from entire_id.errors import CardError
from entire_id.hub.facts import OwnerFacts, example_facts, parse_facts, read_facts

LICENCE = 'license_name = "lab-1.0"\nlicense_link = "https://lab.org/licence"\n'


def test_the_example_has_every_key_and_states_nothing() -> None:
    found = tomllib.loads(example_facts())
    assert list(found) == [field.name for field in fields(OwnerFacts)]
    assert not any(found.values())


def test_the_example_is_refused_until_it_states_a_licence() -> None:
    with pytest.raises(CardError, match="license_name is '', expected an id in lower case.*Only the owners"):
        parse_facts(example_facts(), "card.toml")
    filled = example_facts().replace('license_name = ""', 'license_name = "lab-1.0"')
    with pytest.raises(CardError, match="license_link is ''"):
        parse_facts(filled, "card.toml")
    filled = filled.replace('license_link = ""', 'license_link = "https://lab.org/licence"')
    assert parse_facts(filled, "card.toml") == OwnerFacts("lab-1.0", "https://lab.org/licence")


def test_text_is_stripped_and_lists_are_kept() -> None:
    facts = parse_facts(LICENCE + 'limits = """\nNo nights.\n\nNo snow.\n"""\nlanguage = ["tr", "en"]\n', "card.toml")
    assert facts.limits == "No nights.\n\nNo snow."
    assert facts.language == ("tr", "en")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('licence_name = "x"', "'licence_name'; the nearest is 'license_name'"),
        ('erasure_contacts = "x"', "'erasure_contacts'; the nearest is 'erasure_contact'"),
        ("[privacy]\nconsent = 'yes'", "nobody knows the key 'privacy'"),
        ("limits = 3", "limits is 3, expected text in quotes"),
        ('limits = ["a"]', "expected text in quotes"),
        ('language = "en"', "language is 'en', expected a list of words"),
        ('tags = ["a", ""]', "expected a list of words"),
        ('contact = "a\\nb"', "expected one line"),
        ('homepage = "lab.org"', "homepage is 'lab.org', expected a link"),
        ('repository = "entire-id"', "repository is 'entire-id', expected owner/name"),
        ('license_name = "x"', "no TOML"),  # twice
        ("limits", "no TOML"),
    ],
)
def test_what_is_mistaken_is_named(line: str, message: str) -> None:
    with pytest.raises(CardError, match=message) as caught:
        parse_facts(LICENCE + line, "my/card.toml")
    assert caught.value.path == "my/card.toml"


@pytest.mark.parametrize("name", ["My Licence", "", "-lab", "a\nb"])
def test_a_licence_name_is_an_id(name: str) -> None:
    text = LICENCE.replace('"lab-1.0"', f"{name!r}" if "\n" not in name else '"a\\nb"')
    with pytest.raises(CardError, match="license_name"):
        parse_facts(text, "card.toml")


@pytest.mark.parametrize("link", ["LICENSE.md", "https://", "https://lab.org/a b", "javascript:alert(1)"])
def test_a_licence_link_is_a_link(link: str) -> None:
    with pytest.raises(CardError, match="license_link"):
        parse_facts(LICENCE.replace("https://lab.org/licence", link), "card.toml")


def test_an_editor_may_mark_the_file_as_utf_8(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(LICENCE, encoding="utf-8-sig")
    assert read_facts(tmp_path / "card.toml").license_name == "lab-1.0"


def test_a_file_that_cannot_be_read_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="No such file.*entire-id card --example"):
        read_facts(tmp_path / "card.toml")
    (tmp_path / "card.toml").write_bytes(LICENCE.encode() + b'limits = "\xff"')
    with pytest.raises(CardError, match="not UTF-8"):
        read_facts(tmp_path / "card.toml")
