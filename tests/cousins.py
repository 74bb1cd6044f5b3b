"""Trees with the names of other data sets, and with as many crops as their authors count."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from entire_id.sources.crops import Layout
from entire_id.sources.layouts import LAYOUTS

from builders import image_bytes

NAMES = {
    "entire-id": "{pid:05d}_c{camid:03d}s0_{number}.jpg",
    "market1501": "{pid:04d}_c{camid}s1_{number:06d}_00.jpg",
    "dukemtmc-reid": "{pid:04d}_c{camid}_f{number:07d}.jpg",
    "cuhk03-np": "{pid:04d}_c{camid}_{number}.png",
    "msmt17": "{pid:04d}/{pid:04d}_{number:03d}_{camid:02d}_0303morning_{number:04d}_0.jpg",
    "last": "{pid:06d}_film_{number:05d}.jpg",
}
MSMT_FOLDERS = {"msmt17-v1": ("train", "test"), "msmt17-v2": ("mask_train_v2", "mask_test_v2")}


def names_of(family: str, crops: int, pids: Iterable[int], cameras: int = 2, first: int = 0) -> list[str]:
    """Return names of crops, dealt to people in turn and to cameras in rounds."""
    people = list(pids)
    return [
        NAMES[family].format(
            pid=people[n % len(people)], camid=1 + n // len(people) % cameras, number=first + n // len(people)
        )
        for n in range(crops)
    ]


def box_folders(family: str, train: Iterable[str], query: Iterable[str], gallery: Iterable[str]) -> list[str]:
    """Return the paths of a set in the folders of Market-1501."""
    folders = {"bounding_box_train": train, "query": query, "bounding_box_test": gallery}
    return [f"{folder}/{name}" for folder, names in folders.items() for name in names]


def market_names(train: int, query: int, people: int, distractors: int, junk: int, train_people: int = 2) -> list[str]:
    """Return the paths of Market-1501: as many labelled gallery crops as queries."""
    pids = range(2, 2 + people)
    return box_folders(
        "market1501",
        names_of("market1501", train, range(2000, 2000 + train_people)),
        names_of("market1501", query, pids),
        [
            *names_of("market1501", query, pids, first=100),
            *names_of("market1501", distractors, [0], 3),
            *(f"-1_c{1 + n % 3}s1_{n:06d}_00.jpg" for n in range(junk)),
        ],
    )


def msmt_tree(name: str, counts: dict[str, int], train_people: int, test_people: int) -> dict[str, bytes]:
    """Return the files of MSMT17: path → bytes, crops empty."""
    files: dict[str, bytes] = {}
    for number, (split, crops) in enumerate(counts.items()):
        is_train = split in ("train", "val")
        names = names_of("msmt17", crops, range(train_people if is_train else test_people), 15, 1000 * number)
        folder = MSMT_FOLDERS[name][not is_train]
        files |= {f"{folder}/{one}": b"" for one in names}
        files[f"list_{split}.txt"] = "".join(f"{one} {int(one[:4])}\n" for one in names).encode()
    return files


def last_names(crops: dict[str, int], pids: dict[str, Iterable[int]]) -> list[str]:
    """Return the paths of LaST, by folder: a folder below it for each person, but not for queries."""
    found = []
    for folder, number in crops.items():
        is_query = folder.endswith("query")
        names = names_of("last", number, pids[folder], first=50_000 * is_query)
        found += [f"{folder}/{name}" if is_query else f"{folder}/{name[:6]}/{name}" for name in names]
    return found


def small_tree(name: str) -> dict[str, bytes]:
    """Return a small data set of the given layout: path → bytes, crops empty."""
    family = name.removesuffix("-500k").removesuffix("-detected").removesuffix("-labeled")
    if name.startswith("market1501"):
        paths = market_names(8, 8, 4, 6, 5)
        paths += ["images/0000_c1s1_000151_01.jpg", "images/0000_c2_7.jpg"] * name.endswith("500k")
        return dict.fromkeys([*paths, "readme.txt", "gt_bbox/0001_c1s1_000151_01.jpg"], b"")
    if name in MSMT_FOLDERS:
        return msmt_tree(name, {"train": 12, "val": 6, "query": 8, "gallery": 16}, 3, 4)
    if name == "last":
        crops = {"test/query": 4, "train": 9, "val/gallery": 4, "test/gallery": 12}
        pids = {"test/query": range(4), "train": range(3), "val/gallery": range(2), "test/gallery": range(4)}
        return dict.fromkeys(last_names(crops, pids), b"")
    family = "dukemtmc-reid" if name == "occluded-duke" else family
    train, query, gallery = (
        names_of(family, crops, pids, first=first)
        for crops, pids, first in ((8, (1, 2), 0), (8, (3, 4, 5, 6), 10), (16, (3, 4, 5, 6, 9), 20))
    )
    files = dict.fromkeys(box_folders(family, train, query, gallery), b"")
    if name == "occluded-duke":
        files |= occluded_lists(train[:4], [*query[:4], *gallery[:2]], gallery[1:])
    return files


def occluded_lists(train: Iterable[str], query: Iterable[str], gallery: Iterable[str]) -> dict[str, bytes]:
    """Return the lists of Occluded-Duke: file name → text."""
    lists = {"train": train, "query": query, "gallery": gallery}
    return {f"{split}.list": "".join(f"{name}\n" for name in names).encode() for split, names in lists.items()}


def occluded_by_copying(duke: dict[str, bytes], lists: dict[str, bytes]) -> dict[str, bytes]:
    """Return what the authors' script makes of Duke's files; where it would stop at a lost crop, this goes on."""
    folders = {"train.list": "bounding_box_train", "query.list": "query", "gallery.list": "bounding_box_test"}
    made = {}
    for list_name, folder in folders.items():
        for name in lists[list_name].decode().splitlines():
            own, gallery = f"{folder}/{name}", f"bounding_box_test/{name}"
            if own in duke or gallery in duke:
                made[own] = duke[own if own in duke else gallery]
    return made


def draw_crops(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the files with a picture of its own for each crop."""
    for number, (path, data) in enumerate(files.items()):
        kind = {"jpg": "JPEG", "png": "PNG"}.get(path.rpartition(".")[2])
        yield path, image_bytes(number, kind=kind) if kind and not data else data


def write_tree(folder: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write files below `folder` and return it."""
    for path, data in files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def write_empty_zip(path: Path, names: Iterable[str]) -> Path:
    """Write an archive of empty files: eight times as fast as `zipfile`, for there may be hundreds of thousands."""
    version, is_utf8, first_of_january = 45, 1 << 11, 1 << 5 | 1
    facts = struct.pack("<4H3L", is_utf8, 0, 0, first_of_january, 0, 0, 0)
    files, directory = bytearray(), bytearray()
    names = list(names)
    for name in names:
        encoded, offset = name.encode(), len(files)
        length = struct.pack("<2H", len(encoded), 0)
        files += b"PK\3\4" + struct.pack("<H", version) + facts + length + encoded
        directory += b"PK\1\2" + struct.pack("<2H", version, version) + facts + length
        directory += struct.pack("<3H2L", 0, 0, 0, 0, offset) + encoded
    stop = len(files) + len(directory)
    counts = len(names), len(names), len(directory), len(files)
    end = b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, version, version, 0, 0, *counts)
    end += b"PK\6\7" + struct.pack("<LQL", 0, stop, 1)
    end += b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)  # it is told above
    path.write_bytes(files + directory + end)
    return path


def folder_name(layout: Layout) -> str:
    """Return what the folder of a small tree has to be called."""
    return layout.variants[0] if layout.variants else layout.name


assert set(MSMT_FOLDERS) < set(LAYOUTS)
