from __future__ import annotations

from pathlib import Path

import pytest

from entire_id.errors import PreviousVersionError
from entire_id.hub.card import write_card
from entire_id.hub.changelog import changelog_versions, read_changelog
from entire_id.hub.facts import OwnerFacts

from builders import many_crops, pack_folder

FACTS = OwnerFacts("lab-1.0", "https://lab.org/licence")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Version 1.0.0 of 12 people, without a card, made from `tmp_path / "source"`."""
    return pack_folder(many_crops(tmp_path / "source", people=12, shots=4), tmp_path / "1.0.0", shard_rows=20)


def pack_next(previous: Path, version: str) -> Path:
    source = previous.parent / "source"
    return pack_folder(source, previous.with_name(version), shard_rows=20, version=version, previous=previous)


def remove_person(folder: Path, pid: int) -> None:
    for path in folder.parent.glob(f"source/*/{pid:05d}_*.jpg"):
        path.unlink()


def entries_of(folder: Path) -> dict[str, str]:
    return read_changelog((folder / "README.md").read_text())


def test_the_first_version_says_so(first: Path) -> None:
    write_card(first, FACTS, notes="Here it is.")
    assert list(entries_of(first)) == ["1.0.0"]
    assert entries_of(first)["1.0.0"].startswith("The first version: 60 crops in ")
    assert "query 12 crops of 12 identities, gallery 48 crops of 12 identities" in entries_of(first)["1.0.0"]
    assert entries_of(first)["1.0.0"].endswith("> Here it is.")


def test_versions_follow_each_other_newest_first(first: Path) -> None:
    write_card(first, FACTS, notes="One.")
    remove_person(first, 5)
    second = pack_next(first, "1.9.0")
    write_card(second, FACTS, previous=first, notes="Two.")
    third = pack_next(second, "1.10.0")
    write_card(third, FACTS, previous=second)
    assert changelog_versions((third / "README.md").read_text()) == ("1.10.0", "1.9.0", "1.0.0")
    entries = entries_of(third)
    assert entries["1.0.0"] == entries_of(first)["1.0.0"]
    assert entries["1.9.0"] == entries_of(second)["1.9.0"]
    assert "Since 1.0.0: 0 identities added, 1 removed." in entries["1.9.0"]
    assert "| query | 0 | 1 | 0 |\n| gallery | 0 | 4 | 0 |" in entries["1.9.0"]
    assert "scores of 1.0.0 and 1.9.0 are not comparable" in entries["1.9.0"]
    assert "> Two." in entries["1.9.0"]
    assert "Since 1.9.0: 0 identities added, 0 removed." in entries["1.10.0"]
    assert "scores of 1.9.0 and 1.10.0 are comparable" in entries["1.10.0"]


def test_running_it_again_changes_nothing(first: Path) -> None:
    write_card(first, FACTS, notes="One.")
    remove_person(first, 5)
    second = pack_next(first, "1.1.0")
    write_card(second, FACTS, previous=first, notes="Two.\n\nAnd more.")
    page = (second / "README.md").read_text()
    write_card(second, FACTS, previous=first)
    assert (second / "README.md").read_text() == page, "notes that were given once stay"
    write_card(second, FACTS)
    assert (second / "README.md").read_text() == page, "the page itself has the versions before"
    write_card(second, FACTS, previous=first, notes="Better words.")
    assert changelog_versions((second / "README.md").read_text()) == ("1.1.0", "1.0.0")
    assert entries_of(second)["1.1.0"].endswith("> Better words.")
    assert "Two." not in entries_of(second)["1.1.0"]


def test_a_previous_version_without_a_card_gets_an_entry(first: Path) -> None:
    second = pack_next(first, "1.1.0")
    write_card(second, FACTS, previous=first)
    assert entries_of(second)["1.0.0"].startswith("No changelog was kept until then: 60 crops")
    (first / "README.md").unlink()
    write_card(second, FACTS, previous=first)
    assert list(entries_of(second)) == ["1.1.0", "1.0.0"]


def test_a_page_of_the_version_before_does_not_pass_for_the_first(first: Path) -> None:
    write_card(first, FACTS)
    second = pack_next(first, "1.1.0")
    (second / "README.md").write_bytes((first / "README.md").read_bytes())
    with pytest.raises(PreviousVersionError, match="its README ends at 1.0.0.*--previous"):
        write_card(second, FACTS)


def test_a_copied_first_entry_is_counted_anew(first: Path) -> None:
    write_card(first, FACTS)
    page = (first / "README.md").read_text()
    (first / "README.md").write_text(page.replace("The first version: 60 crops", "The first version: 61 crops"))
    write_card(first, FACTS)
    assert (first / "README.md").read_text() == page


def test_a_previous_version_is_older(first: Path) -> None:
    second = pack_next(first, "1.1.0")
    for previous, folder in ((second, first), (first, first)):
        with pytest.raises(PreviousVersionError, match="that is version"):
            write_card(folder, FACTS, previous=previous)


def test_notes_cannot_add_a_version(first: Path) -> None:
    write_card(first, FACTS, notes="Hello.\n\n## Changelog\n\n### 9.9.9\n\nNo.\n---\n")
    page = (first / "README.md").read_text()
    assert changelog_versions(page) == ("1.0.0",)
    write_card(first, FACTS)
    assert (first / "README.md").read_text() == page


def test_facts_cannot_add_a_version(first: Path) -> None:
    facts = OwnerFacts("lab-1.0", "https://lab.org/l", limits="None.\n\n## Changelog\n\n### 9.9.9\n\nNo.")
    write_card(first, facts)
    assert changelog_versions((first / "README.md").read_text()) == ("1.0.0",)


def test_a_page_without_a_changelog_has_no_versions(first: Path) -> None:
    assert changelog_versions((first / "README.md").read_text()) == ()
    assert changelog_versions("") == ()
