"""One epoch of crops with one system: `load_one.py VERB SYSTEM FOLDER WORKERS` prints one line of JSON.

`prepare` writes what the system reads below FOLDER, from the crops of `crops/bounding_box_train` or from the packed
`ours`; `check` saves a digest of every crop that comes out; `time` says what the epoch cost. Everybody gives batches of
64 crops as (n, 256, 128, 3) uint8 tensors with their identities: resized by Pillow's bilinear filter, and decoded by
simplejpeg wherever the decoder can be chosen and the name says nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader

HEIGHT, WIDTH = 256, 128
BATCH, P, K = 64, 16, 4
SEED, BUFFER = 0, 1000


def resized(picture: Image.Image) -> np.ndarray:
    return np.array(picture.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def decoded(data: bytes) -> np.ndarray:
    return resized(Image.fromarray(simplejpeg.decode_jpeg(data, "RGB")))


def train_files(folder: Path) -> list[tuple[str, int]]:
    """Return (path, pid) of every crop."""
    source = folder / "crops" / "bounding_box_train"
    return [(f"{source}/{name}", int(name[:5])) for name in sorted(os.listdir(source))]  # noqa: PTH208


def read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def batches(dataset, workers: int, loader=DataLoader, **options):
    """Iterate over what a data set gives, as (images, pids). Workers start with the first batch, not before."""
    for batch in loader(dataset, num_workers=workers, **{"batch_size": BATCH} | options):
        yield (batch["image"], batch["pid"]) if isinstance(batch, dict) else batch


# --- ours -------------------------------------------------------------------------------------------------------------


def ours_transform():
    from entire_id import EvalTransform

    return EvalTransform(HEIGHT, WIDTH, dtype="uint8")


def ours_map(folder: Path, workers: int):
    from entire_id import CropDataset

    return batches(CropDataset(folder / "ours", "train", transform=ours_transform()), workers, shuffle=True)


def ours_pk(folder: Path, workers: int):
    from entire_id import CropDataset, PKSampler

    dataset = CropDataset(folder / "ours", "train", transform=ours_transform())
    return batches(dataset, workers, batch_size=1, batch_sampler=PKSampler(dataset.pids, P, K))


def ours_stream(folder: Path, workers: int):
    from entire_id import PKStream

    stream = PKStream(folder / "ours", "train", P, K, transform=ours_transform())
    return batches(stream, workers, batch_size=None)


def ours_uniform(folder: Path, workers: int):
    from entire_id import PKStream, StreamOptions

    uniform = StreamOptions(uniform=True)
    stream = PKStream(folder / "ours", "train", P, K, transform=ours_transform(), options=uniform)
    return batches(stream, workers, batch_size=None)


# --- the limit, and plain folders -------------------------------------------------------------------------------------


def limit(folder: Path, workers: int):  # noqa: ARG001
    """Decode and resize from memory: no files, no order, no batches."""
    crops = [(read(path), pid) for path, pid in train_files(folder)]
    return (([decoded(data)], [pid]) for data, pid in crops)


class Files:
    """As ReID code reads: a list of files."""

    def __init__(self, folder: Path, open_crop) -> None:
        self.files = train_files(folder)
        self.open_crop = open_crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int):
        path, pid = self.files[row]
        return self.open_crop(path), pid


def folder_pil(folder: Path, workers: int):
    return batches(Files(folder, lambda path: resized(Image.open(path).convert("RGB"))), workers, shuffle=True)


def folder_simplejpeg(folder: Path, workers: int):
    return batches(Files(folder, lambda path: decoded(read(path))), workers, shuffle=True)


# --- datasets ---------------------------------------------------------------------------------------------------------


def hub_rows(folder: Path, **options):
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import config, load_dataset

    config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # 5 s at the end of a shuffled stream; nothing in a long epoch
    files = str(folder / "ours" / "data" / "train" / "*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "hub"), **options)
    return rows.select_columns(["image", "pid"])


def by_default(rows: dict) -> dict:
    return {"image": [resized(image) for image in rows["image"]], "pid": rows["pid"]}


def by_simplejpeg(rows: dict) -> dict:
    return {"image": [decoded(image["bytes"]) for image in rows["image"]], "pid": rows["pid"]}


def datasets_map(folder: Path, workers: int):
    return batches(hub_rows(folder).with_transform(by_default), workers, shuffle=True)


def datasets_map_simplejpeg(folder: Path, workers: int):
    from datasets import Image as ImageFeature

    rows = hub_rows(folder).cast_column("image", ImageFeature(decode=False))
    return batches(rows.with_transform(by_simplejpeg), workers, shuffle=True)


def datasets_stream(folder: Path, workers: int):
    rows = hub_rows(folder, streaming=True).shuffle(seed=SEED, buffer_size=BUFFER)
    return batches(rows.map(lambda row: row | {"image": resized(row["image"])}), workers)


# --- webdataset, MDS, litdata -----------------------------------------------------------------------------------------


def prepare_webdataset(folder: Path) -> None:
    import webdataset

    crops = shuffled(train_files(folder))
    tars = f"{folder}/webdataset/%05d.tar"
    with webdataset.ShardWriter(tars, maxcount=len(crops) // 7, verbose=0) as writer:  # 8 tars: workers share them out
        for number, (path, pid) in enumerate(crops):
            writer.write({"__key__": f"{number:08d}", "jpg": read(path), "cls": pid})


def webdataset(folder: Path, workers: int):
    import webdataset

    tars = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    rows = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=SEED).shuffle(BUFFER)
    return batches(rows.map(lambda row: (decoded(row["jpg"]), int(row["cls"]))), workers)


def let_torchvision_in() -> None:
    """MDS imports torchvision and uses nothing of it: its wheel for GPUs will do, beside a torch for CPUs."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # its operators are missing, and those that it looks up have to be declared
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)


DECLARED: list[torch.library.Library] = []  # as long as it lives


def prepare_mds(folder: Path) -> None:
    let_torchvision_in()
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"jpg": "bytes", "pid": "int"}) as writer:
        for path, pid in shuffled(train_files(folder)):
            writer.write({"jpg": read(path), "pid": pid})


def mds(folder: Path, workers: int):
    let_torchvision_in()
    from streaming import StreamingDataset

    class Crops(StreamingDataset):
        def __getitem__(self, row: int):
            found = super().__getitem__(row)
            return decoded(found["jpg"]), found["pid"]

    dataset = Crops(local=str(folder / "mds"), batch_size=BATCH, shuffle=True, shuffle_seed=SEED)
    return batches(dataset, workers)


def litdata_row(crop: tuple[str, int]) -> dict:
    return {"jpg": read(crop[0]), "pid": crop[1]}


def prepare_litdata(folder: Path) -> None:
    import litdata

    crops = shuffled(train_files(folder))
    litdata.optimize(litdata_row, crops, str(folder / "litdata"), chunk_bytes="64MB", num_workers=1)


def litdata(folder: Path, workers: int):
    import litdata

    class Crops(litdata.StreamingDataset):
        def __getitem__(self, row):
            found = super().__getitem__(row)
            return decoded(found["jpg"]), found["pid"]

    dataset = Crops(str(folder / "litdata"), shuffle=True, drop_last=False, seed=SEED)
    return batches(dataset, workers, litdata.StreamingDataLoader)


def shuffled(crops: list) -> list:
    """What a careful user does before writing shards that are read in order."""
    return [crops[row] for row in np.random.default_rng(SEED).permutation(len(crops))]


# --- what is done with them -------------------------------------------------------------------------------------------

SYSTEMS = {
    "limit": limit,
    "map": ours_map,
    "pk": ours_pk,
    "stream": ours_stream,
    "uniform": ours_uniform,
    "folder-pil": folder_pil,
    "folder-simplejpeg": folder_simplejpeg,
    "datasets-map": datasets_map,
    "datasets-map-simplejpeg": datasets_map_simplejpeg,
    "datasets-stream": datasets_stream,
    "webdataset": webdataset,
    "mds": mds,
    "litdata": litdata,
}
PREPARATIONS = {"webdataset": prepare_webdataset, "mds": prepare_mds, "litdata": prepare_litdata}


def prepare(system: str, folder: Path, workers: int) -> dict:  # noqa: ARG001
    done = folder / f"{system}.prepared"
    if system in PREPARATIONS and not done.exists():
        shutil.rmtree(folder / system, ignore_errors=True)
        (folder / system).mkdir()
        PREPARATIONS[system](folder)
        done.touch()
    return {}


def check(system: str, folder: Path, workers: int) -> dict:
    """Save the digest of every crop and its identity, sorted."""
    digests = [
        int.from_bytes(hashlib.blake2b(np.asarray(image).tobytes() + b"%d" % int(pid), digest_size=8).digest())
        for images, pids in SYSTEMS[system](folder, workers)
        for image, pid in zip(images, pids)
    ]
    path = folder / f"digests-{system}-{workers}.npy"
    np.save(path, np.sort(np.array(digests, np.uint64)))
    return {"digests": str(path)}


def warm_up(folder: Path) -> None:
    """Bring the files into the page cache, and the codecs to their first call."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    picture = io.BytesIO()
    Image.new("RGB", (64, 128)).save(picture, "JPEG")
    decoded(picture.getvalue())


def cpu_s() -> float:
    """CPU time of this process and of those that it waited for: workers are, when their epoch ends."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def time_epoch(system: str, folder: Path, workers: int) -> dict:
    epoch: Iterator = iter(SYSTEMS[system](folder, workers))
    warm_up(folder)
    wall, cpu = time.perf_counter(), cpu_s()
    images = sum(len(pids) for _, pids in epoch)
    return {"images": images, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_s() - cpu}


def main() -> None:
    verb, system, folder, workers = sys.argv[1:5]
    verbs = {"prepare": prepare, "check": check, "time": time_epoch}
    try:
        result = verbs[verb](system, Path(folder).resolve(), int(workers))
    except ImportError as error:
        result = {"missing": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
