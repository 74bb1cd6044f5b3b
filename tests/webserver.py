"""A real web server on loopback that can fail in every way that the tests need, and a look-alike of the Hub on it."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class WebServer:
    """A server that runs.

    Attributes:
        url: what its URLs start with.
        folder: what it serves.
        faults: what goes wrong with the next requests, one after the other; `""` for nothing, `503 7` for that status
            and a pause of seven seconds.
        broken: what always goes wrong, by path.
        requests: path and range of every request so far.
        authorized: paths of those that came with a token.
        redirects: whether files are only given at signed addresses, to which the server sends its clients.
        redirect_host: the name of this host in those addresses.
        token: the signature that is good now.
        gated: whether the Hub's repository is.
        stalled: set when the first one stalls.
        released: set at the end, for those that stall.
    """

    folder: Path
    url: str = ""
    faults: deque[str] = field(default_factory=deque)
    broken: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorized: list[str] = field(default_factory=list)
    redirects: bool = False
    redirect_host: str = "localhost"
    token: str = "1"
    gated: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def asked(self, ending: str) -> list[str]:
        """Return the ranges that were asked of files with that ending."""
        return [span for path, span in self.requests if path.endswith(ending)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        web = self.server.web
        path, _, query = self.path.partition("?")
        path = unquote(path)
        web.requests.append((path, self.headers.get("Range", "")))
        web.authorized += [path] * ("Authorization" in self.headers)
        headers: dict[str, str] = {}
        if path.startswith("/datasets/"):
            error, headers, path = self._repository(path)
            if error:
                return self._send(404 if error != "GatedRepo" else 403, b"", {"X-Error-Code": error} | headers)
        if not (web.folder / path.lstrip("/")).is_file():
            return self._send(404, b"no such file", headers | {"X-Error-Code": "EntryNotFound"})
        if web.redirects and with_body and query != f"token={web.token}":
            if query:
                return self._send(403, b"expired")
            # By default another name for this host: what is only for the first must not be sent there.
            host = web.url.replace("127.0.0.1", web.redirect_host)
            return self._send(302, b"", headers | {"Location": f"{host}{quote(path)}?token={web.token}"})
        fault = web.broken.get(path) or (web.faults.popleft() if web.faults and with_body else "")
        return self._give((web.folder / path.lstrip("/")).read_bytes(), fault, headers, with_body)

    def _repository(self, path: str) -> tuple[str, dict[str, str], str]:
        """Return the Hub's code of what is wrong, headers, and the path of the file."""
        _, _, owner, name, _, revision, *rest = path.split("/")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{"-".join(rest)}"'}
        if (owner, name) != ("owner", "entire-id"):
            return "RepoNotFound", {}, ""
        if self.server.web.gated:
            return "GatedRepo", {}, ""
        return ("" if revision in (COMMIT, "main", "v1.0.0") else "RevisionNotFound"), headers, "/" + "/".join(rest)

    def _give(self, data: bytes, fault: str, headers: dict[str, str], with_body: bool) -> None:
        web = self.server.web
        status, _, pause_s = fault.partition(" ")
        if status.isdigit():
            return self._send(int(status), b"wrong", {"Retry-After": pause_s} if pause_s else {})
        if fault == "reset":
            self.close_connection = True
            return None
        if fault == "stall":
            web.stalled.set()
            web.released.wait(30)
            self.close_connection = True
            return None
        span = self.headers.get("Range", "")
        if not re.fullmatch("bytes=[0-9]+-[0-9]*", span) or fault == "no-range":
            return self._send(200, data, headers, with_body=with_body, cut=fault == "cut")
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if fault == "elsewhere":
            start, stop = start + 1, stop + 1
        stop += {"short": -1, "long": 1}.get(fault, 0)
        part = data[start:stop]
        if fault == "damage":
            part = bytes([part[0] ^ 255]) + part[1:]
        headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return self._send(206, part, headers, cut=fault == "cut")

    def _send(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, with_body: bool = True, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    web: WebServer
    request_queue_size = 64  # clients with many threads connect at once

    def handle_error(self, *_: object) -> None:
        """Clients hang up."""


@contextmanager
def web_server(folder: Path) -> Iterator[WebServer]:
    """Serve a folder until the end of the block."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.web = web = WebServer(folder, f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.released.set()
            server.shutdown()
            thread.join()
