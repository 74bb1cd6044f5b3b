"""The verbs of publishing, as a user types them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from entire_id.cli.main import app
from entire_id.errors import CardError, EntireIdError, HubError, PublishError
from entire_id.hub.publish import plan_publish, publish
from entire_id.hub.repo import HubRepo
from entire_id.shards.manifest import read_manifest

from hub_server import HubServer

NAME = "entire/entire-id"
FACTS = 'license_name = "lab-1.0"\nlicense_link = "https://lab.org/licence"\n'


def typed(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Return what a command says on stdout and stderr."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, EntireIdError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_a_plan_is_shown_saved_and_run(first: Path, hub_site: HubServer, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    out, err = typed("publish", first, NAME, "--plan", plan)
    assert "(to be made, private, gate manual)" in out
    assert "nothing was changed" in err
    assert f"next: entire-id publish {first} {NAME} --plan {plan} --apply" in err
    assert not hub_site.store.repos
    shown = json.loads(typed("publish", first, NAME, "--json")[0])
    assert shown == json.loads(plan.read_text())
    out, _ = typed("publish", first, NAME, "--plan", plan, "--apply", "--json")
    done = json.loads(out)
    assert (done["tag"], done["commit"]) == ("v1.0.0", hub_site.refs(NAME)["v1.0.0"])
    out, err = typed("publish", first, f"hf://datasets/{NAME}", "--apply")
    assert "0 files were sent" in err
    typed("publish", first, "entire/other", "--plan", plan, "--apply", code=2)
    typed("publish", first, f"{NAME}@v1.0.0", code=2)


def test_a_folder_of_the_repositorys_name_is_not_taken_for_it(
    first: Path, hub_site: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    typed("publish", first, NAME, "--apply")
    assert [one["version"] for one in json.loads(typed("versions", NAME, "--json")[0])] == ["1.0.0"]


def test_versions_verify_diff_and_rollback(
    first: Path, second: Path, hub_site: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (first, second):
        typed("publish", folder, NAME, "--apply")
    found = json.loads(typed("versions", NAME, "--json")[0])
    assert [(one["version"], one["is_main"]) for one in found] == [("1.1.0", True), ("1.0.0", False)]
    diff = json.loads(typed("diff", f"{NAME}@v1.0.0", second, "--json")[0])
    assert (diff["old_version"], diff["new_version"], diff["people_added"]) == ("1.0.0", "1.1.0", 1)
    assert "0 problems" in typed("verify", f"{NAME}@v1.0.0", "--deep")[1]
    hub_site.fail("damage", "GET .*/data/.*parquet")
    problems = json.loads(typed("verify", f"{NAME}@v1.1.0", "--deep", "--json", code=3)[0])["problems"]
    assert [one["kind"] for one in problems] == ["sha256"]
    typed("verify", f"{NAME}@v1.0.0", "--quick", code=2)
    typed("verify", first, "--deep", code=2)
    before = hub_site.refs(NAME)
    assert "nothing was changed" in typed("rollback", NAME, "v1.0.0")[1]
    assert hub_site.refs(NAME) == before
    assert "is version 1.0.0 again" in typed("rollback", NAME, "1.0.0", "--apply")[1]
    assert "is version 1.0.0 already" in typed("rollback", NAME, "v1.0.0")[1]


def test_who_is_erased_is_gone_from_the_hub(first: Path, second: Path, hub_site: HubServer, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(FACTS)
    for folder in (first, second):
        typed("publish", folder, NAME, "--apply")
    images = [path.read_bytes() for path in (tmp_path / "raw-more").glob("*/00007_*")]
    assert images
    out = tmp_path / "three"
    options = ("--person", "test/7", "--apply", NAME, "--facts", tmp_path / "card.toml")
    _, err = typed("erase", second, out, *options)
    assert read_manifest(out).version == "1.2.0"
    assert "deleted the tag v1.0.0" in err
    assert "whoever downloaded" in err
    assert set(hub_site.refs(NAME)) == {"main", "v1.2.0"}
    for file in (tmp_path / "hub-site").rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert not any(image in data for image in images), file
    assert "holds nothing but version 1.2.0" in typed("withdraw", NAME, "--keep", "v1.2.0")[1]
    with pytest.raises(PublishError, match=r"it is version 1\.1\.0, and 1\.2\.0 was published"):
        typed("publish", second, NAME, "--apply")


def test_withdrawing_is_planned_first(first: Path, second: Path, hub_site: HubServer) -> None:
    repo = HubRepo(NAME)
    for folder in (first, second):
        publish(folder, repo, plan_publish(folder, repo))
    before = hub_site.refs(NAME)
    out, err = typed("withdraw", NAME, "--keep", "1.1.0")
    assert "stored file" in out
    assert f"next, for good: entire-id withdraw {NAME} --keep v1.1.0 --apply" in err
    assert hub_site.refs(NAME) == before
    typed("withdraw", NAME, "--keep", "v1.1.0", "--apply")
    assert set(hub_site.refs(NAME)) == {"main", "v1.1.0"}


def test_erasing_on_the_hub_needs_a_card(first: Path, tmp_path: Path, hub_site: HubServer) -> None:
    for options in (("--apply", NAME), ("--facts", tmp_path / "card.toml")):
        typed("erase", first, tmp_path / "three", "--person", "test/7", *options, code=2)
    assert not (tmp_path / "three").exists()
    assert not hub_site.requests


def test_who_is_erased_must_be_on_the_hub_that_is_named(
    first: Path, second: Path, hub_site: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "card.toml").write_text(FACTS)
    typed("publish", first, NAME, "--apply")
    before = hub_site.refs(NAME)
    options = ("--person", "test/7", "--facts", tmp_path / "card.toml", "--apply")
    with pytest.raises(PublishError, match="there is no repository 'entire/typo'"):
        typed("erase", first, tmp_path / "three", *options, "entire/typo")
    with pytest.raises(PublishError, match=r"no version of 'entire/entire-id' has its content \(there are: 1\.0\.0\)"):
        typed("erase", second, tmp_path / "three", *options, NAME)
    (tmp_path / "card.toml").write_text("license_name = 3\n")
    with pytest.raises(CardError):
        typed("erase", first, tmp_path / "three", *options, NAME)
    assert not (tmp_path / "three").exists()
    assert hub_site.refs(NAME) == before


def test_a_card_that_names_the_erased_is_not_published(first: Path, hub_site: HubServer, tmp_path: Path) -> None:
    facts = tmp_path / "card.toml"
    facts.write_text(FACTS)
    typed("card", first, "--facts", facts, "--notes", "Thanks to the person test/7.")
    typed("publish", first, NAME, "--apply")
    before = hub_site.refs(NAME)
    with pytest.raises(PublishError, match="its card names 1 of the people"):
        typed("erase", first, tmp_path / "three", "--person", "test/7", "--facts", facts, "--apply", NAME)
    assert hub_site.refs(NAME) == before


def test_an_erasure_that_broke_is_gone_on_with_as_it_says(
    first: Path, hub_site: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    facts, out = tmp_path / "card.toml", tmp_path / "three"
    facts.write_text(FACTS)
    typed("publish", first, NAME, "--public", "--apply")
    hub_site.fail("500", "POST .*/commit/main", times=30)
    options = ("--person", "test/7", "--facts", facts, "--apply", NAME)
    done = CliRunner().invoke(app, ["erase", str(first), str(out), *map(str, options)])
    assert isinstance(done.exception, HubError)
    hub_site.faults.clear()
    lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("  entire-id ")]
    assert [line.split()[1] for line in lines] == ["card", "publish", "withdraw"]
    for line in lines:
        typed(*shlex.split(line)[1:])
    assert set(hub_site.refs(NAME)) == {"main", "v1.1.0"}
