"""A look-alike of the Hugging Face Hub on loopback, for the real `huggingface_hub` client; alone as a program too.

    python tests/hub_server.py --root DIR [--port P] [--xet]

It answers as the Hub does: an initial `.gitattributes`, LFS by file ending, 401 to strangers without a token and 404 to
those with one, commits that stay readable by their sha until `collect_garbage`. It can be told to fail, and it counts
what travels. As on the Hub a branch moves by commits only, and `main` cannot be deleted. Not there are pull requests,
`.gitignore` and copies of LFS files between repositories. With Xet one process at a time can be a client: it locks the
folder that stands for the storage service, where the chunks of deleted objects stay.
"""

from __future__ import annotations

import argparse
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_routes import Account, Answer, Call, answer, refusal
from hub_store import Refused, Repo, Store, Tree

if TYPE_CHECKING:
    import pytest

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
FAULTS = ("drop", "lost", "500", "503", "429", "slow", "cut", "damage")


TOKENS = {
    OWNER: Account("owner", orgs=("entire",)),
    READER: Account("owner", orgs=("entire",), role="read"),
    STRANGER: Account("stranger"),
}


@dataclass
class Record:
    """A request that came: the bytes of the two bodies, the range that was asked; status 0 for no answer."""

    method: str
    path: str
    range: str
    user: str
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    fault: str = ""

    def matches(self, pattern: str) -> bool:
        return re.search(pattern, f"{self.method} {self.path}") is not None


@dataclass
class Fault:
    """What goes wrong with some of the requests whose "METHOD /path" holds the pattern `match`.

    Attributes:
        kind: `drop` hangs up and does nothing, `lost` hangs up when all is done; `500`, `503` and `429` are answers;
            `slow` only waits; `cut` gives half of the body, `damage` a wrong first byte.
        nth: which of those that match is the first, counted from 1 since the fault was made.
        times: how many are, from that one on.
        delay_s: how long each waits before.
        wait_s: what a 429 asks the client to wait.
        header: the way it asks: `RateLimit`, as the Hub does, or `Retry-After`.
        seen: how many have matched.
    """

    kind: str
    match: str = ""
    nth: int = 1
    times: int = 1
    delay_s: float = 0.0
    wait_s: int = 0
    header: str = "RateLimit"
    seen: int = 0

    def __post_init__(self) -> None:
        assert self.kind in FAULTS

    def strikes(self, record: Record) -> bool:
        if not record.matches(self.match):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass
class HubServer:
    """A Hub that runs; repositories are named `owner/name` and are data sets unless `kind` says otherwise.

    Attributes:
        url: the endpoint.
        store: what it holds.
        xet: whether files come and go by Xet.
        page_size: how many entries a list has before it says that there is more.
        multipart_bytes: LFS objects of more bytes come in parts of that many; 0 for never.
        delay_s: how long every answer takes.
        tokens: who is who; may be changed.
        faults: what goes wrong; see `fail`.
        requests: every request so far.
        errors: faults of this code; the end of `hub_server` raises the first.
    """

    store: Store
    url: str = ""
    xet: bool = False
    page_size: int = 1000
    multipart_bytes: int = 0
    delay_s: float = 0.0
    tokens: dict[str, Account] = field(default_factory=lambda: dict(TOKENS))
    faults: list[Fault] = field(default_factory=list)
    requests: list[Record] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def fail(self, kind: str, match: str = "", **options: Any) -> Fault:
        """Let a `Fault` come over requests from now on."""
        fault = Fault(kind, match, **options)
        with self.store.lock:
            self.faults.append(fault)
        return fault

    def asked(self, pattern: str) -> list[Record]:
        """Return the requests whose "METHOD /path" holds the pattern."""
        return [record for record in list(self.requests) if record.matches(pattern)]

    def repo(self, name: str, kind: str = "datasets") -> Repo:
        return self.store.repos[f"{kind}/{name}"]

    def tree(self, name: str, revision: str = "main", kind: str = "datasets") -> Tree:
        """Return path → file of a revision."""
        with self.store.lock:
            repo = self.repo(name, kind)
            return dict(repo.commits[repo.resolve(revision)].tree)

    def read(self, name: str, revision: str, path: str, kind: str = "datasets") -> bytes:
        """Return the bytes of a file."""
        return self.store.path(self.repo(name, kind), self.tree(name, revision, kind)[path]).read_bytes()

    def has_object(self, sha256: str) -> bool:
        """Return whether the bytes of an LFS object are there for any repository."""
        return self.store.lfs_path(sha256).exists()

    def refs(self, name: str, kind: str = "datasets") -> dict[str, str]:
        """Return branch or tag → sha of its commit."""
        with self.store.lock:
            repo = self.repo(name, kind)
            return repo.branches | repo.tags

    def ask_access(self, name: str, user: str, kind: str = "datasets") -> None:
        """Do what the button on the page of a gated repository does."""
        with self.store.lock:
            repo = self.repo(name, kind)
            repo.access.setdefault(user, "accepted" if repo.gated == "auto" else "pending")
            self.store.save()

    def collect_garbage(self) -> None:
        """Forget the commits that no ref leads to; the Hub does so at a time of its own."""
        with self.store.lock:
            self.store.collect()

    def environment(self, home: Path, token: str | None = OWNER) -> dict[str, str]:
        """Return the variables by which a process that starts takes this for the Hub, and `home` for its cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0" if token else "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }

    def patch_client(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str = OWNER) -> None:
        """Let the client in this process do the same until the end of the test."""
        import datasets
        from huggingface_hub import HfFileSystem, constants, hf_api

        HfFileSystem.clear_instance_cache()
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not self.xet)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setenv("HF_TOKEN", token)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        account = hub.tokens.get(token)
        asked_range = self.headers.get("Range", "")
        record = Record(self.command, unquote(url.path), asked_range, account.name if account else "")
        with hub.store.lock:
            hub.requests.append(record)
            fault = next(iter([fault for fault in hub.faults if fault.strikes(record)]), None)  # every one counts
        with tempfile.SpooledTemporaryFile(1 << 20) as body:
            self._receive(body, record)
            call = Call(self.command, url.path, parse_qs(url.query), self.headers, body, account)
            hub.stopping.wait(hub.delay_s + (fault.delay_s if fault else 0))
            kind = record.fault = fault.kind if fault else ""
            if kind == "drop":
                return self._hang_up()
            reply = _broken(fault) if fault and kind.isdigit() else self._answer(call)
        if kind == "lost":
            return self._hang_up()
        return self._send(reply, record, kind)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _receive(self, body: IO[bytes], record: Record) -> None:
        """Read the body whole; a client that dies amid it has asked for nothing."""
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        left = self._next_chunk() if chunked else int(self.headers.get("Content-Length") or 0)
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            if not data:
                raise ConnectionError
            record.bytes_in += body.write(data)
            left -= len(data)
            if chunked and not left:
                self.rfile.readline()
                left = self._next_chunk()
        if chunked:
            self.rfile.readline()
        body.seek(0)

    def _next_chunk(self) -> int:
        return int(self.rfile.readline().split(b";")[0] or b"0", 16)

    def _answer(self, call: Call) -> Answer:
        hub = self.server.hub
        with hub.store.lock:
            try:
                return answer(hub, call)
            except Refused as refused:
                return refusal(refused)
            except Exception as error:
                hub.errors.append(error)
                return refusal(Refused(500, f"{type(error).__name__} in the look-alike of the Hub"))

    def _send(self, reply: Answer, record: Record, fault: str) -> None:
        record.status = reply.status
        self.send_response(reply.status)
        headers = {"Content-Length": str(reply.length), "X-Request-Id": str(len(self.server.hub.requests))}
        for name, value in (headers | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        left = 0 if self.command == "HEAD" else reply.length // 2 if fault == "cut" else reply.length
        for number, chunk in enumerate(reply.chunks() if left else ()):
            data = bytes([chunk[0] ^ 255]) + chunk[1:] if fault == "damage" and number == 0 else chunk
            record.bytes_out += len(data[:left])
            self.wfile.write(data[:left])
            left -= len(data[:left])
        self.wfile.flush()
        if fault == "cut":
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _broken(fault: Fault) -> Answer:
    headers = {}
    if fault.kind == "429":
        limit = {"RateLimit": f'"api";r=0;t={fault.wait_s}', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}
        headers = limit if fault.header == "RateLimit" else {"Retry-After": str(fault.wait_s)}
    return refusal(Refused(int(fault.kind), "out of order"), headers)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # all end before `server_close` does
    request_queue_size = 128

    def __init__(self, port: int, hub: HubServer) -> None:
        self.hub = hub
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self._open.discard(request)

    def hang_up(self) -> None:
        """Close the connections that clients keep for later."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it was closed by now

    def handle_error(self, *_: object) -> None:
        """Clients hang up."""


@contextmanager
def hub_server(root: Path, *, port: int = 0, **options: Any) -> Iterator[HubServer]:
    """Run a Hub on a folder until the end of the block; `options` are attributes of `HubServer`."""
    hub = HubServer(Store(root), **options)
    with _Server(port, hub) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.stopping.set()
            server.shutdown()
            thread.join()
            server.hang_up()
    if hub.errors:
        raise hub.errors[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="A look-alike of the Hugging Face Hub on loopback.")
    parser.add_argument("--root", type=Path, required=True, help="folder that keeps what it is given")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--xet", action="store_true", help="take and give LFS files by Xet")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with hub_server(arguments.root.resolve(), port=arguments.port, xet=arguments.xet) as hub:
        print(hub.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
