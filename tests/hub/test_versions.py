"""Versions of a repository, with the real client on a Hub on loopback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session

from entire_id.errors import ManifestError, PublishError, RemoteChangedError, RepositoryNotFoundError
from entire_id.hub.publish import plan_publish, publish
from entire_id.hub.repo import HubRepo
from entire_id.hub.versions import diff_versions, list_versions, plan_rollback, rollback, verify_revision
from entire_id.hub.withdraw import plan_withdrawal, withdraw
from entire_id.shards.diff import diff_folders
from entire_id.shards.manifest import read_manifest

from hub_server import STRANGER, HubServer, hub_server

NAME = "entire/entire-id"


@pytest.fixture
def published(first: Path, second: Path, hub_site: HubServer) -> HubRepo:
    """Versions 1.0.0 and 1.1.0."""
    repo = HubRepo(NAME)
    for folder in (first, second):
        publish(folder, repo, plan_publish(folder, repo))
    hub_site.requests.clear()
    return repo


def sizes(hub: HubServer, pattern: str) -> int:
    return sum(record.bytes_out for record in hub.asked(pattern))


def test_versions_are_listed_newest_first(published: HubRepo, first: Path, second: Path, hub_site: HubServer) -> None:
    newest, oldest = list_versions(published)
    assert (newest.version, newest.is_main, oldest.version, oldest.is_main) == ("1.1.0", True, "1.0.0", False)
    for found, folder in ((newest, second), (oldest, first)):
        manifest = read_manifest(folder)
        assert found.content_sha256 == manifest.content_sha256
        assert (found.crops, found.people) == (manifest.num_rows, 40)
        assert found.commit == hub_site.refs(NAME)[f"v{found.version}"]


def test_a_repository_without_versions_has_none(hub_site: HubServer) -> None:
    HfApi().create_repo(NAME, repo_type="dataset", private=True)
    assert list_versions(HubRepo(NAME)) == []
    with pytest.raises(RepositoryNotFoundError):
        list_versions(HubRepo("entire/nothing"))


def test_versions_differ_as_their_folders_do(
    published: HubRepo, first: Path, second: Path, hub_site: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = diff_folders(first, second)
    assert expected.people_added == expected.people_removed == 1
    assert diff_versions(f"{NAME}@v1.0.0", f"{NAME}@v1.1.0") == expected
    assert diff_versions(first, f"hf://datasets/{NAME}@v1.1.0") == expected
    assert not hub_site.asked("GET .*/data/"), "meta files say it all"
    kept = [shard.meta_path for shard in read_manifest(second).shards if shard in read_manifest(first).shards]
    assert kept
    assert not any(hub_site.asked(f"GET .*/{path}") for path in kept)


def test_a_revision_is_compared_without_its_shards(published: HubRepo, hub_site: HubServer) -> None:
    for revision in ("v1.0.0", "main", hub_site.refs(NAME)["v1.1.0"]):
        assert verify_revision(HubRepo(NAME), revision) == ()
    assert not hub_site.asked("GET .*parquet")
    assert verify_revision(HubRepo(NAME), "v1.0.0", deep=True) == ()
    total = sum(entry.bytes for entry in published.manifest("v1.0.0").files)
    assert sizes(hub_site, "GET .*/(data|meta)/") + 100 >= total - 100
    with pytest.raises(RepositoryNotFoundError):
        verify_revision(HubRepo(NAME), "v9.0.0")


def test_what_is_wrong_on_the_hub_is_found(published: HubRepo, second: Path, hub_site: HubServer) -> None:
    api, paths = HfApi(), [shard.path for shard in read_manifest(second).shards]
    other = (second / paths[0]).read_bytes()

    def put(data: bytes, path: str) -> None:
        api.upload_file(repo_id=NAME, repo_type="dataset", path_or_fileobj=data, path_in_repo=path)

    put(other[:-1] + b"?", paths[0])
    put(other + b"?", paths[1])
    api.delete_file(paths[2], NAME, repo_type="dataset")
    put(other, "data/query/asia-99999.parquet")
    put(b"camid,continent\n", "cameras.csv")
    api.delete_file("README.md", NAME, repo_type="dataset")
    found = {problem.where: problem.kind for problem in verify_revision(HubRepo(NAME))}
    assert found == {
        paths[0]: "sha256",
        paths[1]: "size",
        paths[2]: "missing",
        "data/query/asia-99999.parquet": "unlisted",
        "cameras.csv": found["cameras.csv"],
        "README.md": "missing",
    }
    assert found["cameras.csv"] in ("size", "sha256")
    put(b"{}", "manifest.json")
    assert [problem.kind for problem in verify_revision(HubRepo(NAME))] == ["manifest"]


def test_bytes_that_the_hub_lost_are_found_by_reading_them(published: HubRepo, hub_site: HubServer) -> None:
    hub_site.fail("damage", "GET .*/data/.*parquet")
    (problem,) = verify_revision(HubRepo(NAME), "v1.1.0", deep=True)
    assert problem.kind == "sha256"


# --- back -------------------------------------------------------------------------------------------------------------


def files_of(hub: HubServer, revision: str) -> dict[str, bytes]:
    return {path: hub.read(NAME, revision, path) for path in hub.tree(NAME, revision)}


def test_main_becomes_an_old_version_and_nothing_is_lost(published: HubRepo, hub_site: HubServer) -> None:
    before = hub_site.refs(NAME)
    plan = plan_rollback(published, "1.0.0")
    assert hub_site.refs(NAME) == before
    hub_site.requests.clear()
    commit = rollback(published, plan)
    assert files_of(hub_site, "main") == files_of(hub_site, "v1.0.0")
    assert {ref: sha for ref, sha in hub_site.refs(NAME).items() if ref != "main"} == {
        ref: sha for ref, sha in before.items() if ref != "main"
    }
    assert published.num_commits("main") == 4, "an initial one, two versions, and the way back"
    assert not hub_site.asked("^PUT")
    assert [one.is_main for one in list_versions(published)] == [False, True]
    again = plan_rollback(published, "1.0.0")
    assert (again.copy, again.delete, rollback(published, again)) == ((), (), commit)
    rollback(published, plan_rollback(published, "1.1.0"))
    assert files_of(hub_site, "main") == files_of(hub_site, "v1.1.0")


def test_only_versions_can_be_gone_back_to(published: HubRepo) -> None:
    with pytest.raises(RepositoryNotFoundError, match=r"no such version; there are: 1\.0\.0, 1\.1\.0"):
        plan_rollback(published, "2.0.0")


def test_who_moved_main_meanwhile_is_not_undone(published: HubRepo, hub_site: HubServer) -> None:
    plan = plan_rollback(published, "1.0.0")
    HfApi().upload_file(repo_id=NAME, repo_type="dataset", path_or_fileobj=b"x", path_in_repo="NOTICE.txt")
    with pytest.raises(RemoteChangedError):
        rollback(published, plan)
    assert "NOTICE.txt" in hub_site.tree(NAME)


# --- withdraw ---------------------------------------------------------------------------------------------------------


def test_nothing_but_one_version_is_left(published: HubRepo, first: Path, second: Path, hub_site: HubServer) -> None:
    old = hub_site.tree(NAME, "v1.0.0")
    old_commit = hub_site.refs(NAME)["v1.0.0"]
    kept = files_of(hub_site, "main")
    gone = {old[path].sha256 for path in old if old[path].sha256} - {
        file.sha256 for file in hub_site.tree(NAME).values() if file.sha256
    }
    assert gone
    plan = plan_withdrawal(published, "1.1.0")
    assert (plan.tags, plan.branches, plan.has_history) == (("v1.0.0",), (), True)
    assert all(hub_site.has_object(sha256) for sha256 in gone), "a plan changes nothing"
    report = withdraw(published, plan)
    assert not any(hub_site.has_object(sha256) for sha256 in gone)
    assert files_of(hub_site, "main") == files_of(hub_site, "v1.1.0") == kept
    refs = hub_site.refs(NAME)
    assert set(refs) == {"main", "v1.1.0"}
    assert refs["main"] == refs["v1.1.0"]
    assert published.num_commits("main") == published.num_commits("v1.1.0") == 1
    assert any("deleted the tag v1.0.0" in line for line in report.done)
    assert any("whoever downloaded" in line for line in report.remains)
    assert plan_withdrawal(published, "1.1.0").is_done
    with pytest.raises(Exception, match="404"):
        b"".join(published.chunks(next(path for path in old if old[path].sha256 in gone), old_commit))
    assert verify_revision(HubRepo(NAME), "v1.1.0", deep=True) == ()


def test_a_break_in_withdrawing_is_gone_on_after(
    published: HubRepo, hub_site: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    kept = files_of(hub_site, "main")
    for number in range(1, 40):
        hub_site.fail("lost", NAME, nth=number, times=6)
        try:
            withdraw(published, plan_withdrawal(published, "1.1.0"))
            ended = True
        except OSError:
            ended = False
        hub_site.faults.clear()
        if ended:
            break
    assert number >= 5
    assert files_of(hub_site, "main") == files_of(hub_site, "v1.1.0") == kept
    assert plan_withdrawal(published, "1.1.0").is_done


def test_what_main_holds_is_never_withdrawn(published: HubRepo, hub_site: HubServer) -> None:
    with pytest.raises(PublishError, match=r"main is version 1\.1\.0, not 1\.0\.0"):
        plan_withdrawal(published, "1.0.0")
    plan = plan_withdrawal(published, "1.1.0")
    HfApi().upload_file(repo_id=NAME, repo_type="dataset", path_or_fileobj=b"x", path_in_repo="NOTICE.txt")
    with pytest.raises(RemoteChangedError):
        withdraw(published, plan)
    assert "v1.0.0" in hub_site.refs(NAME)


def test_strangers_see_nothing_of_it(published: HubRepo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(RepositoryNotFoundError):
        list_versions(published)
    with pytest.raises(RepositoryNotFoundError):
        verify_revision(HubRepo(NAME), "v1.0.0")


def test_a_damaged_manifest_is_named(published: HubRepo, first: Path) -> None:
    HfApi().upload_file(repo_id=NAME, repo_type="dataset", path_or_fileobj=b"{", path_in_repo="manifest.json")
    shutil.copytree(first, first.with_name("copy"))
    with pytest.raises(ManifestError, match="no JSON"):
        diff_versions(first, f"{NAME}@main")


def remove(path: str) -> None:
    HfApi().delete_file(path, NAME, repo_type="dataset")


def test_a_damaged_main_is_not_what_is_kept(published: HubRepo, second: Path, hub_site: HubServer) -> None:
    shard = read_manifest(second).shards[0].path
    remove(shard)
    with pytest.raises(PublishError, match=f"1 problems, the first: {shard}.*rollback {NAME} v1.1.0"):
        plan_withdrawal(published, "1.1.0")
    rollback(published, plan_rollback(published, "1.1.0"))
    withdraw(published, plan_withdrawal(published, "1.1.0"))
    assert verify_revision(HubRepo(NAME), "v1.1.0", deep=True) == ()


def test_who_publishes_while_versions_are_withdrawn_stops_it(published: HubRepo, hub_site: HubServer) -> None:
    plan = plan_withdrawal(published, "1.1.0")
    HfApi().create_branch(NAME, branch="publish-v1.2.0", revision="v1.0.0", repo_type="dataset")
    with pytest.raises(RemoteChangedError, match=r"publish-v1\.2\.0 came since"):
        withdraw(published, plan)
    assert {"v1.0.0", "publish-v1.2.0"} <= set(hub_site.refs(NAME))


def test_a_readme_without_configs_is_a_problem(published: HubRepo) -> None:
    HfApi().upload_file(
        repo_id=NAME, repo_type="dataset", path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md"
    )
    (problem,) = verify_revision(HubRepo(NAME))
    assert (problem.kind, problem.where) == ("readme", "README.md")


def test_a_hub_that_breaks_down_is_not_taken_for_an_empty_one(
    published: HubRepo, hub_site: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub_site.fail("500", "manifest.json", times=50)
    with pytest.raises(OSError, match="500|cannot be reached"):
        list_versions(published)


def test_with_xet_too_withdrawn_files_are_gone(
    first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    with hub_server(tmp_path / "xet-site", xet=True) as hub:
        hub.patch_client(monkeypatch, tmp_path / "xet-home")
        repo = HubRepo(NAME)
        for folder in (first, second):
            publish(folder, repo, plan_publish(folder, repo))
        kept = {file.sha256 for file in hub.tree(NAME).values() if file.sha256}
        gone = {file.sha256 for file in hub.tree(NAME, "v1.0.0").values() if file.sha256} - kept
        withdraw(repo, plan_withdrawal(repo, "1.1.0"))
        assert gone
        assert not {sha256 for file in repo.stored() for sha256 in file.ids} & gone
        assert verify_revision(repo, "v1.1.0", deep=True) == ()
    close_session()
