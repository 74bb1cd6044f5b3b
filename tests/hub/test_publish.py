"""Publishing with the real client to a Hub on loopback that breaks at every request in turn."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, close_session, snapshot_download

from entire_id.errors import (
    EntireIdError,
    HubError,
    PublishError,
    RemoteChangedError,
    RepositoryNotFoundError,
    VersionExistsError,
)
from entire_id.hub.card import write_card
from entire_id.hub.facts import OwnerFacts
from entire_id.hub.publish import PublishConfig, plan_publish, publish, read_plan
from entire_id.hub.repo import Access, HubRepo
from entire_id.hub.versions import plan_rollback, rollback, verify_revision
from entire_id.shards.manifest import read_manifest

from builders import many_crops, pack_folder, tree
from hub_server import OWNER, READER, STRANGER, HubServer, hub_server

NAME = "entire/entire-id"
FACTS = OwnerFacts("lab-1.0", "https://lab.org/licence")


def ours(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in tree(folder).items() if data and not (folder / path).is_dir()}


def remote(hub: HubServer, revision: str) -> dict[str, bytes]:
    return {path: hub.read(NAME, revision, path) for path in hub.tree(NAME, revision) if path != ".gitattributes"}


def release(folder: Path, **options: object):
    repo = HubRepo(NAME)
    return publish(folder, repo, plan_publish(folder, repo, PublishConfig(**options)))


def sent(hub: HubServer) -> int:
    """Return the bytes of LFS objects that came."""
    return sum(record.bytes_in for record in hub.asked(r"^PUT /.*lfs"))


def test_a_version_is_private_gated_whole_and_tagged(first: Path, hub_site: HubServer) -> None:
    repo = HubRepo(NAME)
    plan = plan_publish(first, repo)
    assert f"datasets/{NAME}" not in hub_site.store.repos, "a plan changes nothing"
    assert (plan.parent, plan.access, plan.delete) == (None, Access(private=True, gate="manual"), ())
    assert set(plan.add) == set(ours(first))
    assert plan.upload_bytes == sum(map(len, ours(first).values()))
    done = publish(first, repo, plan)
    assert (hub_site.repo(NAME).private, hub_site.repo(NAME).gated) == (True, "manual")
    assert remote(hub_site, "main") == remote(hub_site, "v1.0.0") == ours(first)
    assert hub_site.refs(NAME) == {"main": done.commit, "v1.0.0": done.commit}, "no branch is left"
    assert set(done.uploaded) == set(ours(first))


def test_publishing_it_again_changes_and_sends_nothing(first: Path, hub_site: HubServer) -> None:
    release(first)
    before = hub_site.refs(NAME)
    hub_site.requests.clear()
    repo = HubRepo(NAME)
    plan = plan_publish(first, repo)
    assert (plan.add, plan.delete, plan.upload_bytes, plan.is_published) == ((), (), 0, True)
    assert publish(first, repo, plan).uploaded == ()
    assert hub_site.refs(NAME) == before
    assert not hub_site.asked("^PUT|commit|^DELETE")


def test_the_next_version_sends_only_what_changed(first: Path, second: Path, hub_site: HubServer) -> None:
    release(first)
    hub_site.requests.clear()
    repo = HubRepo(NAME)
    plan = plan_publish(second, repo)
    kept = [path for path, data in ours(second).items() if ours(first).get(path) == data]
    assert len(kept) >= 4, "some shards are as they were"
    assert not set(kept) & set(plan.add)
    publish(second, repo, plan)
    changed = [path for path in ours(second) if path not in kept and path.endswith(".parquet")]
    assert sent(hub_site) == sum(len(ours(second)[path]) for path in changed) < plan.upload_bytes
    assert remote(hub_site, "v1.0.0") == ours(first)
    assert remote(hub_site, "v1.1.0") == remote(hub_site, "main") == ours(second)


def test_two_percent_more_people_send_less_than_five_percent(tmp_path: Path, hub_site: HubServer) -> None:
    raw, rng = many_crops(tmp_path / "many", 400, 6), np.random.default_rng(0)
    for path in sorted(raw.glob("*/*")):
        path.write_bytes(path.read_bytes() + rng.bytes(3_000))  # as large as small crops are
    late = [path for path in raw.glob("*/*") if int(path.name[:5]) >= 392]
    aside = [(path, path.read_bytes()) for path in late]
    for path in late:
        path.unlink()
    old = pack_folder(raw, tmp_path / "old", version="1.0.0", shard_rows=400)
    write_card(old, FACTS)
    for path, data in aside:
        path.write_bytes(data)
    new = pack_folder(raw, tmp_path / "new", version="1.1.0", shard_rows=400, previous=old)
    write_card(new, FACTS, previous=old)
    release(old)
    hub_site.requests.clear()
    release(new)
    whole = sum(map(len, ours(new).values()))
    assert read_manifest(new).splits["gallery"].people == 400
    assert sum(record.bytes_in for record in hub_site.requests) < 0.05 * whole


def test_shards_that_a_version_has_no_more_leave_main(
    raw: Path, first: Path, tmp_path: Path, hub_site: HubServer
) -> None:
    release(first)
    repo = HubRepo(NAME)
    api = HfApi()
    api.upload_file(
        repo_id=NAME, repo_type="dataset", path_or_fileobj=b"by hand", path_in_repo="NOTICE.txt", commit_message="x"
    )
    for path in raw.glob("query/*"):
        path.unlink()
    folder = pack_folder(raw, tmp_path / "two", version="2.0.0", shard_rows=40, previous=first)
    write_card(folder, FACTS, previous=first)
    plan = plan_publish(folder, repo)
    assert {path.split("/")[1] for path in plan.delete} == {"query"}
    assert plan.others == (".gitattributes", "NOTICE.txt")
    publish(folder, repo, plan)
    assert remote(hub_site, "main") == ours(folder) | {"NOTICE.txt": b"by hand"}


# --- breaks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drop", "lost"])
def test_a_break_at_any_request_is_gone_on_after(
    kind: str, first: Path, second: Path, hub_site: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that the client repeats by itself break as often as it asks."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    release(first)
    names = iter(range(10_000))
    hub_site.requests.clear()
    name = f"entire/set-{next(names)}"
    publish(second, HubRepo(name), plan_publish(second, HubRepo(name)))
    pattern = f"{name}|/repos/create|/_lfs|/lfs/|/whoami|validate-yaml"
    asked = hub_site.asked(pattern)
    assert len(asked) >= 30
    # An answer that is lost says as little as a question that is, but where something was done.
    numbers = [at for at, record in enumerate(asked, 1) if kind == "drop" or record.method not in ("GET", "HEAD")]
    expected = ours(second)
    messages = []
    for number in numbers:
        name = f"entire/set-{next(names)}"
        hub_site.fail(kind, f"{name}|/repos/create|/_lfs|/lfs/|/whoami|validate-yaml", nth=number, times=6)
        try:
            publish(second, HubRepo(name), plan_publish(second, HubRepo(name)))
        except (HubError, RepositoryNotFoundError) as error:
            messages.append(str(error))
        hub_site.faults.clear()
        publish(second, HubRepo(name), plan_publish(second, HubRepo(name)))
        refs = hub_site.refs(name)
        assert set(refs) == {"main", "v1.1.0"}, number
        assert refs["main"] == refs["v1.1.0"]
        found = {path: hub_site.read(name, "main", path) for path in hub_site.tree(name) if path != ".gitattributes"}
        assert found == expected
        assert (hub_site.repo(name).private, hub_site.repo(name).gated) == (True, "manual")
    assert len(messages) >= 10
    assert not any(OWNER in message for message in messages)


def test_main_never_shows_half_a_version(first: Path, second: Path, hub_site: HubServer) -> None:
    release(first)
    repo = HubRepo(NAME)
    plan = plan_publish(second, repo)
    hub_site.fail("500", "POST /api/datasets/.*/commit/main", times=20)
    with pytest.raises(HubError, match="type the same command again"):
        publish(second, repo, plan)
    assert remote(hub_site, "main") == ours(first)
    assert "v1.1.0" not in hub_site.refs(NAME)
    hub_site.faults.clear()
    hub_site.requests.clear()
    assert publish(second, repo, plan).uploaded == (), "what was sent is there"
    assert remote(hub_site, "main") == ours(second)


def test_bytes_that_came_wrong_are_noticed_before_main_moves(
    first: Path, hub_site: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = HubRepo(NAME)
    plan = plan_publish(first, repo)
    shard = next(path for path in plan.add if path.startswith("data/"))
    (first / shard).write_bytes((first / shard).read_bytes()[:-1] + b"?")  # changed after the plan was made
    with pytest.raises(HubError, match=f"1 files are not those of the manifest: {shard}"):
        publish(first, repo, plan)
    assert set(hub_site.tree(NAME, "main")) == {".gitattributes"}


# --- somebody else ----------------------------------------------------------------------------------------------------


def test_of_two_at_once_one_gets_a_conflict(first: Path, second: Path, hub_site: HubServer) -> None:
    release(first)
    plans = [plan_publish(second, HubRepo(NAME)) for _ in range(2)]
    barrier, results = threading.Barrier(2), []

    def run(plan) -> None:
        barrier.wait()
        try:
            results.append(publish(second, HubRepo(NAME), plan))
        except EntireIdError as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert remote(hub_site, "main") == remote(hub_site, "v1.1.0") == ours(second)
    errors = [result for result in results if isinstance(result, EntireIdError)]
    assert all(isinstance(error, (RemoteChangedError, HubError)) for error in errors), errors
    assert len(errors) <= 1


def test_a_plan_is_for_what_it_saw(first: Path, second: Path, tmp_path: Path, hub_site: HubServer) -> None:
    release(first)
    repo = HubRepo(NAME)
    (tmp_path / "plan.json").write_text(plan_publish(second, repo).to_json())
    plan = read_plan(tmp_path / "plan.json")
    assert plan == plan_publish(second, repo)
    HfApi().upload_file(repo_id=NAME, repo_type="dataset", path_or_fileobj=b"x", path_in_repo="NOTICE.txt")
    with pytest.raises(RemoteChangedError, match="the plan saw"):
        publish(second, repo, plan)
    assert "v1.1.0" not in hub_site.refs(NAME)
    assert "publish-v1.1.0" not in hub_site.refs(NAME)
    (second / "README.md").write_text("other")
    with pytest.raises(PublishError, match=r"README.md is not the one that the plan was made for"):
        publish(second, repo, plan_of(plan, parent=hub_site.refs(NAME)["main"]))


def plan_of(plan, **changes: object):
    return dataclasses.replace(plan, **changes)


def test_a_version_is_published_once(raw: Path, first: Path, tmp_path: Path, hub_site: HubServer) -> None:
    release(first)
    plan = plan_publish(first, HubRepo(NAME))
    next(raw.glob("query/*")).unlink()
    other = pack_folder(raw, tmp_path / "other", version="1.0.0", shard_rows=40)
    write_card(other, FACTS)
    with pytest.raises(VersionExistsError, match=r"version 1\.0\.0 with other content"):
        plan_publish(other, HubRepo(NAME))
    planned = plan_publish(other, HubRepo("entire/else"))
    with pytest.raises(VersionExistsError):
        publish(other, HubRepo(NAME), plan_of(planned, repo=NAME, parent=plan.parent))


def test_who_may_see_it_is_as_planned(first: Path, second: Path, hub_site: HubServer) -> None:
    plan = plan_publish(first, HubRepo(NAME))
    HfApi().create_repo(NAME, repo_type="dataset", private=False)
    with pytest.raises(RemoteChangedError, match="public, gate manual, and private, gate manual was planned"):
        publish(first, HubRepo(NAME), plan)
    assert set(hub_site.tree(NAME)) == {".gitattributes"}
    HfApi().update_repo_settings(NAME, repo_type="dataset", private=True)
    publish(first, HubRepo(NAME), plan)
    plan = plan_publish(second, HubRepo(NAME))
    HfApi().update_repo_settings(NAME, repo_type="dataset", private=False, gated=False)
    with pytest.raises(RemoteChangedError, match="public, gate none"):
        publish(second, HubRepo(NAME), plan)
    assert set(hub_site.refs(NAME)) == {"main", "v1.0.0"}


def test_small_files_are_those_of_the_manifest(first: Path, hub_site: HubServer) -> None:
    plan = plan_publish(first, HubRepo(NAME))
    cameras = (first / "cameras.csv").read_bytes()
    (first / "cameras.csv").write_bytes(cameras.swapcase())
    with pytest.raises(HubError, match=r"not those of the manifest: cameras\.csv"):
        publish(first, HubRepo(NAME), plan)
    assert set(hub_site.refs(NAME)) == {"main", "publish-v1.0.0"}
    (first / "cameras.csv").write_bytes(cameras)
    publish(first, HubRepo(NAME), plan)
    assert remote(hub_site, "v1.0.0") == ours(first)


def test_another_data_set_is_not_published_over_it(raw: Path, first: Path, tmp_path: Path, hub_site: HubServer) -> None:
    release(first)
    other = pack_folder(raw, tmp_path / "other", name="hospital", version="2.0.0")
    write_card(other, FACTS)
    with pytest.raises(PublishError, match="holds the data set 'entire-id', and this is 'hospital'"):
        plan_publish(other, HubRepo(NAME))


def test_a_version_that_main_left_is_there_all_the_same(first: Path, second: Path, hub_site: HubServer) -> None:
    for folder in (first, second):
        release(folder)
    rollback(HubRepo(NAME), plan_rollback(HubRepo(NAME), "1.0.0"))
    plan = plan_publish(second, HubRepo(NAME))
    assert (plan.is_published, plan.add, plan.delete, plan.upload_bytes) == (True, (), (), 0)
    publish(second, HubRepo(NAME), plan)
    assert remote(hub_site, "main") == ours(first)


@pytest.mark.parametrize("token", ["hf_tökén", "hf_\n"])
def test_a_token_that_cannot_be_is_not_shown(
    token: str, first: Path, hub_site: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((HubError, RepositoryNotFoundError, PublishError)) as caught:
        release(first)
    assert "hf_" not in str(caught.value).replace("hf_auth", "")


# --- what is not published --------------------------------------------------------------------------------------------


def test_what_is_not_sound_is_not_published(first: Path, hub_site: HubServer) -> None:
    (first / "secret.key").write_bytes(b"s" * 32)
    with pytest.raises(PublishError, match=r"1 problems, the first: secret\.key: .*entire-id verify"):
        plan_publish(first, HubRepo(NAME))
    assert not hub_site.requests


def test_without_a_licence_nothing_is_published(raw: Path, tmp_path: Path, hub_site: HubServer) -> None:
    folder = pack_folder(raw, tmp_path / "bare")
    with pytest.raises(PublishError, match=r"no licence\. Make a card: entire-id card --example"):
        plan_publish(folder, HubRepo(NAME))
    assert not hub_site.requests


def test_a_changelog_leaves_no_version_out(first: Path, second: Path, hub_site: HubServer) -> None:
    release(first)
    (second / "README.md").unlink()
    write_card(second, FACTS)
    with pytest.raises(PublishError, match=r"leaves out v1\.0\.0.*--previous OLD"):
        plan_publish(second, HubRepo(NAME))


def test_an_old_version_does_not_come_back(first: Path, second: Path, hub_site: HubServer) -> None:
    release(second)
    with pytest.raises(PublishError, match=r"it is version 1\.0\.0, and 1\.1\.0 was published"):
        plan_publish(first, HubRepo(NAME))


def test_a_public_repository_must_be_meant(first: Path, hub_site: HubServer) -> None:
    HfApi().create_repo(NAME, repo_type="dataset", private=False)
    with pytest.raises(PublishError, match="everybody may see 'entire/entire-id'. Make it private, or say --public"):
        plan_publish(first, HubRepo(NAME))
    release(first, public=True)
    assert (hub_site.repo(NAME).private, hub_site.repo(NAME).gated) == (False, "manual"), "it is gated all the same"


def test_gates_that_owners_chose_stay(first: Path, second: Path, hub_site: HubServer) -> None:
    release(first, gate="auto")
    assert not plan_publish(second, HubRepo(NAME)).sets_gate
    release(second)
    assert hub_site.repo(NAME).gated == "auto"


def test_a_script_that_datasets_refuses_is_named(first: Path, hub_site: HubServer) -> None:
    HfApi().create_repo(NAME, repo_type="dataset", private=True)
    HfApi().upload_file(repo_id=NAME, repo_type="dataset", path_or_fileobj=b"x", path_in_repo="entire-id.py")
    with pytest.raises(PublishError, match=r"entire-id\.py, for which `datasets` refuses"):
        plan_publish(first, HubRepo(NAME))


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [READER, STRANGER, "hf_nobody"])
def test_who_may_not_write_is_told_and_no_token_is(
    token: str,
    first: Path,
    second: Path,
    hub_site: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    release(first)
    monkeypatch.setenv("HF_TOKEN", token)
    repo = HubRepo(NAME)
    with pytest.raises((HubError, RepositoryNotFoundError)) as caught:
        publish(second, repo, plan_publish(second, repo))
    said = "".join([str(caught.value), repr(caught.value), caplog.text, *capfd.readouterr()])
    assert token not in said
    assert OWNER not in said
    assert "v1.1.0" not in hub_site.refs(NAME)


def test_a_plan_holds_no_token(first: Path, hub_site: HubServer) -> None:
    text = plan_publish(first, HubRepo(NAME)).to_json()
    assert OWNER not in text
    assert json.loads(text)["content_sha256"] == read_manifest(first).content_sha256


@pytest.mark.parametrize("text", ["", "[]", '{"plan": 2}', '{"plan": 1, "files": []}'])
def test_what_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PublishError, match="no plan of this version of entire-id"):
        read_plan(tmp_path / "plan.json")


# --- Xet, and a process of its own ------------------------------------------------------------------------------------


def test_with_xet_versions_come_and_go_as_they_are(
    first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    with hub_server(tmp_path / "xet-site", xet=True) as hub:
        hub.patch_client(monkeypatch, tmp_path / "xet-home")
        release(first)
        whole = hub.store.stored_chunks()
        release(second)
        assert 0 < hub.store.stored_chunks() - whole < whole
        assert not hub.asked("^PUT .*lfs"), "no file travels as a whole"
        for version, folder in (("v1.0.0", first), ("v1.1.0", second)):
            local = snapshot_download(NAME, repo_type="dataset", revision=version)
            found = {path: (Path(local) / path).read_bytes() for path in ours(folder)}
            assert found == ours(folder)
        assert verify_revision(HubRepo(NAME), "v1.1.0", deep=True) == ()
    close_session()


@pytest.mark.parametrize("place", [r"PUT /", r"POST .*/commit/publish", r"POST .*/commit/main", r"POST .*/tag/"])
def test_a_killed_process_is_gone_on_after(place: str, first: Path, hub_site: HubServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "entire_id", "publish", str(first), NAME, "--apply"]
    environment = os.environ | hub_site.environment(tmp_path / "home-of-process")
    slow = hub_site.fail("slow", place, delay_s=30)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not slow.seen and time.monotonic() < deadline:
            time.sleep(0.02)
        assert slow.seen
        process.kill()
    finally:
        process.kill()
        process.wait()
    assert "v1.0.0" not in hub_site.refs(NAME)
    hub_site.faults.clear()
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert remote(hub_site, "v1.0.0") == remote(hub_site, "main") == ours(first)
    assert OWNER not in done.stdout + done.stderr
