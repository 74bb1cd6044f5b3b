"""The routes of the look-alike of the Hub: what each call asks for, who may take it, and what it answers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from hub_store import LFS_ENDINGS, REGULAR_BYTES, Commit, Entry, Refused, Repo, Tree, git_sha1, now

if TYPE_CHECKING:
    from hub_server import HubServer


@dataclass(frozen=True)
class Account:
    """Who a token is of; it only reads if its role is `read`."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, repo: Repo) -> bool:
        return repo.name.partition("/")[0] in (self.name, *self.orgs)


@dataclass
class Call:
    """A request on its way to its route; `repo` is only missing where the route is about none."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: IO[bytes]
    account: Account | None
    parts: dict[str, str] = field(default_factory=dict)
    repo: Repo = None  # type: ignore[assignment]

    def json(self) -> dict[str, Any]:
        return json.loads(self.body.read() or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")


@dataclass
class Answer:
    """What is sent: bytes, or a part of a file."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    start: int = 0
    stop: int = 0

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.stop - self.start

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body
            return
        with self.body.open("rb") as file:
            file.seek(self.start)
            for at in range(self.start, self.stop, 1 << 16):
                yield file.read(min(1 << 16, self.stop - at))


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, {"Content-Type": "application/json"} | (headers or {}), json.dumps(value).encode())


def refusal(refused: Refused, headers: dict[str, str] | None = None) -> Answer:
    code = {"X-Error-Code": refused.code} if refused.code else {}
    about = {"X-Error-Message": refused.message} | code | (headers or {})
    return as_json({"error": refused.message}, refused.status, about)


def answer(hub: HubServer, call: Call) -> Answer:
    """Find the route of a call, see whether it may be taken, and take it."""
    if call.account is None and call.headers.get("Authorization"):
        return refusal(Refused(401, "Invalid credentials in Authorization header"))
    for method, pattern, right, handler in ROUTES:
        if (call.method == method or (call.method, method) == ("HEAD", "GET")) and (m := pattern.fullmatch(call.path)):
            call.parts = {name: unquote(part or "") for name, part in m.groupdict().items()}
            admit(hub, call, right)
            return handler(hub, call)
    raise Refused(404, "Sorry, we can't find the page you are looking for.")


def admit(hub: HubServer, call: Call, right: str) -> None:
    """Set the repository of a call.

    Raises:
        Refused: it is not there for this user, or not for this.
    """
    member = False
    if "repo" in call.parts:
        repo = hub.store.repos.get(f"{call.parts.get('kind') or 'models'}/{call.parts['repo']}")
        member = repo is not None and call.account is not None and call.account.owns(repo)
        if repo is None or (repo.private and not member and right != "signed"):
            raise Refused(404 if call.account else 401, "Repository not found", "RepoNotFound")
        call.repo = repo
    if right in ("user", "create", "write") and call.account is None:
        raise Refused(401, "Invalid username or password.")
    if right in ("create", "write") and call.account and call.account.role == "read":
        raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
    if right == "write" and not member:
        raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    granted = member or not call.parts.get("repo") or not call.repo.gated
    if (
        right == "files"
        and not granted
        and not (call.account and call.repo.access.get(call.account.name) == "accepted")
    ):
        message = f"Access to {call.repo.kind[:-1]} {call.repo.name} is restricted. Ask for access on its page."
        raise Refused(403 if call.account else 401, message, "GatedRepo")


def page(hub: HubServer, call: Call, entries: list[Any]) -> Answer:
    """Return a page of a list, with a link to the next."""
    start = int(call.query.get("cursor", ["0"])[0])
    stop = start + hub.page_size
    query = urlencode(call.query | {"cursor": [str(stop)]}, doseq=True)
    link = {"Link": f'<{hub.url}{call.path}?{query}>; rel="next"'} if stop < len(entries) else {}
    return as_json(entries[start:stop], headers=link)


# Accounts and repositories


def whoami(hub: HubServer, call: Call) -> Answer:
    account = call.account
    assert account
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}}
    orgs = [{"type": "org", "name": org, "fullname": org} for org in account.orgs]
    return as_json({"type": "user", "id": account.name, "name": account.name, "orgs": orgs, "auth": token})


def validate_yaml(hub: HubServer, call: Call) -> Answer:
    import yaml

    block = re.match(r"---\s*\n(.*?)^---\s*$", call.json()["content"].lstrip("\ufeff"), re.DOTALL | re.MULTILINE)
    if block is None:
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


def repo_url(hub: HubServer, repo: Repo) -> str:
    return f"{hub.url}/{repo.name}" if repo.kind == "models" else f"{hub.url}/{repo.kind}/{repo.name}"


def _asked_name(call: Call, wanted: dict[str, Any]) -> tuple[str, str]:
    """Return kind and name of the repository that a body is about."""
    assert call.account
    return wanted.get("type", "model") + "s", f"{wanted.get('organization') or call.account.name}/{wanted['name']}"


def create_repo(hub: HubServer, call: Call) -> Answer:
    wanted = call.json()
    assert call.account
    kind, name = _asked_name(call, wanted)
    if not call.account.owns(Repo(kind, name, "")):
        raise Refused(
            403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{name.split("/")[0]}"'
        )
    if there := hub.store.repos.get(f"{kind}/{name}"):
        message = f"You already created this {kind[:-1]} repo"
        return as_json({"error": message, "url": repo_url(hub, there)}, 409, {"X-Error-Message": message})
    private = wanted.get("visibility") == "private" or wanted.get("private") is True
    repo = hub.store.create(kind, name, private, call.account.name)
    return as_json({"url": repo_url(hub, repo), "name": name, "id": name})


def delete_repo(hub: HubServer, call: Call) -> Answer:
    kind, name = _asked_name(call, call.json())
    call.parts = {"kind": kind, "repo": name}
    admit(hub, call, "write")
    hub.store.delete(call.repo)
    return as_json({})


def settings(hub: HubServer, call: Call) -> Answer:
    wanted = call.json()
    call.repo.gated = wanted.get("gated", call.repo.gated)
    if "visibility" in wanted or "private" in wanted:
        call.repo.private = wanted.get("visibility") == "private" or wanted.get("private") is True
    hub.store.save()
    return as_json({"private": call.repo.private, "gated": call.repo.gated})


def allowed(hub: HubServer, call: Call) -> Answer:
    return as_json({})


def list_access(hub: HubServer, call: Call) -> Answer:
    status = call.parts["name"]
    users = [user for user, became in call.repo.access.items() if became == status]
    return page(hub, call, [{"requestId": u, "user": {"user": u}, "status": status, "timestamp": now()} for u in users])


def handle_access(hub: HubServer, call: Call) -> Answer:
    wanted = call.json()
    user = wanted.get("user") or wanted.get("requestId")
    granting = call.parts["name"] == "grant"
    if user not in (call.repo.access, {account.name for account in hub.tokens.values()})[granting]:
        raise Refused(404, f"No such user or access request: {user}")
    call.repo.access[user] = "accepted" if granting else wanted["status"]
    hub.store.save()
    return as_json({})


# What is in a repository


def describe(hub: HubServer, call: Call) -> Answer:
    repo = call.repo
    sha = repo.resolve(call.parts.get("rev") or "main")
    commit = repo.commits[sha]
    about = {
        "_id": repo.name,
        "id": repo.name,
        "author": repo.name.split("/")[0],
        "sha": sha,
        "createdAt": repo.created_at,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "usedStorage": sum(stored.size for stored in repo.objects.values()),
        "siblings": [_sibling(path, entry, call.flag("blobs")) for path, entry in sorted(commit.tree.items())],
    }
    if "expand" in call.query:
        about = {name: about[name] for name in about if name in ("_id", "id", *call.query["expand"])}
    return as_json(about, headers={"X-Repo-Commit": sha})


def _sibling(path: str, entry: Entry, with_blob: bool) -> dict[str, Any]:
    blob: dict[str, Any] = {"size": entry.size, "blobId": entry.oid} if with_blob else {}
    if with_blob and entry.sha256:
        blob["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
    return {"rfilename": path} | blob


def _file_info(repo: Repo, path: str, entry: Entry) -> dict[str, Any]:
    info: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.sha256:
        info["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
        stored = repo.objects.get(entry.sha256)
        info |= {"xetHash": stored.xet_hash} if stored and stored.xet_hash else {}
    return info


def _folder_info(tree: Tree, path: str) -> dict[str, Any]:
    below = sorted((file, entry.oid) for file, entry in tree.items() if file.startswith(f"{path}/"))
    return {"type": "directory", "oid": git_sha1(json.dumps(below).encode()), "size": 0, "path": path}


def _with_last_commit(repo: Repo, sha: str, info: dict[str, Any]) -> dict[str, Any]:
    last, commit = repo.last_change(sha, info["path"])
    return info | {"lastCommit": {"id": last, "title": commit.title, "date": commit.date}}


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def list_tree(hub: HubServer, call: Call) -> Answer:
    sha = call.repo.resolve(call.parts["rev"])
    tree, folder = call.repo.commits[sha].tree, call.parts.get("path", "").strip("/")
    files = {path for path in tree if not folder or path.startswith(f"{folder}/")}
    if folder and not files:
        raise Refused(404, f'"{folder}" does not exist on "{call.parts["rev"]}"', "EntryNotFound")
    paths = files | {
        parent for path in files for parent in _parents(path) if parent.startswith(folder and f"{folder}/")
    }
    if not call.flag("recursive"):
        paths = {path for path in paths if path.rpartition("/")[0] == folder}
    infos = [_file_info(call.repo, p, tree[p]) if p in tree else _folder_info(tree, p) for p in sorted(paths)]
    if call.flag("expand"):
        infos = [_with_last_commit(call.repo, sha, info) for info in infos]
    answer = page(hub, call, infos)
    answer.headers["X-Repo-Commit"] = sha
    return answer


def paths_info(hub: HubServer, call: Call) -> Answer:
    sha = call.repo.resolve(call.parts["rev"])
    tree = call.repo.commits[sha].tree
    if "json" in call.headers.get("Content-Type", ""):
        wanted = call.json()
        paths, expand = wanted["paths"], wanted.get("expand", False)
    else:
        form = parse_qs(call.body.read().decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    folders = {parent for path in tree for parent in _parents(path)}
    infos = []
    for path in (path.strip("/") for path in ([paths] if isinstance(paths, str) else paths)):
        if path in tree or path in folders:
            info = _file_info(call.repo, path, tree[path]) if path in tree else _folder_info(tree, path)
            infos.append(_with_last_commit(call.repo, sha, info) if expand else info)
    return as_json(infos)


def list_refs(hub: HubServer, call: Call) -> Answer:
    def refs(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

    branches, tags = refs("heads", call.repo.branches), refs("tags", call.repo.tags)
    pulls: dict[str, Any] = {"pullRequests": []} if call.flag("include_prs") else {}
    return as_json({"branches": branches, "converts": [], "tags": tags} | pulls)


def list_commits(hub: HubServer, call: Call) -> Answer:
    def info(sha: str, commit: Commit) -> dict[str, Any]:
        about = {"id": sha, "title": commit.title, "message": commit.message, "date": commit.date}
        return about | {"authors": [{"user": commit.author}]}

    return page(hub, call, [info(*found) for found in call.repo.history(call.repo.resolve(call.parts["rev"]))])


def list_lfs(hub: HubServer, call: Call) -> Answer:
    def info(sha256: str) -> dict[str, Any]:
        stored = call.repo.objects[sha256]
        about = {"fileOid": sha256, "oid": sha256, "filename": stored.filename, "size": stored.size}
        return about | {"pushedAt": stored.pushed_at, "ref": "main"}

    return page(hub, call, [info(sha256) for sha256 in call.repo.objects])


def resolve(hub: HubServer, call: Call) -> Answer:
    """Answer for a file, or for a range of it."""
    sha = call.repo.resolve(call.parts["rev"])
    entry = call.repo.commits[sha].tree.get(call.parts["path"])
    if entry is None:
        return refusal(Refused(404, "Entry not found", "EntryNotFound"), {"X-Repo-Commit": sha})
    path = hub.store.path(call.repo, entry)
    headers = {
        "X-Repo-Commit": sha,
        "ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f'inline; filename="{quote(Path(call.parts["path"]).name)}"',
    }
    if entry.sha256:
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"'}
        if xet_hash := call.repo.objects[entry.sha256].xet_hash if hub.xet else "":
            token_url = f"{hub.url}/api/{call.repo.kind}/{call.repo.name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token_url}>; rel="xet-auth"'}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if asked is None or asked[0] == "bytes=-":
        return Answer(200, headers, path, 0, entry.size)
    start = int(asked[1]) if asked[1] else max(0, entry.size - int(asked[2]))
    stop = min(int(asked[2]) + 1, entry.size) if asked[1] and asked[2] else entry.size
    if start >= stop:
        return Answer(416, headers | {"Content-Range": f"bytes */{entry.size}"})
    return Answer(206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{entry.size}"}, path, start, stop)


# What changes a repository


def preupload(hub: HubServer, call: Call) -> Answer:
    tree = call.repo.commits[call.repo.resolve(call.parts["rev"])].tree
    files = []
    for wanted in call.json()["files"]:
        path = wanted["path"]
        large = wanted["size"] > REGULAR_BYTES or path.rpartition(".")[2] in LFS_ENDINGS
        known = {"oid": tree[path].etag} if path in tree else {}
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} | known)
    return as_json({"files": files})


def lfs_batch(hub: HubServer, call: Call) -> Answer:
    wanted = call.json()
    repo = call.repo
    objects = []
    for found in wanted["objects"]:
        oid, size = found["oid"], found["size"]
        there = {"oid": oid, "size": size}
        if oid not in repo.objects:
            href = f"{hub.url}/lfs/{repo.kind}/{repo.name}/{oid}"
            upload: dict[str, Any] = {"href": href, "header": {}}
            if 0 < hub.multipart_bytes < size:
                parts = range(1, -(-size // hub.multipart_bytes) + 1)
                header = {str(number): f"{href}/{number}" for number in parts}
                upload = {"href": f"{href}/complete", "header": header | {"chunk_size": str(hub.multipart_bytes)}}
            verify = {"href": f"{hub.url}/lfs/{repo.kind}/{repo.name}/verify", "header": {}}
            there["actions"] = {"upload": upload, "verify": verify}
        objects.append(there)
    multipart = any("chunk_size" in o.get("actions", {}).get("upload", {}).get("header", {}) for o in objects)
    return as_json({"transfer": "multipart" if multipart else "basic", "objects": objects})


def put_object(hub: HubServer, call: Call) -> Answer:
    sha256 = call.parts["oid"]
    hub.store.put(hub.store.lfs_path(sha256), call.body)
    hub.store.add_object(call.repo, sha256)
    return Answer()


def put_part(hub: HubServer, call: Call) -> Answer:
    sha256 = hub.store.put(hub.store.part_path(call.parts["oid"], int(call.parts["number"])), call.body)
    return Answer(headers={"ETag": f'"{sha256}"'})


def join_parts(hub: HubServer, call: Call) -> Answer:
    """Make an object of the parts that a client lists by number and ETag."""
    sha256 = call.parts["oid"]
    with tempfile.TemporaryFile() as whole:
        for part in call.json()["parts"]:
            with hub.store.part_path(sha256, part["partNumber"]).open("rb") as file:
                if part["etag"] != f'"{hashlib.file_digest(file, "sha256").hexdigest()}"':
                    raise Refused(400, f"part {part['partNumber']} of {sha256} is another")
                file.seek(0)
                shutil.copyfileobj(file, whole)
        whole.seek(0)
        hub.store.put(hub.store.lfs_path(sha256), whole)
    hub.store.add_object(call.repo, sha256)
    return as_json({})


def verify_object(hub: HubServer, call: Call) -> Answer:
    wanted = call.json()
    stored = call.repo.objects.get(wanted["oid"])
    if stored is None or stored.size != wanted["size"]:
        raise Refused(404 if stored is None else 422, f"LFS object {wanted['oid']} is not there in that size")
    return as_json({})


def xet_token(hub: HubServer, call: Call) -> Answer:
    if not hub.xet:
        raise Refused(404, "Xet is not on")
    if call.parts["right"] == "write":
        admit(hub, call, "write")
    url, expires = f"local://{hub.store.cas}", int(time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
    return as_json({"casUrl": url, "accessToken": "xet", "exp": expires}, headers=headers)


def commit(hub: HubServer, call: Call) -> Answer:
    assert call.account
    if call.flag("create_pr"):
        raise Refused(400, "Pull requests are not there")
    lines = [json.loads(line) for line in call.body if line.strip()]
    sha = hub.store.commit(call.repo, call.parts["rev"], lines, call.account.name)
    url = f"{repo_url(hub, call.repo)}/commit/{sha}"
    return as_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def create_tag(hub: HubServer, call: Call) -> Answer:
    name = call.json()["tag"]
    sha = call.repo.resolve(call.parts["rev"])
    return _add_ref(hub, call.repo.tags, name, sha)


def create_branch(hub: HubServer, call: Call) -> Answer:
    sha = call.repo.resolve(call.json().get("startingPoint") or "main")
    return _add_ref(hub, call.repo.branches, call.parts["rev"], sha)


def _add_ref(hub: HubServer, refs: dict[str, str], name: str, sha: str) -> Answer:
    if name in refs:
        raise Refused(409, f"Reference {name} exists already")
    refs[name] = sha
    hub.store.save()
    return as_json({})


def delete_ref(hub: HubServer, call: Call) -> Answer:
    name, refs = call.parts["rev"], call.repo.tags if call.parts["what"] == "tag" else call.repo.branches
    if name not in refs:
        raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
    if refs is call.repo.branches and name == "main":
        raise Refused(403, "The default branch cannot be deleted")
    del refs[name]
    hub.store.save()
    return as_json({})


def super_squash(hub: HubServer, call: Call) -> Answer:
    branch = call.parts["rev"]
    if branch not in call.repo.branches:
        raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    assert call.account
    hub.store.squash(call.repo, branch, call.json()["message"], call.account.name)
    return as_json({})


def delete_lfs(hub: HubServer, call: Call) -> Answer:
    wanted = call.json()["deletions"]
    hub.store.purge(call.repo, wanted["sha"], wanted["rewriteHistory"])
    return as_json({})


PARTS = {
    "kind": "models|datasets|spaces",
    "repo": "[^/]+(?:/[^/]+)?",
    "path": ".+",
    "oid": "[0-9a-f]{64}",
    "number": "[0-9]+",
    "right": "read|write",
    "what": "tag|branch",
}


def route(method: str, path: str, right: str, handler: Callable[[HubServer, Call], Answer]) -> tuple[Any, ...]:
    """Return a row of the table; `{name}` in a path is one segment of it, or what `PARTS` says."""
    pattern = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{PARTS.get(m[1], '[^/]+')})", path)
    return method, re.compile(pattern), right, handler


# Rights: "" for all, "user" with a token, "create" with one that writes; of a repository "read" where it is not
# private, "files" where it is not gated, "write" to its owners, "signed" by an address that only a batch gives.
API = "/api/{kind}/{repo}"
ROUTES = [
    route("GET", "/api/whoami-v2", "user", whoami),
    route("POST", "/api/validate-yaml", "", validate_yaml),
    route("POST", "/api/repos/create", "create", create_repo),
    route("DELETE", "/api/repos/delete", "create", delete_repo),
    route("GET", API + "/auth-check", "files", allowed),
    route("GET", API + "/auth-check/write", "write", allowed),
    route("PUT", API + "/settings", "write", settings),
    route("GET", API + "/user-access-request/{name}", "write", list_access),
    route("POST", API + "/user-access-request/{name}", "write", handle_access),
    route("GET", API + "/refs", "read", list_refs),
    route("GET", API + "/commits/{rev}", "read", list_commits),
    route("GET", API + "/tree/{rev}", "read", list_tree),
    route("GET", API + "/tree/{rev}/{path}", "read", list_tree),
    route("POST", API + "/paths-info/{rev}", "read", paths_info),
    route("GET", API + "/revision/{rev}", "read", describe),
    route("GET", API + "/xet-{right}-token/{rev}", "files", xet_token),
    route("POST", API + "/preupload/{rev}", "write", preupload),
    route("POST", API + "/commit/{rev}", "write", commit),
    route("POST", API + "/tag/{rev}", "write", create_tag),
    route("POST", API + "/branch/{rev}", "write", create_branch),
    route("DELETE", API + "/{what}/{rev}", "write", delete_ref),
    route("POST", API + "/super-squash/{rev}", "write", super_squash),
    route("GET", API + "/lfs-files", "write", list_lfs),
    route("POST", API + "/lfs-files/batch", "write", delete_lfs),
    route("GET", API, "read", describe),
    route("POST", "(?:/{kind})?/{repo}[.]git/info/lfs/objects/batch", "write", lfs_batch),
    route("POST", "/lfs/{kind}/{repo}/verify", "write", verify_object),
    route("PUT", "/lfs/{kind}/{repo}/{oid}", "signed", put_object),
    route("PUT", "/lfs/{kind}/{repo}/{oid}/{number}", "signed", put_part),
    route("POST", "/lfs/{kind}/{repo}/{oid}/complete", "signed", join_parts),
    route("GET", "(?:/{kind})?/{repo}/resolve/{rev}/{path}", "files", resolve),
]
