"""Ranges of files on web servers and on the Hub, by the Hub's own client, whose proxies and certificates hold here."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import quote

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, parse_ratelimit_headers

from entire_id.loading.files import FetchFailedError
from entire_id.remote import shown
from entire_id.repository import hub_errors, hub_file
from entire_id.shards.manifest import MANIFEST_FILE

__all__ = ["HubPlace", "WebPlace"]

_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")
_PASSING = frozenset({408, 425, 429})  # with all 5xx: states that pass
_NO_RANGE = 416
_NOT_FOUND = frozenset({404, 410})


class WebPlace:
    """A folder of a web server. The client, and so its connections, belongs to the process and is not pickled."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Note where it is; nothing is asked yet."""
        self.name = shown(url)
        self._url = url
        self._timeout_s = timeout_s
        self._moved: dict[str, str] = {}  # where redirects led, by path: the next request goes there at once
        self._sizes: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        """Addresses that were learnt are signed, and short-lived: they stay in this process."""
        return {**self.__dict__, "_moved": {}, "_sizes": {}}

    def fetch(self, path: str, start: int, stop: int | None) -> bytes:
        """See `Place.fetch`."""
        is_whole = start == 0 and stop is None
        span = "" if is_whole else f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"
        length = None if stop is None else stop - start
        with self._response(path, span) as response:
            size = _told_size(response)
            if response.status_code == _NO_RANGE or (size is not None and stop is not None and size < stop):
                raise EOFError(f"{self.name}/{path} ends before byte {stop or start:,}")
            if size is not None:
                self._sizes[path] = size
            if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                return _body(response, start, length, is_exact=False)
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found and found[1] != str(start):
                raise FetchFailedError(f"{found[0]!r} came, not bytes from {start:,} on")
            return _body(response, 0, length, is_exact=True)

    def fetch_size(self, path: str) -> int:
        """See `Place.fetch_size`."""
        if path not in self._sizes:
            # Not HEAD, which signed addresses refuse. An empty file has no first byte, and says so.
            with self._response(path, "bytes=0-0") as response:
                size = _told_size(response)
            if size is None:
                raise FetchFailedError("the server does not say how large the file is", is_final=True)
            self._sizes[path] = size
        return self._sizes[path]

    def _address(self, path: str) -> tuple[str, dict[str, str]]:
        """Return the URL of a file, and what to say when asking for it."""
        return f"{self._url}/{quote(path)}", {}

    def _check_status(self, response: httpx2.Response, path: str) -> None:
        if response.status_code in _NOT_FOUND:
            raise FileNotFoundError(errno.ENOENT, "no such file", f"{self.name}/{path}")
        raise FetchFailedError(_status(response), is_final=True)

    @contextmanager
    def _response(self, path: str, span: str) -> Iterator[httpx2.Response]:
        """Ask for a range; the answer is one that succeeded, or says that the file has no such range."""
        moved = self._moved.get(path)
        url, headers = (moved, {}) if moved else self._address(path)
        headers = {**headers, "Accept-Encoding": "identity"} | ({"Range": span} if span else {})
        try:
            with (
                _one_attempt(),
                get_session().stream(
                    "GET", url, headers=headers, timeout=self._timeout_s, follow_redirects=True
                ) as response,
            ):
                self._check_answer(response, path, moved)
                if response.history:
                    self._remember(path, response.url)
                yield response
        except Exception:
            if self._moved.get(path) == moved:  # no other thread has learnt a new one
                self._moved.pop(path, None)
            raise

    def _check_answer(self, response: httpx2.Response, path: str, moved: str | None) -> None:
        status = response.status_code
        if status in _PASSING or status >= httpx2.codes.INTERNAL_SERVER_ERROR:
            raise FetchFailedError(_status(response), wait_s=_asked_wait_s(response.headers))
        if status >= httpx2.codes.BAD_REQUEST and status != _NO_RANGE:
            if moved:
                raise FetchFailedError(f"{_status(response)} where the server had sent us before")
            self._check_status(response, path)

    def _remember(self, path: str, url: httpx2.URL) -> None:
        """Note where a file has moved: only to another host, for on its own one the token is asked for."""
        if url.netloc != httpx2.URL(self._address(path)[0]).netloc:
            self._moved[path] = str(url)


class HubPlace(WebPlace):
    """One commit of a repository on the Hub."""

    def __init__(self, name: str, commit: str, timeout_s: float) -> None:
        """Note where it is; nothing is asked yet."""
        super().__init__(f"hf://datasets/{name}@{commit}", timeout_s)
        self._name = name
        self._commit = commit

    @classmethod
    def resolve(cls, name: str, revision: str | None, timeout_s: float) -> Self:
        """Return the commit that `revision` means now.

        Raises:
            DatasetNotFoundError: `name` is no name of a repository.
            RepositoryNotFoundError: no such repository or revision, access to it is gated, or it cannot be reached.
        """
        return cls(name, hub_file(name, MANIFEST_FILE, revision)[0], timeout_s)

    def _address(self, path: str) -> tuple[str, dict[str, str]]:
        url = hf_hub_url(self._name, path, repo_type="dataset", revision=self._commit)
        return url, build_hf_headers(library_name="entire-id")

    def _check_status(self, response: httpx2.Response, path: str) -> None:
        response.read()
        with hub_errors(self._name):
            try:
                hf_raise_for_status(response)
            except EntryNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, "no such file", f"{self.name}/{path}") from error


@contextmanager
def _one_attempt() -> Iterator[None]:
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise FetchFailedError("HF_HUB_OFFLINE is set", is_final=True) from error
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise FetchFailedError(f"{type(error).__name__}: {error}", is_final=True) from error
    except httpx2.RequestError as error:
        raise FetchFailedError(f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        # Another thread met a broken connection, and the Hub's client then closes the session that all share.
        raise FetchFailedError(str(error)) from error


def _told_size(response: httpx2.Response) -> int | None:
    """Return the size of the file that an answer, whole or in part, is of; None if it does not say."""
    if found := _RANGE.fullmatch(response.headers.get("Content-Range", "")):
        return int(found[2])
    size = response.headers.get("Content-Length", "")
    is_whole = response.status_code == httpx2.codes.OK and "Content-Encoding" not in response.headers
    return int(size) if is_whole and size.isdigit() else None


def _body(response: httpx2.Response, skip: int, length: int | None, *, is_exact: bool) -> bytes:
    """Return `length` bytes of an answer behind the first `skip`; an exact answer holds nothing more."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if length is not None and len(body) > skip + length:
            break  # a server that knows no ranges sends the file: the rest is not waited for
    found = len(body) - skip
    if length is not None and (found < length or (is_exact and found > length)):
        more = "or more " if found > length else ""
        raise FetchFailedError(f"{max(found, 0):,} bytes {more}came, not {length:,}")
    return bytes(body[skip:] if length is None else body[skip : skip + length])


def _status(response: httpx2.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def _asked_wait_s(headers: Mapping[str, str]) -> float:
    """Return how long the other end asks to be left alone, s; 0 where it does not say."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
