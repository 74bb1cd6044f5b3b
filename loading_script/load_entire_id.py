"""Load the raw crops of ENTIRe-ID with `datasets` 2 or 3, without packing them: a loading script.

    load_dataset("loading_script/load_entire_id.py", data_dir="crops", trust_remote_code=True)

`crops` holds `query/`, `bounding_box_test/`, and `bounding_box_train/` for those who have it. Rows have the columns of
a packed data set; configs are `default`, `test`, and one for each continent of a `cameras.csv` beside the crops. The
file stands alone: copy it where you need it, but never to a folder or repository that has its name.
"""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass, field

import datasets
import xxhash

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
TEST_SPLITS = ("query", "gallery")
CAMERAS_FILE = "cameras.csv"
UNKNOWN = "unknown"
# The usual `([-\d]+)_c(\d)` reads camera 021 as 0: the whole name must match, and the whole number is the camera.
NAME = re.compile(r"(-1|[0-9]{1,300})_c([0-9]{1,300})s([0-9]{1,300})_([0-9]{1,300})")
SUFFIXES = {".jpg", ".jpeg", ".png"}
CONTINENT = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = {"default", "test", "meta"}
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 89_478_485
BLOCK_CROPS = 100  # what a process takes at a time

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "key": datasets.Value("string"),
        "pid": datasets.Value("int32"),
        "camid": datasets.Value("int32"),
        "continent": datasets.Value("string"),
        "seq": datasets.Value("int32"),
        "frame": datasets.Value("int64"),
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
        "xxh3": datasets.Value("string"),
    }
)


# --- which files are crops --------------------------------------------------------------------------------------------


class Refused(Exception):
    """A file is no crop; its text is the reason, as `entire-id pack` names it."""


@dataclass
class LeftOut:
    """Files that are no crops: counted, and told at the end."""

    reasons: Counter = field(default_factory=Counter)
    first: dict = field(default_factory=dict)

    def add(self, path, reason):
        self.reasons[reason] += 1
        self.first.setdefault(reason, os.fsencode(path).decode(errors="backslashreplace"))

    def tell(self):
        if self.reasons:
            counts = ", ".join(f"{number:,} {why} (first: {self.first[why]})" for why, number in self.reasons.items())
            warnings.warn(f"{sum(self.reasons.values()):,} files are left out: {counts}", stacklevel=2)


@dataclass
class Listing:
    """The crops of a folder.

    Attributes:
        names: split → continent → paths below the split's folder.
        continents: camid → continent, None where it cannot name a config.
        left_out: files that are no crops.
    """

    names: dict
    continents: dict
    left_out: LeftOut

    @property
    def configs(self):
        """Names of all configs."""
        found = sorted({continent for by_continent in self.names.values() for continent in by_continent})
        has_test = any(split in self.names for split in TEST_SPLITS)
        return ["default", *(["test"] if has_test else []), *([] if found == [UNKNOWN] else found)]


def check_folder(folder):
    """Refuse what is no folder of raw crops."""
    if not folder or not os.path.isdir(folder):
        raise ValueError(f"data_dir is {folder!r}, expected the folder that holds {', '.join(FOLDERS.values())}")
    if os.path.exists(os.path.join(folder, "manifest.json")):
        raise ValueError(f"{folder!r} is packed already: load_dataset({folder!r}) reads it, without this script")
    if not any(os.path.isdir(os.path.join(folder, name)) for name in FOLDERS.values()):
        raise ValueError(f"{folder!r} holds none of the folders {', '.join(FOLDERS.values())}")


def walk(folder, below=""):
    """Yield the path and directory entry of every file, in the order of the file system."""
    with os.scandir(os.path.join(folder, below)) as entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from walk(folder, path)
            else:
                yield path, entry


def list_crops(folder):
    """Return the listing of a folder. Of several files with one key the first by path is kept."""
    check_folder(folder)
    continents = read_cameras(os.path.join(folder, CAMERAS_FILE))
    left_out = LeftOut()
    names = {split: {} for split in FOLDERS}
    keys = set()
    splits = {name: split for split, name in FOLDERS.items()}
    root = os.path.realpath(folder)
    for path in sorted(path for path, _ in walk(folder) if path != CAMERAS_FILE):
        top, _, name = path.partition("/")
        try:
            check_place(root, path)
            if not name or top not in splits:
                raise Refused("outside-splits")
            split = splits[top]
            row = parse(split, name, continents)
            if row["key"] in keys:
                raise Refused("duplicate-key")
        except Refused as refused:
            left_out.add(path, str(refused))
        else:
            keys.add(row["key"])
            names[split].setdefault(row["continent"], []).append(name)
    return Listing({split: found for split, found in names.items() if found}, continents, left_out)


def check_place(root, path):
    """Refuse names that are no text, and links that lead out."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise Refused("encoding") from None
    if "\\" in path:
        raise Refused("unsafe-path")
    full = os.path.join(root, path)
    if os.path.islink(full):
        target = os.path.realpath(full)
        if os.path.commonpath([root, target]) != root or not os.path.isfile(target):
            raise Refused("link")
    elif not os.path.isfile(full):
        raise Refused("not-an-image")


def parse(split, name, continents):
    """Return the labels that a crop's name and camera give."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or not suffix or "/" in suffix or stem.endswith("/"):
        stem, dot, suffix = name, "", ""
    if (dot + suffix).lower() not in SUFFIXES:
        raise Refused("not-an-image")
    match = NAME.fullmatch(stem.rpartition("/")[2])
    if not match:
        raise Refused("name")
    pid, camid, seq, frame = map(int, match.groups())
    if max(pid, camid, seq) > MAX_INT32 or frame > MAX_INT64:
        raise Refused("number")
    continent = continents.get(camid, UNKNOWN)
    if continent is None:
        raise Refused("continent")
    key = f"{split}/" + stem.replace("%", "%25").replace(".", "%2E")
    return {"key": key, "pid": pid, "camid": camid, "continent": continent, "seq": seq, "frame": frame}


def read_cameras(path):
    """Return camid → continent; nothing where there is no `cameras.csv`."""
    if not os.path.isfile(path):
        return {}
    with open(path, "rb") as file:
        rows = csv.DictReader(io.StringIO(file.read().decode("utf-8-sig"), newline=""))
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    if not {"camid", "continent"} <= set(rows.fieldnames):
        raise ValueError(f"{path!r}: needs the columns camid and continent, has {', '.join(rows.fieldnames)}")
    continents = {}
    for row in rows:
        camid, continent = ((row[name] or "").strip() for name in ("camid", "continent"))
        if not re.fullmatch(r"[0-9]{1,9}", camid) or int(camid) in continents:
            raise ValueError(f"{path!r}, line {rows.line_num}: camid {camid!r} is no number ≥ 0, or stands there twice")
        continents[int(camid)] = continent_slug(continent) if continent else UNKNOWN
    return continents


def continent_slug(name):
    """Return a continent as a config name, None where it cannot be one."""
    letters = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    slug = re.sub(r"[\s\-]+", "_", "".join(letters).strip().lower())
    return slug if CONTINENT.fullmatch(slug) and slug not in TAKEN else None


# --- what is in a file ------------------------------------------------------------------------------------------------


def read_image(path):
    """Return the bytes of a complete JPEG or PNG, its width and its height."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        raise Refused("unreadable") from None
    if len(data) > MAX_FILE_BYTES:
        raise Refused("too-large")
    if not data:
        raise Refused("empty")
    if data.startswith(b"\xff\xd8\xff"):
        width, height = jpeg_size(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = png_size(data)
    else:
        raise Refused("not-an-image")
    if width * height > MAX_PIXELS:
        raise Refused("too-large")
    return data, width, height


def jpeg_size(data):
    """Return width and height as the frame header states them (ITU-T T.81, B.1 and B.2)."""
    size = (0, 0)
    position, stop = 2, len(data) - 8
    while position < stop:
        start, marker, length = struct.unpack_from(">BBH", data, position)
        if start != 0xFF:
            raise Refused("corrupt")
        if marker == 0xDA:  # the first scan
            break
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # stand alone
            position += 2
        else:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                size = struct.unpack_from(">5xHH", data, position)[::-1]
            position += 2 + length
    else:
        raise Refused("truncated")
    if not all(size):
        raise Refused("corrupt")
    if data.rfind(b"\xff\xd9") < position:
        raise Refused("truncated")
    return size


def png_size(data):
    """Return width and height as the header chunk states them."""
    if len(data) < 33:
        raise Refused("truncated")
    width, height = struct.unpack_from(">16xII", data)
    if data[12:16] != b"IHDR" or not width or not height:
        raise Refused("corrupt")
    if b"IEND\xaeB`\x82" not in data:
        raise Refused("truncated")
    return width, height


# --- the builder ------------------------------------------------------------------------------------------------------


@dataclass
class EntireIdConfig(datasets.BuilderConfig):
    """Which crops of a folder."""

    def create_config_id(self, config_kwargs, custom_features=None):
        """Return the name of the cache: another folder, or another file in it, is another one.

        `datasets` names it by the text of `data_dir` alone, and serves what once lay there.
        """
        check_folder(self.data_dir)
        total = 0  # a sum: millions of files need no sorting
        for path, entry in walk(self.data_dir):
            stat = entry.stat(follow_symlinks=False)
            line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
            total += xxhash.xxh3_64_intdigest(line.encode(errors="surrogateescape"))
        place = os.path.realpath(self.data_dir).encode(errors="surrogateescape")
        digest = xxhash.xxh3_64_hexdigest(b"%d " % total + place)
        return f"{super().create_config_id(config_kwargs, custom_features)}-{digest}"


class EntireId(datasets.GeneratorBasedBuilder):
    """The raw crops of ENTIRe-ID."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = EntireIdConfig
    DEFAULT_CONFIG_NAME = "default"

    def _info(self):
        return datasets.DatasetInfo(
            description="Person re-identification crops, as they were released.",
            features=FEATURES,
            homepage="https://arxiv.org/abs/2405.20465",
        )

    def _split_generators(self, dl_manager):
        folder = os.path.abspath(self.config.data_dir)
        listing = list_crops(folder)
        listing.left_out.tell()
        name = self.config.name
        if name not in listing.configs:
            raise ValueError(f"no config {name!r}; {folder!r} has {', '.join(listing.configs)}")
        generators = []
        for split, by_continent in listing.names.items():
            if name == "test" and split not in TEST_SPLITS:
                continue
            wanted = by_continent.values() if name in TAKEN else [by_continent.get(name, [])]
            names = sorted(one for part in wanted for one in part)
            blocks = [tuple(names[start : start + BLOCK_CROPS]) for start in range(0, len(names), BLOCK_CROPS)]
            if blocks:
                kwargs = {"folder": folder, "split": split, "blocks": blocks, "continents": listing.continents}
                generators.append(datasets.SplitGenerator(split, gen_kwargs=kwargs))
        return generators

    def _generate_examples(self, folder, split, blocks, continents):
        left_out = LeftOut()
        for name in (name for block in blocks for name in block):
            path = f"{FOLDERS[split]}/{name}"
            try:
                data, width, height = read_image(os.path.join(folder, path))
            except Refused as refused:
                left_out.add(path, str(refused))
                continue
            labels = parse(split, name, continents)
            image = {"bytes": data, "path": name.rpartition("/")[2]}
            yield (
                labels["key"],
                {
                    "image": image,
                    **labels,
                    "width": width,
                    "height": height,
                    "xxh3": xxhash.xxh3_64_hexdigest(data),
                },
            )
        left_out.tell()
