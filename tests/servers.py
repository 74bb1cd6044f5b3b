"""Real servers on loopback, each in a process of its own, that the tests pack from and to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SERVERS = ["ftp", "s3"]
"""S3 runs where s3fs and moto are installed: `make test-s3`."""

FTP = """
import logging, sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

logging.disable()
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user("me", "secret", sys.argv[1], perm="elradfmwMT")
server = ThreadedFTPServer(("127.0.0.1", 0), FTPHandler)
print(server.address[1], flush=True)
server.serve_forever()
"""

S3 = """
import threading
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@dataclass(frozen=True)
class Server:
    """A server that runs: what its URLs start with, and what the same with a wrong password or without one."""

    kind: str
    url: str
    refused: str

    @property
    def fs(self) -> Any:
        from fsspec.core import url_to_fs

        return url_to_fs(self.url, use_listings_cache=False)[0]

    def path(self, name: str) -> str:
        """Return how `fs` calls the file or folder `name`."""
        from fsspec.core import url_to_fs

        return url_to_fs(f"{self.url}/{name}")[1]

    def put(self, folder: Path, name: str) -> str:
        """Copy a folder there, and return its URL."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.write(f"{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"{self.url}/{name}"

    def write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        if self.kind != "s3":
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(path, data)

    def tree(self, name: str) -> dict[str, bytes]:
        """Return every file below `name`; nobody may be writing there."""
        return {path: self.fs.cat_file(f"{self.path(name)}/{path}") for path in self.names(name)}

    def names(self, name: str) -> list[str]:
        """Return the paths of the files below `name`, some of which may be written or renamed just now."""
        root = self.path(name)
        try:
            found = self.fs.find(root)
        except FileNotFoundError:
            return []
        return [path.removeprefix(root).lstrip("/") for path in found if path != root]

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))


@contextmanager
def _running(program: str, *arguments: object) -> Iterator[int]:
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout:
            if line.strip().isdigit():
                yield int(line)
                break
        else:
            raise AssertionError("the server did not start")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def serve(kind: str, folder: Path) -> Iterator[Server]:
    """Run a server of that kind until the end of the block."""
    if kind == "ftp":
        pytest.importorskip("pyftpdlib")
        with _running(FTP, folder) as port:
            url = f"ftp://me:secret@127.0.0.1:{port}"
            yield Server(kind, url, url.replace("secret", "wrong"))
        return
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with _running(S3) as port:
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        before = dict(os.environ)
        os.environ.update(environment)
        s3fs.S3FileSystem.clear_instance_cache()  # connections to the server of another module
        try:
            s3fs.S3FileSystem().mkdir("bucket")
            yield Server(kind, "s3://bucket", "s3://bucket")
        finally:
            os.environ.clear()
            os.environ.update(before)
