"""Pack a tree with another system, in an environment of its own: `rivals_pack.py SYSTEM SOURCE OUT`.

`rivals_pack.py check-SYSTEM SOURCE OUT` reads back what it wrote.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def crops(source: str) -> Iterator[tuple[str, int, int, bytes]]:
    """Yield (key, pid, camid, bytes) of every crop."""
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        with os.scandir(f"{source}/{folder}") as entries:
            for entry in entries:
                with open(entry.path, "rb") as file:  # noqa: PTH123
                    yield f"{folder}/{entry.name[:-4]}", int(entry.name[:5]), int(entry.name[7:10]), file.read()


def webdataset(source: str, out: str) -> None:
    import webdataset as wds

    with wds.ShardWriter(f"{out}/%05d.tar", maxcount=22_500, maxsize=1e12, verbose=0) as writer:
        for key, pid, camid, data in crops(source):
            writer.write({"__key__": key, "jpg": data, "json": {"pid": pid, "camid": camid}})


def datasets(source: str, out: str) -> None:
    from datasets import Dataset, Features, Image, Value

    def rows(folder: str) -> Iterator[dict[str, object]]:
        for key, pid, camid, data in crops(folder):
            yield {"image": {"bytes": data, "path": None}, "key": key, "pid": pid, "camid": camid}

    features = Features(image=Image(), key=Value("string"), pid=Value("int32"), camid=Value("int32"))
    table = Dataset.from_generator(rows, features, cache_dir=f"{out}/cache", gen_kwargs={"folder": source})
    table.to_parquet(f"{out}/all.parquet")


def lance(source: str, out: str) -> None:
    import lance as lance_format
    import pyarrow as pa

    schema = pa.schema([("key", pa.string()), ("pid", pa.int32()), ("camid", pa.int32()), ("image", pa.large_binary())])

    def batches() -> Iterator[pa.RecordBatch]:
        rows: list[tuple[str, int, int, bytes]] = []
        for row in crops(source):
            rows.append(row)
            if len(rows) == 1000:
                yield pa.RecordBatch.from_arrays(
                    [pa.array(c, f.type) for c, f in zip(zip(*rows), schema)], schema=schema
                )
                rows = []
        if rows:
            yield pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(zip(*rows), schema)], schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lance_format.write_dataset(reader, f"{out}/all.lance")


def images(system: str, out: str) -> Iterator[bytes]:
    """Yield every image that a system wrote."""
    if system == "webdataset":
        import tarfile

        for path in sorted(Path(out).glob("*.tar")):
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name.endswith(".jpg"):
                        yield archive.extractfile(member).read()
    elif system == "datasets":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(f"{out}/all.parquet").iter_batches(500, columns=["image"]):
            yield from batch["image"].field("bytes").to_pylist()
    else:
        import lance as lance_format

        for batch in lance_format.dataset(f"{out}/all.lance").to_batches(columns=["image"], batch_size=500):
            yield from batch["image"].to_pylist()


if __name__ == "__main__":
    verb, source, out = sys.argv[1:4]
    if verb.startswith("check-"):
        total = 0
        for image in images(verb.removeprefix("check-"), out):  # a sum of digests does not depend on the order
            total = (total + int.from_bytes(hashlib.sha256(image).digest()[:16], "big")) % 2**128
        print(total)
    else:
        globals()[verb](source, out)
