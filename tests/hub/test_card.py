from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard

from entire_id.errors import DatasetNotFoundError, OutputExistsError
from entire_id.hub.card import NOT_STATED, Licence, licence_of, write_card
from entire_id.hub.facts import OwnerFacts
from entire_id.loading.hf import load
from entire_id.schema import COLUMNS
from entire_id.shards.configs import loading_rules, read_front_matter
from entire_id.shards.manifest import read_manifest
from entire_id.shards.repair import repair
from entire_id.shards.verify import verify
from entire_id.sources.layouts import open_source

from builders import crop_names, pack_folder, tree, write_crops

ROOT = Path(__file__).parents[2]
FACTS = OwnerFacts("lab-1.0", "https://lab.org/licence")
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def page_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_nothing_but_the_readme_changes(packed_any: Path) -> None:
    before = tree(packed_any)
    rules = loading_rules(page_of(packed_any))
    write_card(packed_any, FACTS)
    after = tree(packed_any)
    assert before.pop("README.md") != after.pop("README.md")
    assert before == after
    assert loading_rules(page_of(packed_any)) == rules
    assert verify(packed_any).problems == ()
    assert sorted(path.name for path in packed_any.parent.iterdir()) == ["crops", "entire-id"], "nothing is left beside"


def test_it_loads_as_before(packed_any: Path, tmp_path: Path) -> None:
    write_card(packed_any, FACTS)
    loaded = load(packed_any, split="query")
    assert len(loaded) == 12
    rows = datasets.load_dataset(str(packed_any), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in rows.items()} == {"query": 12, "gallery": 24}


def test_repair_leaves_it_alone(packed: Path, crops: Path) -> None:
    write_card(packed, FACTS)
    page = page_of(packed)
    (packed / "cameras.csv").write_text("")
    report = repair(packed, open_source(crops))
    assert report.restored == ("cameras.csv",)
    assert page_of(packed) == page


def test_the_code_that_it_shows_runs(packed_any: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(packed_any, FACTS)
    monkeypatch.chdir(packed_any.parent)
    blocks = CODE.findall(page_of(packed_any))
    assert len(blocks) == 3
    for code in blocks:
        exec(compile(code, "card", "exec"), {})


def test_with_a_repository_the_code_loads_that(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pack_folder(crops, tmp_path / "lab" / "people")
    write_card(folder, OwnerFacts("lab-1.0", "https://lab.org/licence", repository="lab/people"))
    monkeypatch.chdir(tmp_path)
    blocks = CODE.findall(page_of(folder))
    assert all("'lab/people'" in code for code in blocks)
    for code in blocks:
        exec(compile(code, "card", "exec"), {})


@pytest.mark.parametrize(
    ("names", "num_blocks"),
    [(["query/00000_c000s0_1.jpg"], 2), (["bounding_box_train/-1_c000s0_1.jpg"], 2)],
    ids=["query-alone", "junk-alone"],
)
def test_a_set_that_lacks_most_has_a_card_too(
    tmp_path: Path, names: list[str], num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    write_card(folder, FACTS)
    page = page_of(folder)
    assert "nothing is scored on it" in page
    assert ("There is no identity, only junk." in page) == ("-1" in names[0])
    assert "did not say on which continent" in page
    monkeypatch.chdir(tmp_path)
    blocks = CODE.findall(page)
    assert len(blocks) == num_blocks
    for code in blocks:
        exec(compile(code, "card", "exec"), {})


def test_a_continent_that_is_a_word_of_python_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = write_crops(tmp_path / "crops", crop_names())
    (crops / "cameras.csv").write_text("camid,continent\n0,as\n1,as\n21,as\n")
    folder = pack_folder(crops, tmp_path / "entire-id")
    write_card(folder, FACTS)
    monkeypatch.chdir(tmp_path)
    for code in CODE.findall(page_of(folder)):
        exec(compile(code, "card", "exec"), {})


def test_the_yaml_is_what_the_hub_asks_for(packed: Path) -> None:
    write_card(packed, OwnerFacts("lab-1.0", "https://lab.org/licence", "People", language=("tr",), tags=("street",)))
    card = DatasetCard.load(packed / "README.md").data.to_dict()
    assert card["pretty_name"] == "People"
    assert (card["license"], card["license_name"], card["license_link"]) == (
        "other",
        "lab-1.0",
        "https://lab.org/licence",
    )
    assert (card["language"], card["tags"]) == (["tr"], ["person-re-identification", "street"])
    assert card["task_categories"] == ["image-feature-extraction"]
    assert card["size_categories"] == ["n<1K"]
    assert card["version"] == read_manifest(packed).version
    assert card["viewer"] is False
    fields = card["extra_gated_fields"]
    assert {"text", "country", "checkbox"} == set(fields.values())
    boxes = " ".join(name for name, kind in fields.items() if kind == "checkbox")
    for words in ("research", "find out who", "pass neither"):
        assert words in boxes
    for words in ("Research use", "No re-identification of individuals", "No redistribution", "lab-1.0"):
        assert words in card["extra_gated_prompt"]
    assert card["extra_gated_prompt"] in page_of(packed).split("\n---\n")[1], "and readers see it too"


def test_what_the_owners_leave_out_is_said_to_be_missing(packed: Path) -> None:
    write_card(packed, FACTS)
    page = page_of(packed)
    for heading in ("How it was collected", "Consent", "Ethics", "Face blurring", "Limits", "Biases", "Citation"):
        assert page.split(f"# {heading}\n\n")[1].startswith(NOT_STATED), heading
    assert f"Write to: {NOT_STATED}\n\n{NOT_STATED}" in page


def test_what_the_owners_state_stands_there_as_it_is(packed: Path) -> None:
    texts = {
        "collection": "Over $5 and ${six} nights.",
        "consent": "Signs at the door.\n\nNobody was asked.",
        "erasure_contact": "erase@lab.org",
        "citation": "@inproceedings{x,\n  title={{A} \\& B}\n}",
        "face_blurring": "---\nBlurred {0} %s.",
    }
    write_card(packed, OwnerFacts("lab-1.0", "https://lab.org/licence", **texts))
    page = page_of(packed)
    for text in texts.values():
        assert text in page
    assert "Write to: erase@lab.org" in page
    assert "```bibtex\n@inproceedings{x,\n  title={{A} \\& B}\n}\n```" in page
    assert verify(packed).problems == ()


def test_every_number_of_the_test_set_is_there(packed: Path) -> None:
    write_card(packed, FACTS)
    page = page_of(packed)
    assert "36 crops of 4 identities" in page
    assert "| asia | 2 | 24 | 66.7 % | 4 |\n| europe | 1 | 12 | 33.3 % | 4 |" in page
    assert "Crops come from 3 cameras. `cameras.csv` lists 3: `camid`, `continent`, `scene`." in page
    assert "There is no train split" in page
    assert "Junk, crops of nobody in particular: none." in page
    assert "Distractors, identities of the gallery that no query looks for: 0, with 0 crops." in page
    assert "Here 0 of 12 queries are without a right crop." in page
    assert "- gallery: 4 identities, crops of each from 6 to 6, median 6." in page
    assert "- test: 4 identities, cameras of each from 3 to 3, median 3." in page
    assert "| 24 | 36 | ████████████████████ |" in page
    assert "| `europe` | query, gallery | 12 |" in page
    for column in COLUMNS:
        assert f"| `{column.name}` | {column.dtype} | {column.unit or '–'} |" in page
    assert f"sha256:{read_manifest(packed).content_sha256}" in page


def test_a_page_written_by_hand_is_not_replaced(packed: Path) -> None:
    page = page_of(packed) + "\nMy own words.\n"
    (packed / "README.md").write_text(page)
    with pytest.raises(OutputExistsError, match="README.md"):
        write_card(packed, FACTS)
    assert page_of(packed) == page
    (packed / "README.md").unlink()
    write_card(packed, FACTS)
    assert licence_of(page_of(packed)) == Licence("lab-1.0", "https://lab.org/licence")


def test_the_old_page_stays_where_the_new_one_cannot_be_made(packed: Path) -> None:
    page = page_of(packed)
    work = packed.with_name("entire-id.describing")
    work.mkdir()
    (work / "mine.txt").write_text("somebody's")
    with pytest.raises(OutputExistsError, match="entire-id.describing"):
        write_card(packed, FACTS)
    assert page_of(packed) == page
    assert (work / "mine.txt").exists()


def test_there_is_no_licence_where_none_is_stated(packed: Path) -> None:
    page = page_of(packed)
    assert licence_of(page) is None
    for front in ({"license": "mit"}, {"license": "other", "license_name": "x"}, {"license_name": "x"}, [1], "text"):
        assert licence_of(f"---\n{yaml.safe_dump(front)}---\n\n# Title\n") is None
    assert licence_of("---\nlicense: [\n---\n") is None


def test_yaml_ends_at_a_line_of_its_own() -> None:
    assert read_front_matter("---\na: x ---\nb: 1\n---\n\ntext\n---\n") == {"a": "x ---", "b": 1}


def test_there_must_be_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError):
        write_card(tmp_path, FACTS)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entire_id", "card", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_goes_from_the_example_to_the_card(packed: Path, tmp_path: Path) -> None:
    facts = tmp_path / "card.toml"
    facts.write_text(run("--example").stdout)
    done = run(packed, "--facts", facts)
    assert done.returncode == 1
    assert "license_name is ''" in done.stderr
    text = facts.read_text().replace('license_name = ""', 'license_name = "lab-1.0"')
    facts.write_text(text.replace('license_link = ""', 'license_link = "https://lab.org/licence"'))
    done = run(packed, "--facts", facts, "--notes", "Hello.")
    assert (done.returncode, done.stdout) == (0, "")
    assert "next: read it, then: entire-id verify" in done.stderr
    assert "> Hello." in page_of(packed)
    assert run(packed).returncode == run("--facts", facts).returncode == 2


def test_the_wheel_holds_the_templates_and_finds_them(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("entire_id/hub/templates/")}
        archive.extractall(tmp_path / "site")
    assert inside == {f"entire_id/hub/templates/{path.name}" for path in (ROOT / "card").iterdir()}
    assert not (tmp_path / "site" / "card").exists()
    code = (
        "from entire_id.hub.card import write_card; from entire_id.hub.facts import OwnerFacts\n"
        f"import sys; write_card({str(packed)!r}, OwnerFacts('lab-1.0', 'https://lab.org/licence'))\n"
        "print(sys.modules['entire_id'].__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert licence_of(page_of(packed)) is not None
