from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    close_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, parse_ratelimit_headers

from hub_server import OWNER, READER, STRANGER, Account, HubServer, hub_server
from hub_store import _unpack, find_xet_file

REPO = "owner/entire-id"
DATASET = {"repo_id": REPO, "repo_type": "dataset"}
ALL = {"repo_type": "dataset", "repo_id": REPO, "revision": "main"}
README = "---\nlicense: mit\n---\nFaces blurred.\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(tmp_path / "site") as hub:
        hub.patch_client(monkeypatch, tmp_path / "home")
        yield hub
    close_session()


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    """A client of the owner, with an empty repository."""
    api = HfApi(endpoint=hub.url, token=OWNER)
    api.create_repo(**DATASET)
    return api


def client(hub: HubServer, token: str | bool) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def put(api: HfApi, files: dict[str, bytes | str], **options: object) -> str:
    """Commit and return the commit's sha."""
    operations = [
        CommitOperationAdd(path, data.encode() if isinstance(data, str) else data) for path, data in files.items()
    ]
    return api.create_commit(**DATASET, operations=operations, commit_message="new", **options).oid


def bytes_of(seed: int, size: int = 50_000) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def error(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError):
    return pytest.raises(kind, check=lambda raised: raised.response.status_code == status)


# Accounts, repositories, access


def test_accounts(hub, api):
    assert api.whoami()["name"] == "owner"
    assert [org["name"] for org in api.whoami()["orgs"]] == ["entire"]
    with error(401):
        client(hub, "hf_none").whoami()
    hub.tokens["hf_none"] = Account("new")
    assert client(hub, "hf_none").whoami()["name"] == "new"


def test_create_and_delete(hub, api):
    url = api.create_repo("entire/entire-id", repo_type="dataset", private=True)
    assert url == f"{hub.url}/datasets/entire/entire-id"
    with error(409):
        api.create_repo("entire/entire-id", repo_type="dataset")
    api.create_repo("entire/entire-id", repo_type="dataset", exist_ok=True)
    assert api.dataset_info("entire/entire-id").private
    assert not api.dataset_info(REPO).private
    assert hub.tree("entire/entire-id").keys() == {".gitattributes"}
    with error(403):
        api.create_repo("stranger/entire-id", repo_type="dataset")
    with error(403):
        client(hub, STRANGER).delete_repo(**DATASET)
    api.delete_repo(**DATASET)
    with error(404, RepositoryNotFoundError):
        api.dataset_info(REPO)
    with error(404, RepositoryNotFoundError):
        api.delete_repo(**DATASET)


def test_a_private_repository_is_not_there_for_others(hub, api):
    put(api, {"a.txt": "a"})
    api.update_repo_settings(**DATASET, private=True)
    for token, status in ((False, 401), (STRANGER, 404)):
        with error(status, RepositoryNotFoundError):
            client(hub, token).dataset_info(REPO)
        with error(status, RepositoryNotFoundError):
            client(hub, token).hf_hub_download(REPO, "a.txt", repo_type="dataset")
        with error(status, RepositoryNotFoundError):
            client(hub, token).auth_check(**DATASET)
    assert Path(client(hub, READER).hf_hub_download(REPO, "a.txt", repo_type="dataset")).read_text() == "a"
    api.update_repo_settings(**DATASET, private=False)
    assert client(hub, False).dataset_info(REPO).id == REPO


def test_a_gated_repository_gives_files_to_whom_it_is_granted(hub, api):
    put(api, {"a.txt": "a"})
    api.update_repo_settings(**DATASET, gated="manual")
    assert client(hub, False).dataset_info(REPO).gated == "manual"
    for token, status in ((False, 401), (STRANGER, 403)):
        with error(status, GatedRepoError):
            client(hub, token).hf_hub_download(REPO, "a.txt", repo_type="dataset")
        with error(status, GatedRepoError):
            client(hub, token).auth_check(**DATASET)
    hub.ask_access(REPO, "stranger")
    assert [asked.username for asked in api.list_pending_access_requests(**DATASET)] == ["stranger"]
    api.reject_access_request(**DATASET, user="stranger", rejection_reason=None)
    with error(403, GatedRepoError):
        client(hub, STRANGER).auth_check(**DATASET)
    api.grant_access(**DATASET, user="stranger")
    assert [asked.status for asked in api.list_accepted_access_requests(**DATASET)] == ["accepted"]
    assert client(hub, STRANGER).hf_hub_download(REPO, "a.txt", repo_type="dataset")
    with error(404):
        api.grant_access(**DATASET, user="nobody")


def test_who_may_write(hub, api):
    for token, status in ((READER, 403), (STRANGER, 403), (False, 401)):
        with error(status):
            put(client(hub, token), {"a.txt": "a"})
        with error(status):
            client(hub, token).create_tag(**DATASET, tag="v1")
        with error(status):
            client(hub, token).auth_check(**DATASET, write=True)
    assert hub.tree(REPO).keys() == {".gitattributes"}
    api.auth_check(**DATASET, write=True)


# Commits, refs, lists


def test_upload_folder_once_and_again(hub, api, tmp_path):
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    (folder / "data" / "a.parquet").write_bytes(bytes_of(1))
    (folder / "b.tar").write_bytes(bytes_of(2))
    first = api.upload_folder(**DATASET, folder_path=folder).oid
    files = hub.tree(REPO)
    assert files.keys() == {".gitattributes", "README.md", "data/a.parquet", "b.tar"}
    assert files["b.tar"].sha256 == sha256(bytes_of(2))
    assert files["README.md"].sha256 == ""
    assert hub.read(REPO, "main", "data/a.parquet") == bytes_of(1)
    assert sum(record.bytes_in for record in hub.asked("^PUT ")) == 100_000

    assert api.upload_folder(**DATASET, folder_path=folder).oid == first
    (folder / "c.tar").write_bytes(bytes_of(2))
    assert api.upload_folder(**DATASET, folder_path=folder).oid != first
    assert len(hub.asked("^PUT ")) == 2


def test_an_object_of_other_bytes_is_refused(hub, api):
    with httpx2.Client() as http:
        url = f"{hub.url}/lfs/datasets/{REPO}/{sha256(b'a')}"
        assert http.put(url, content=b"b").status_code == 400
        assert not hub.has_object(sha256(b"a"))
        assert http.put(url, content=iter([b"", b"a"])).status_code == 200  # in chunks
    verify = f"{hub.url}/lfs/datasets/{REPO}/verify"
    headers = build_hf_headers(token=OWNER)
    assert httpx2.post(verify, headers=headers, json={"oid": sha256(b"a"), "size": 1}).status_code == 200
    assert httpx2.post(verify, headers=headers, json={"oid": sha256(b"a"), "size": 2}).status_code == 422


def test_objects_in_parts(hub, api):
    hub.multipart_bytes = 20_000
    put(api, {"a.tar": bytes_of(1), "b.tar": bytes_of(2, 20_000)})
    assert hub.read(REPO, "main", "a.tar") == bytes_of(1)
    assert [record.bytes_in for record in hub.asked("^PUT .*/[0-9]$")] == [20_000, 20_000, 10_000]
    assert len(hub.asked("^PUT ")) == 4


def test_a_stale_parent_is_refused(hub, api):
    first = put(api, {"a.txt": "a"})
    second = put(api, {"a.txt": "b"}, parent_commit=first)
    with error(412):
        put(api, {"a.txt": "c"}, parent_commit=first)
    assert hub.refs(REPO) == {"main": second}
    assert hub.read(REPO, first, "a.txt") == b"a"


def test_deletions_and_copies(hub, api):
    put(api, {"a/1.txt": "1", "a/2.tar": bytes_of(1), "b.txt": "b"})
    old = hub.refs(REPO)["main"]
    api.create_commit(
        **DATASET,
        commit_message="less",
        operations=[
            CommitOperationCopy("a/2.tar", "c.tar"),
            CommitOperationCopy("b.txt", "c.txt"),
            CommitOperationDelete("a/"),
            CommitOperationDelete("b.txt"),
        ],
    )
    assert hub.tree(REPO).keys() == {".gitattributes", "c.tar", "c.txt"}
    assert hub.read(REPO, "main", "c.tar") == bytes_of(1)
    with error(404, RemoteEntryNotFoundError):
        api.delete_file("none.txt", **DATASET)
    back = [CommitOperationCopy(path, path, src_revision=old) for path in ("a/1.txt", "a/2.tar")]
    api.create_commit(**DATASET, operations=back, commit_message="back")
    assert hub.read(REPO, "main", "a/2.tar") == bytes_of(1)
    assert len(hub.asked("^PUT ")) == 1


def test_branches_and_tags(hub, api):
    first = put(api, {"a.txt": "a"})
    api.create_branch(**DATASET, branch="next/1")
    second = put(api, {"a.txt": "b"}, revision="next/1")
    api.create_tag(**DATASET, tag="v1.0.0", revision=first)
    api.create_branch(**DATASET, branch="old", revision="v1.0.0")
    with error(409):
        api.create_branch(**DATASET, branch="old")
    with error(409):
        api.create_tag(**DATASET, tag="v1.0.0", revision="next/1")
    with error(404, RevisionNotFoundError):
        api.create_tag(**DATASET, tag="v2.0.0", revision="none")
    assert hub.refs(REPO) == {"main": first, "next/1": second, "old": first, "v1.0.0": first}
    refs = api.list_repo_refs(**DATASET, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "next/1": second, "old": first}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1.0.0", "refs/tags/v1.0.0", first)]
    api.delete_tag(**DATASET, tag="v1.0.0")
    api.delete_branch(**DATASET, branch="next/1")
    assert hub.refs(REPO) == {"main": first, "old": first}
    with error(404, RevisionNotFoundError):
        api.delete_tag(**DATASET, tag="v1.0.0")
    with error(403):
        api.delete_branch(**DATASET, branch="main")
    assert hub.read(REPO, second, "a.txt") == b"b"
    hub.collect_garbage()
    with error(404, RevisionNotFoundError):
        api.dataset_info(REPO, revision=second)


def test_lists_come_in_pages(hub, api):
    put(api, {f"data/train/{number}.txt": str(number) for number in range(7)} | {"a.tar": bytes_of(1)})
    hub.page_size = 3
    paths = [found.path for found in api.list_repo_tree(**DATASET, recursive=True)]
    assert paths == sorted({*hub.tree(REPO), "data", "data/train"})
    assert len(hub.asked("/tree/main$")) == 4
    assert [found.path for found in api.list_repo_tree(**DATASET)] == [".gitattributes", "a.tar", "data"]
    assert len([*api.list_repo_tree(**DATASET, path_in_repo="data/train")]) == 7
    with error(404, RemoteEntryNotFoundError):
        next(iter(api.list_repo_tree(**DATASET, path_in_repo="none")))
    for number in range(3):
        put(api, {"b.txt": str(number)})
    commits = api.list_repo_commits(**DATASET)
    assert [commit.title for commit in commits] == ["new"] * 4 + ["initial commit"]
    assert commits[0].authors == ["owner"]


def test_details_of_files(hub, api):
    first = put(api, {"data/a.tar": bytes_of(1), "b.txt": "b"})
    second = put(api, {"b.txt": "c"})
    found = {
        info.path: info
        for info in api.get_paths_info(**DATASET, paths=["data", "data/a.tar", "b.txt", "x"], expand=True)
    }
    assert {path: info.last_commit.oid for path, info in found.items()} == {
        "data": first,
        "data/a.tar": first,
        "b.txt": second,
    }
    assert found["data/a.tar"].lfs.sha256 == sha256(bytes_of(1))
    info = api.dataset_info(REPO, files_metadata=True)
    assert info.sha == second
    assert {sibling.rfilename: sibling.size for sibling in info.siblings}["data/a.tar"] == 50_000
    assert api.dataset_info(REPO, expand=["usedStorage", "gated"]).used_storage == 50_000


def test_a_card_that_is_no_yaml_is_refused(hub, api):
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        put(api, {"README.md": "---\na: [\n---\n"})
    put(api, {"README.md": README})


def test_squash(hub, api):
    first = put(api, {"a.tar": bytes_of(1)})
    put(api, {"a.tar": bytes_of(2)})
    api.super_squash_history(**DATASET)
    assert len(api.list_repo_commits(**DATASET)) == 1
    assert hub.read(REPO, "main", "a.tar") == bytes_of(2)
    assert hub.read(REPO, first, "a.tar") == bytes_of(1)
    hub.collect_garbage()
    with error(404, RevisionNotFoundError):
        api.hf_hub_download(REPO, "a.tar", repo_type="dataset", revision=first)
    assert hub.has_object(sha256(bytes_of(1)))


@pytest.mark.parametrize("rewrite", [True, False])
def test_objects_are_deleted_for_good(hub, api, rewrite):
    first = put(api, {"a.tar": bytes_of(1), "b.tar": bytes_of(2)})
    api.create_tag(**DATASET, tag="v1.0.0")
    put(api, {"a.tar": bytes_of(3)})
    api.create_repo("owner/other", repo_type="dataset")
    api.create_commit(
        "owner/other", [CommitOperationAdd("b.tar", bytes_of(2))], commit_message="new", repo_type="dataset"
    )
    gone = {sha256(bytes_of(1)), sha256(bytes_of(2))}
    files = [file for file in api.list_lfs_files(**DATASET) if file.file_oid in gone]
    assert {file.filename: file.size for file in files} == {"a.tar": 50_000, "b.tar": 50_000}
    api.permanently_delete_lfs_files(REPO, files, repo_type="dataset", rewrite_history=rewrite)
    assert not hub.has_object(sha256(bytes_of(1)))
    assert hub.has_object(sha256(bytes_of(2)))  # the other repository's
    assert [file.file_oid for file in api.list_lfs_files(**DATASET)] == [sha256(bytes_of(3))]
    assert hub.tree(REPO, "v1.0.0").keys() - {".gitattributes"} == (set() if rewrite else {"a.tar", "b.tar"})
    assert hub.tree(REPO).keys() - {".gitattributes"} == ({"a.tar"} if rewrite else {"a.tar", "b.tar"})
    assert (hub.refs(REPO)["v1.0.0"] == first) is not rewrite
    with pytest.raises(RemoteEntryNotFoundError if rewrite else LocalEntryNotFoundError):
        api.hf_hub_download(REPO, "b.tar", repo_type="dataset", revision="v1.0.0")
    put(api, {"c.tar": bytes_of(1)})
    assert hub.read(REPO, "main", "c.tar") == bytes_of(1)


# Reading


def test_downloads(hub, api, tmp_path):
    files = {"README.md": README, "data/a b.tar": bytes_of(1)}
    sha = put(api, files)
    api.create_tag(**DATASET, tag="v1.0.0")
    folder = Path(snapshot_download(**DATASET, revision="v1.0.0", local_dir=tmp_path / "local"))
    assert (folder / "data" / "a b.tar").read_bytes() == bytes_of(1)
    cached = Path(hf_hub_download(**DATASET, filename="data/a b.tar"))
    assert cached.read_bytes() == bytes_of(1)
    assert sha in cached.parts
    with error(404, RemoteEntryNotFoundError):
        hf_hub_download(**DATASET, filename="none.tar")
    with error(404, RevisionNotFoundError):
        hf_hub_download(**DATASET, filename="README.md", revision="none")


def test_ranges(hub, api):
    put(api, {"a.tar": bytes_of(1)})
    with HfFileSystem(endpoint=hub.url, token=OWNER).open(f"datasets/{REPO}/a.tar", block_size=1000) as file:
        file.seek(40_000)
        assert file.read(10) == bytes_of(1)[40_000:40_010]
    assert [(record.status, record.range) for record in hub.asked("GET .*/resolve/")] == [(206, "bytes=40000-41009")]
    url = hf_hub_url(**DATASET, filename="a.tar")

    def ask(span: str) -> httpx2.Response:
        return httpx2.get(url, headers={"Range": f"bytes={span}"})

    assert ask("-100").content == bytes_of(1)[-100:]
    assert ask("49990-").content == bytes_of(1)[49_990:]
    assert ask("49990-60000").headers["Content-Range"] == "bytes 49990-49999/50000"
    assert (ask("50000-").status_code, ask("50000-").headers["Content-Range"]) == (416, "bytes */50000")


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset(hub, api, packed, streaming):
    api.upload_folder(**DATASET, folder_path=packed)
    splits = load_dataset(REPO, streaming=streaming)
    assert {split: sum(1 for _ in rows) for split, rows in splits.items()} == {"query": 12, "gallery": 24}
    assert next(iter(splits["query"]))["image"].size == (24, 48)


# Faults


def test_a_limit_of_the_rate(hub, api):
    hub.fail("429", "GET .*/tree/", wait_s=0)
    begin = time.monotonic()
    assert [found.path for found in api.list_repo_tree(**DATASET)] == [".gitattributes"]
    assert time.monotonic() - begin >= 1  # the client adds a second
    assert [record.status for record in hub.asked("/tree/")] == [429, 200]
    hub.fail("429", wait_s=55)
    with error(429) as raised:
        api.list_repo_refs(**DATASET)
    limit = parse_ratelimit_headers(raised.value.response.headers)
    assert (limit.remaining, limit.reset_in_seconds, limit.limit) == (0, 55, 1000)
    hub.fail("429", wait_s=7, header="Retry-After")
    assert httpx2.get(hub.url).headers["Retry-After"] == "7"


@pytest.mark.parametrize("kind", ["drop", "lost"])
def test_a_connection_that_breaks(hub, api, kind):
    first = hub.refs(REPO)["main"]
    hub.fail(kind, "POST .*/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        put(api, {"a.txt": "a"})
    assert (hub.refs(REPO)["main"] == first) is (kind == "drop")
    assert [(record.status, record.fault) for record in hub.asked("/commit/")] == [(0, kind)]
    put(api, {"a.txt": "b"})
    assert hub.read(REPO, "main", "a.txt") == b"b"


@pytest.mark.parametrize("kind", ["500", "503"])
def test_an_answer_that_is_an_error(hub, api, kind):
    first = hub.refs(REPO)["main"]
    hub.fail(kind, "POST .*/commit/", nth=2, times=2)
    second = put(api, {"a.txt": "a"})
    for _ in range(2):
        with error(int(kind)):
            put(api, {"a.txt": "b"})
    assert hub.refs(REPO)["main"] == second != first
    put(api, {"a.txt": "b"})


def test_every_fault_counts_requests_for_itself(hub, api):
    hub.fail("500", "^GET ", nth=2)
    hub.fail("503", "/refs$", nth=3)
    statuses = [httpx2.get(f"{hub.url}/api/datasets/{REPO}/refs").status_code for _ in range(4)]
    assert statuses == [200, 500, 503, 200]


def test_a_body_that_is_cut_is_fetched_again(hub, api):
    put(api, {"a.tar": bytes_of(1, 200_000)})
    hub.fail("cut", "GET .*/resolve/")
    path = hf_hub_download(**DATASET, filename="a.tar")
    assert Path(path).read_bytes() == bytes_of(1, 200_000)
    assert [record.bytes_out for record in hub.asked("GET .*/resolve/")] == [100_000, 200_000]


def test_wrong_bytes(hub, api):
    put(api, {"a.tar": bytes_of(1)})
    hub.fail("damage", "GET .*/resolve/")
    wrong = Path(hf_hub_download(**DATASET, filename="a.tar")).read_bytes()
    assert wrong[0] != bytes_of(1)[0]
    assert wrong[1:] == bytes_of(1)[1:]


def test_slow_answers(hub, api):
    hub.fail("slow", "/refs$", delay_s=0.2)
    begin = time.monotonic()
    api.list_repo_refs(**DATASET)
    first = time.monotonic()
    hub.delay_s = 0.1
    api.list_repo_refs(**DATASET)
    assert first - begin >= 0.2
    assert time.monotonic() - first >= 0.1


def test_an_upload_that_dies_leaves_nothing(hub, api):
    with httpx2.Client() as http, pytest.raises(ValueError, match="stop"):

        def half() -> Iterator[bytes]:
            yield bytes(1 << 20)
            raise ValueError("stop")

        http.put(f"{hub.url}/lfs/datasets/{REPO}/{sha256(b'a')}", content=half())
    assert not hub.has_object(sha256(b"a"))
    assert api.dataset_info(REPO).used_storage == 0


# Xet


@pytest.fixture
def xet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    pytest.importorskip("hf_xet", reason="the client of Xet is not installed")
    with hub_server(tmp_path / "site", xet=True) as hub:
        hub.patch_client(monkeypatch, tmp_path / "home")
        yield hub
    close_session()


def test_xet(xet, tmp_path):
    api = client(xet, OWNER)
    api.create_repo(**DATASET)
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    kinds = {
        "random.tar": bytes_of(1, 3_000_000),
        "even.npy": bytes(300_000),
        "floats.npy": np.linspace(0, 1, 100_001, dtype=np.float32).tobytes() + b"end",
        "small.tar": b"a",
    }
    for name, data in kinds.items():
        (folder / "data" / name).write_bytes(data)
    (folder / "README.md").write_text(README)
    first = api.upload_folder(**DATASET, folder_path=folder).oid
    assert not xet.asked("^PUT |/batch$")
    assert len(xet.asked("/xet-write-token/main$")) > 0
    assert {name: xet.read(REPO, "main", f"data/{name}") for name in kinds} == kinds
    assert api.upload_folder(**DATASET, folder_path=folder).oid == first
    before = xet.store.stored_chunks()
    kinds["again.tar"] = kinds["random.tar"] + b"more"
    (folder / "data" / "again.tar").write_bytes(kinds["again.tar"])
    assert api.upload_folder(**DATASET, folder_path=folder).oid != first
    assert 0 < xet.store.stored_chunks() - before < 1_000_000  # what is there already does not come again

    local = Path(snapshot_download(**DATASET, local_dir=tmp_path / "local"))
    assert {name: (local / "data" / name).read_bytes() for name in kinds} == kinds
    assert not xet.asked("GET .*/resolve/.*(npy|tar)$")
    url = hf_hub_url(**DATASET, filename="data/floats.npy")
    part = httpx2.get(url, headers={"Range": "bytes=1000-1999"})
    assert part.content == kinds["floats.npy"][1000:2000]
    assert part.headers["X-Xet-Hash"] == find_xet_file(xet.store.cas, sha256(kinds["floats.npy"])).xet_hash

    files = [file for file in api.list_lfs_files(**DATASET) if file.filename == "data/random.tar"]
    api.permanently_delete_lfs_files(REPO, files, repo_type="dataset")
    assert "data/random.tar" not in xet.tree(REPO)
    assert xet.read(REPO, "main", "data/again.tar") == kinds["again.tar"]


def test_chunks_of_lanes():
    import pyarrow as pa

    data = bytes(range(11))
    lanes = b"".join(data[lane::4] for lane in range(4))
    packed = pa.Codec("lz4").compress(lanes, asbytes=True)
    assert _unpack(packed, len(data), scheme=2) == data


def test_without_xet_there_is_no_token(hub, api, monkeypatch):
    answer = httpx2.get(f"{hub.url}/api/datasets/{REPO}/xet-read-token/main", headers=build_hf_headers(token=OWNER))
    assert answer.status_code == 404


# The server itself


def test_a_restart_keeps_everything(tmp_path, monkeypatch):
    with hub_server(tmp_path / "site") as hub:
        hub.patch_client(monkeypatch, tmp_path / "home")
        api = client(hub, OWNER)
        api.create_repo(**DATASET, private=True)
        put(api, {"a.tar": bytes_of(1), "b.txt": "b"})
        api.create_tag(**DATASET, tag="v1.0.0")
        before, repos = hub.refs(REPO), hub.store.repos
        close_session()
    port = int(hub.url.rpartition(":")[2])
    with hub_server(tmp_path / "site", port=port) as again:
        assert again.refs(REPO) == before
        assert again.store.repos == repos
        assert again.read(REPO, "v1.0.0", "a.tar") == bytes_of(1)
        put(client(again, OWNER), {"c.txt": "c"})
        close_session()


def test_no_request_is_lost_among_many_threads(hub, api):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: put(api, {f"{number}.tar": bytes_of(number)}), range(24)))
    assert hub.tree(REPO).keys() == {".gitattributes"} | {f"{number}.tar" for number in range(24)}
    assert len(hub.asked("POST .*/commit/main$")) == 24


PUBLISH = """
from huggingface_hub import create_repo, hf_hub_download, upload_file
create_repo("owner/entire-id", repo_type="dataset")
upload_file(path_or_fileobj=b"a" * 1000, path_in_repo="a.tar", repo_id="owner/entire-id", repo_type="dataset")
print(open(hf_hub_download("owner/entire-id", "a.tar", repo_type="dataset"), "rb").read() == b"a" * 1000)
"""


def test_another_process_is_a_client(hub, tmp_path):
    environment = os.environ | hub.environment(tmp_path / "other")
    ran = subprocess.run([sys.executable, "-c", PUBLISH], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"
    assert {record.user for record in hub.asked("/commit/|/resolve/")} == {"owner"}
    ran = subprocess.run(
        [sys.executable, "-c", PUBLISH],
        env=os.environ | hub.environment(tmp_path / "other", token=None),
        check=False,
        capture_output=True,
        text=True,
    )
    assert "401" in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program(hub, tmp_path, number):
    program = [sys.executable, str(Path(__file__).with_name("hub_server.py")), "--root", str(tmp_path / "alone")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            alone = HfApi(endpoint=process.stdout.readline().strip(), token=OWNER)
            alone.create_repo(**DATASET)
            assert alone.dataset_info(REPO).id == REPO
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()
    with hub_server(tmp_path / "alone") as again:
        assert again.tree(REPO).keys() == {".gitattributes"}
