"""Folders and zip archives: every file once, nothing outside, nothing trusted."""

from __future__ import annotations

import errno
import io
import os
import pickle
import stat
import struct
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entire_id.errors import EntireIdError, SourceChangedError, SourceError
from entire_id.records import Reason, Rejected
from entire_id.sources.files import MAX_FILE_BYTES, Folder, ZipArchive, open_files

from builders import write_zip

CENTRAL_HEADER = b"PK\x01\x02"


def outcomes(files) -> dict[str, Reason | None]:
    """Return path → reason of rejection, None where the file is offered."""
    found = [(item.path, item.reason) if isinstance(item, Rejected) else (item, None) for item in files.walk()]
    assert len(found) == len(dict(found))
    return dict(found)


# ---------------------------------------------------------------- folders


def test_every_file_of_a_folder_is_walked_once(tmp_path):
    for name in ("b/2.jpg", "b/10.jpg", "a/x/1.jpg", "a.jpg", "Z.jpg", "ä.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    files = Folder(tmp_path)
    assert sorted(files.walk()) == ["Z.jpg", "a.jpg", "a/x/1.jpg", "b/10.jpg", "b/2.jpg", "ä.jpg"]
    assert [files.read(path).data.decode() for path in files.walk()] == list(files.walk())


def test_names_of_folders_are_sorted_and_files_and_links_are_none(tmp_path):
    for name in ("b", "a", "a/below"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("a")
    assert Folder(tmp_path).folders("") == ["a", "b"]
    assert Folder(tmp_path).folders("a") == ["below"]
    assert Folder(tmp_path).folders("missing") == Folder(tmp_path).folders("file") == []


def test_links_to_files_inside_are_followed_and_all_others_are_rejected(tmp_path):
    root = tmp_path / "crops"
    (root / "query").mkdir(parents=True)
    (root / "query/real.jpg").write_bytes(b"real")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "crops-too").mkdir()  # its name starts like the root's
    (tmp_path / "crops-too/x.jpg").write_bytes(b"other")
    targets = {
        "inside": "real.jpg",
        "inside-absolute": root / "query/real.jpg",
        "inside-twice": "inside",
        "out": "../../secret.jpg",
        "out-absolute": tmp_path / "secret.jpg",
        "out-twice": "out",
        "out-to-sibling": "../../crops-too/x.jpg",
        "folder": ".",
        "dangling": "nothing.jpg",
        "loop": "loop",
    }
    for name, target in targets.items():
        (root / "query" / name).symlink_to(target)
    found = outcomes(Folder(root))
    assert {name: found[f"query/{name}"] for name in targets} == {
        name: None if name.startswith("inside") else Reason.LINK for name in targets
    }
    assert Folder(root).read("query/inside-twice").data == b"real"


def test_a_folder_given_by_a_link_is_walked_like_the_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.jpg").write_bytes(b"a")
    (tmp_path / "real/b.jpg").symlink_to("a.jpg")
    (tmp_path / "link").symlink_to("real")
    assert outcomes(Folder(tmp_path / "link")) == {"a.jpg": None, "b.jpg": None}


def test_a_link_to_a_folder_is_rejected_once_and_not_walked(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.jpg").touch()
    (tmp_path / "b").symlink_to("a")
    assert outcomes(Folder(tmp_path)) == {"a/x.jpg": None, "b": Reason.LINK}


def test_a_name_that_is_not_utf8_is_listed_readably(tmp_path):
    (tmp_path / os.fsdecode(b"a\xff.jpg")).touch()
    (tmp_path / "é.jpg").touch()
    assert outcomes(Folder(tmp_path)) == {"a\\xff.jpg": Reason.ENCODING, "é.jpg": None}


def test_every_file_of_a_folder_whose_name_is_not_utf8_is_listed(tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xff")
    (folder / "below").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "below/3.jpg"):
        (folder / name).touch()
    found = outcomes(Folder(tmp_path))
    assert set(found.values()) == {Reason.ENCODING}
    assert len(found) == 3


def test_pipes_are_rejected_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    assert outcomes(Folder(tmp_path)) == {"link.jpg": Reason.LINK, "pipe.jpg": Reason.NOT_AN_IMAGE}


def test_names_with_newlines_and_backslashes_and_nothing_but_an_ending_are_walked(tmp_path):
    (tmp_path / "a\\b.jpg").touch()
    names = {"a\nb.jpg", ".jpg", "..jpg", " .jpg", "-rf.jpg", "*.jpg"}
    for name in names:
        (tmp_path / name).touch()
    assert outcomes(Folder(tmp_path)) == {**dict.fromkeys(names), "a\\b.jpg": Reason.UNSAFE_PATH}


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, (5 << 18) + 3])
def test_files_of_every_size_are_read_whole(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert Folder(tmp_path).read("a").data == data


def test_a_file_larger_than_any_crop_is_refused_without_reading_it(tmp_path):
    for name, size in (("largest", MAX_FILE_BYTES), ("too-large", MAX_FILE_BYTES + 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(OSError, match="more than") as caught:
        Folder(tmp_path).read("too-large")
    assert caught.value.errno == errno.EFBIG
    assert len(Folder(tmp_path).read("largest").data) == MAX_FILE_BYTES


@pytest.mark.parametrize("gone", ["gone.jpg", "gone/a.jpg"])
def test_a_file_that_went_away_is_named_with_what_to_do(tmp_path, gone):
    with pytest.raises(SourceChangedError, match=f"'{gone}': vanished .* Type the same command again"):
        Folder(tmp_path).read(gone)
    with pytest.raises(FileNotFoundError):
        Folder(tmp_path).stamp(gone)


@pytest.mark.parametrize("how", ["grow", "shrink", "rewrite", "append-later"])
def test_a_file_that_is_written_to_while_it_is_read_is_named(tmp_path, monkeypatch, how):
    """The system's own read, with a writer who comes just before it or just after it."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(1, 1))
    read = os.read

    def disturb(descriptor: int, size: int) -> bytes:
        if how == "append-later":
            data = read(descriptor, size)
        if how == "shrink":
            os.truncate(path, 10)
        else:
            with path.open("r+b") as file:
                file.seek(0, os.SEEK_SET if how == "rewrite" else os.SEEK_END)
                file.write(b"y" * 1000)
        return data if how == "append-later" else read(descriptor, size)

    monkeypatch.setattr(os, "read", disturb)
    with pytest.raises(SourceChangedError, match=r"'a\.jpg': changed"):
        Folder(tmp_path).read("a.jpg")
    monkeypatch.undo()
    assert len(Folder(tmp_path).read("a.jpg").data) == path.stat().st_size


def test_a_file_that_is_replaced_while_it_is_read_gives_the_old_or_the_new_bytes(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old" * 100)
    (tmp_path / "b").write_bytes(b"newer" * 100)
    read = os.read

    def replace(descriptor: int, size: int) -> bytes:
        (tmp_path / "b").replace(tmp_path / "a")
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", replace)
    assert Folder(tmp_path).read("a").data == b"old" * 100
    monkeypatch.undo()
    assert Folder(tmp_path).read("a").data == b"newer" * 100


def test_whatever_is_done_to_a_file_moves_the_time_of_its_change(tmp_path):
    """Resuming hangs on it: `mv`, `cp -p` and `touch -d` keep or set the time of writing."""
    files, path = Folder(tmp_path), tmp_path / "a.jpg"
    path.write_bytes(b"one")
    (tmp_path / "other").write_bytes(b"two")
    os.utime(tmp_path / "other", ns=(1, 1))
    changes = {
        "written": lambda: path.write_bytes(b"two"),
        "set back": lambda: os.utime(path, ns=(5, 5)),
        "replaced by an old file": lambda: (tmp_path / "other").replace(path),
    }
    for name, change in changes.items():
        before = files.stamp("a.jpg")[0]
        time.sleep(0.02)  # more than a tick of the file system's clock
        change()
        assert files.stamp("a.jpg")[0] > before, name


def test_an_archive_was_changed_when_the_archive_was(tmp_path):
    files = ZipArchive(write_zip(tmp_path / "a.zip", {"a.jpg": b"x"}))
    before = files.stamp("a.jpg")[0]
    time.sleep(0.02)
    write_zip(tmp_path / "a.zip", {"a.jpg": b"y"})
    assert files.stamp("a.jpg")[0] > before


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/x.jpg", None),
        ("a/./x.jpg", None),
        ("inside", None),
        ("../outside.jpg", Reason.UNSAFE_PATH),
        ("a/../a/x.jpg", Reason.UNSAFE_PATH),
        ("/etc/hostname", Reason.UNSAFE_PATH),
        ("a\\x.jpg", Reason.UNSAFE_PATH),
        ("a/x.jpg\0", Reason.UNSAFE_PATH),
        ("", Reason.UNSAFE_PATH),
        ("a/missing.jpg", Reason.MISSING),
        ("a/x.jpg/x.jpg", Reason.MISSING),
        ("x" * 5000, Reason.MISSING),
        ("out", Reason.LINK),
        ("folder-out/outside.jpg", Reason.LINK),
        ("dangling", Reason.LINK),
    ],
)
def test_a_listed_path_is_checked_before_it_is_opened(tmp_path, path, reason):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a/x.jpg").write_bytes(b"x")
    (tmp_path / "outside.jpg").write_bytes(b"y")
    (root / "inside").symlink_to("a/x.jpg")
    (root / "out").symlink_to("../outside.jpg")
    (root / "folder-out").symlink_to("..")
    (root / "dangling").symlink_to("nothing")
    checked = Folder(root).check(path)
    assert (checked.reason if isinstance(checked, Rejected) else None) == reason


def test_a_listed_folder_is_rejected(tmp_path):
    (tmp_path / "a").mkdir()
    assert isinstance(Folder(tmp_path).check("a"), Rejected)


# ---------------------------------------------------------------- zip archives


def test_every_entry_of_an_archive_is_walked_once_without_its_folders(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"q/2.jpg": b"2", "q/": b"", "q/10.jpg": b"10", "é.jpg": b"e"})
    files = ZipArchive(path)
    assert sorted(files.walk()) == ["q/10.jpg", "q/2.jpg", "é.jpg"]
    assert [files.read(name).data for name in sorted(files.walk())] == [b"10", b"2", b"e"]


def test_folders_of_an_archive_need_no_entry_of_their_own(tmp_path):
    entries = {"wrap/b/x.jpg": b"", "wrap/a/y/z.jpg": b"", "top.jpg": b"", "../up/x.jpg": b"", "/abs/x.jpg": b""}
    files = ZipArchive(write_zip(tmp_path / "a.zip", entries))
    assert files.folders("") == ["wrap"]
    assert files.folders("wrap") == ["a", "b"]
    assert files.folders("wrap/a") == ["y"]
    assert files.folders("top.jpg") == files.folders("missing") == []


@pytest.mark.parametrize(
    "name",
    ["../x.jpg", "a/../../x.jpg", "/x.jpg", "//x.jpg", "C:/x.jpg", "a\\x.jpg", "..\\x.jpg", "\\\\host\\x.jpg"],
)
def test_names_that_lead_out_of_an_archive_are_rejected(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", {name: b"x", "good.jpg": b"y"})
    assert outcomes(ZipArchive(path)) == {name: Reason.UNSAFE_PATH, "good.jpg": None}


def patch_names(path: Path, old: bytes, new: bytes) -> None:
    """Write other bytes in place of a name, in both headers."""
    assert len(old) == len(new)
    data = path.read_bytes()
    assert data.count(old) == 2
    path.write_bytes(data.replace(old, new))


def test_a_name_that_hides_its_end_behind_a_zero_byte_is_rejected(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"good.jpgXexe": b"x"})
    patch_names(path, b"good.jpgXexe", b"good.jpg\0exe")
    assert outcomes(ZipArchive(path)) == {"good.jpg": Reason.UNSAFE_PATH}


def test_an_entry_without_a_name_is_rejected(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"X": b"x", "good.jpg": b"y"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"X", b"\0"))  # zipfile cuts names at a zero byte: nothing is left
    assert outcomes(ZipArchive(path)) == {"": Reason.UNSAFE_PATH, "good.jpg": None}


def test_an_entry_that_ends_in_a_slash_but_holds_bytes_is_not_skipped_silently(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"q/1.jpgX": b"picture"})
    patch_names(path, b"q/1.jpgX", b"q/1.jpg/")
    assert len(list(ZipArchive(path).walk())) == 1


def test_a_link_in_an_archive_is_rejected(tmp_path):
    link = zipfile.ZipInfo("link.jpg")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/hostname")
        archive.writestr("plain.jpg", b"x")
    assert outcomes(ZipArchive(tmp_path / "a.zip")) == {"link.jpg": Reason.LINK, "plain.jpg": None}


def set_flags(path: Path, flags: int) -> None:
    """Set bits of the general-purpose flags of every entry, in both headers."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (CENTRAL_HEADER, 8)):
        start = data.find(signature)
        while start >= 0:
            data[start + offset] |= flags & 0xFF
            data[start + offset + 1] |= flags >> 8
            start = data.find(signature, start + 4)
    path.write_bytes(data)


def test_an_encrypted_entry_is_rejected(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"x"})
    set_flags(path, 1)
    assert outcomes(ZipArchive(path)) == {"a.jpg": Reason.UNREADABLE}


def test_a_name_flagged_as_utf8_that_is_not_does_not_hide_the_other_files(tmp_path):
    """Rejected as a name, or the archive refused as a whole; a bare UnicodeDecodeError is neither."""
    path = write_zip(tmp_path / "a.zip", {"zz.jpg": b"x", "good.jpg": b"y"})
    patch_names(path, b"zz.jpg", b"z\xff.jpg")
    set_flags(path, 0x800)
    try:
        found = outcomes(open_files(path))
    except SourceError:
        return
    assert found.pop("good.jpg") is None
    assert list(found.values()) == [Reason.ENCODING]


def test_an_old_name_in_another_code_page_is_walked(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"zz.jpg": b"x"})
    patch_names(path, b"zz.jpg", b"z\xff.jpg")  # no UTF-8 flag: code page 437 by the format's rule
    (name,) = ZipArchive(path).walk()
    assert ZipArchive(path).read(name).data == b"x"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_entries_with_one_name_the_first_is_the_one_that_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"first")
        archive.writestr("a.jpg", b"second")
    files = ZipArchive(tmp_path / "a.zip")
    first, second = files.walk()
    assert (first, second.reason) == ("a.jpg", Reason.DUPLICATE_KEY)
    assert files.read("a.jpg").data == b"first"


def damaged(tmp_path: Path, method: int) -> ZipArchive:
    """An archive whose only entry has its middle bytes turned."""
    payload = bytes(range(256)) * 8
    path = write_zip(tmp_path / f"{method}.zip", {"a.jpg": payload}, method)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("a.jpg")
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len("a.jpg")
    for position in range(start + info.compress_size // 4, start + info.compress_size):
        data[position] ^= 0x5A
    path.write_bytes(data)
    return ZipArchive(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_entry_is_an_os_error_whatever_the_compression(tmp_path, method):
    with pytest.raises(OSError):  # noqa: PT011
        damaged(tmp_path, method).read("a.jpg")


def test_a_compression_that_nobody_knows_is_an_os_error(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"x" * 100})
    data = bytearray(path.read_bytes())
    central = data.index(CENTRAL_HEADER) + 10
    data[8:10] = data[central : central + 2] = struct.pack("<H", 98)
    path.write_bytes(data)
    with pytest.raises(OSError, match="zip entry"):
        ZipArchive(path).read("a.jpg")


def test_an_archive_that_lost_its_first_bytes_is_an_os_error_or_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"x" * 100, "b.jpg": b"y" * 100})
    path.write_bytes(path.read_bytes()[10:])
    with pytest.raises((OSError, SourceError)):
        ZipArchive(path).read("a.jpg")


def test_an_entry_larger_than_any_crop_is_refused_before_it_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"bomb.jpg": bytes(MAX_FILE_BYTES + 1)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(OSError, match="more than") as caught:
        ZipArchive(path).read("bomb.jpg")
    assert caught.value.errno == errno.EFBIG


def test_an_entry_that_lies_about_its_size_is_not_unpacked_whole(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"bomb.jpg": bytes(2 * MAX_FILE_BYTES)})
    data = bytearray(path.read_bytes())
    central = data.index(CENTRAL_HEADER) + 24
    data[22:26] = data[central : central + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="zip entry"):
            ZipArchive(path).read("bomb.jpg")
        assert tracemalloc.get_traced_memory()[1] < MAX_FILE_BYTES
    finally:
        tracemalloc.stop()


def test_an_entry_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceChangedError, match=r"'b\.jpg': vanished"):
        ZipArchive(write_zip(tmp_path / "a.zip", {"a.jpg": b"x"})).read("b.jpg")


def test_an_archive_goes_to_other_threads_and_processes(tmp_path):
    names = [f"{number}.jpg" for number in range(64)]
    files = ZipArchive(write_zip(tmp_path / "a.zip", {name: name.encode() * 500 for name in names}))
    copy = pickle.loads(pickle.dumps(files))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(copy.read, names))
    assert [file.data for file in read] == [name.encode() * 500 for name in names]


# ---------------------------------------------------------------- opening


def test_folders_and_archives_are_told_apart_by_what_they_are(tmp_path):
    archive = write_zip(tmp_path / "no-ending", {"a.jpg": b"x"})
    (tmp_path / "folder.zip").mkdir()
    assert isinstance(open_files(archive), ZipArchive)
    assert isinstance(open_files(tmp_path / "folder.zip"), Folder)


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04 and then nothing"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(SourceError, match="neither a folder"):
        open_files(tmp_path / "a.zip")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file or folder"):
        open_files(tmp_path / "missing")


def test_an_archive_cut_short_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"x" * 500, "b.jpg": b"y" * 500})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SourceError):
        open_files(path)


def _archive_bytes() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("query/1.jpg", b"x" * 40, zipfile.ZIP_DEFLATED)
        archive.writestr("query/é.jpg", b"y" * 40, zipfile.ZIP_LZMA)
        archive.writestr("3.jpg", b"z" * 40, zipfile.ZIP_STORED)
    return file.getvalue()


ARCHIVE = _archive_bytes()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turned=st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=2))
def test_no_turned_byte_of_an_archive_raises_anything_unexpected(tmp_path, turned):
    data = bytearray(ARCHIVE)
    for position, value in turned:
        data[position] = value
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    try:
        files = open_files(path)
        files.folders("")
        paths = [item for item in files.walk() if not isinstance(item, Rejected)]
    except EntireIdError:
        return
    for item in paths:
        try:
            files.read(item)
        except OSError:
            continue
