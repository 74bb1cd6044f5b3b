"""The report in a real browser. It is skipped where there is no `chromium`."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from builders import CAMERAS, crop_names, pack_folder, write_crops

pytest.importorskip("matplotlib")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# A page around the report that looks at it from outside: no script runs in the report itself.
WATCHER = """<!DOCTYPE html>
<iframe id="page" src="NAME" width="900" height="900"></iframe>
<pre id="found"></pre>
<script>
page.onload = () => {
  const seen = page.contentDocument;
  found.textContent = JSON.stringify({
    heading: seen.querySelector("h1").innerText,
    captions: [...seen.querySelectorAll("caption")].map(one => one.innerText),
    cells: [...seen.querySelectorAll("table tr:nth-child(1) td")].map(one => one.innerText),
    pictures: [...seen.images].map(one => [one.naturalWidth, one.getBoundingClientRect().height]),
    fetched: page.contentWindow.performance.getEntriesByType("resource").map(one => one.name)
      .filter(name => !name.startsWith("data:")),
    width: seen.documentElement.scrollWidth,
  });
};
</script>
"""


def chromium(*options: str, profile: Path) -> str:
    """Run the browser without a network: every name, and every address but this machine's, is unknown to it."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",  # which root has none of
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--allow-file-access-from-files",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
        *options,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def look(page: Path, profile: Path) -> dict:
    """What a reader of the page sees."""
    watcher = page.with_name("watcher.html")
    watcher.write_text(WATCHER.replace("NAME", page.name))
    dumped = chromium("--dump-dom", watcher.as_uri(), profile=profile)
    (found,) = re.findall(r'<pre id="found">(.+?)</pre>', dumped, re.S)
    return json.loads(html.unescape(found))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report of drawn crops."""
    folder = tmp_path_factory.mktemp("browser")
    write_crops(folder / "crops", crop_names())
    (folder / "crops" / "cameras.csv").write_text(CAMERAS)
    pack_folder(folder / "crops", folder / "entire-id")
    for line in ("embed entire-id", "evaluate entire-id --report report.html"):
        command = [sys.executable, "-m", "entire_id", *line.split()]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "report.html"


def test_a_reader_sees_tables_and_pictures(page: Path, tmp_path: Path) -> None:
    seen = look(page, tmp_path)
    assert seen["heading"] == "colour on entire-id 1.0.0"
    assert seen["captions"] == [
        "Means over the queries; intervals by resampling people",
        "Queries by camera",
        "Queries by continent",
    ]
    assert seen["cells"][0] == "mAP"
    assert len(seen["pictures"]) == 3 + 3 * 4 * 11  # plots, and ranked lists of three kinds
    assert all(width > 0 and height > 10 for width, height in seen["pictures"])
    assert seen["fetched"] == []
    assert seen["width"] <= 900  # nothing hangs over


def test_it_is_no_blank_page(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    chromium(f"--screenshot={picture}", "--window-size=1000,3000", page.as_uri(), profile=tmp_path / "profile")
    image = Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")
    assert image.size == (1000, 3000)
    for top in range(0, 2000, 500):
        colours = image.crop((0, top, 1000, top + 500)).getcolors(1 << 20)
        assert len(colours) > 20


def test_the_policy_keeps_a_picture_elsewhere_from_being_fetched(page: Path, tmp_path: Path) -> None:
    """Were a link to get into the page, nobody would learn that it was opened. Without the policy somebody would."""
    asked: list[str] = []

    class Spy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Spy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name, keeps_policy in (("with", True), ("without", False)):
            text = page.read_text()
            if not keeps_policy:
                text = re.sub(r"<meta http-equiv=[^>]+>", "", text)
            spoiled = tmp_path / f"{name}.html"
            link = f'<img src="http://127.0.0.1:{server.server_port}/{name}.png">'
            spoiled.write_text(text.replace("<h1>", f"{link}<h1>"))
            chromium("--dump-dom", spoiled.as_uri(), profile=tmp_path / "profile")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/without.png"]
