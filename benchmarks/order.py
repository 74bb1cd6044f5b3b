"""What the order of rows costs and brings: `make bench-order`. Identity batches, plain streams, bytes of an edit."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from order_rules import WHOLE, Rule

CHUNKS = tuple(Rule(chunk_rows=rows) for rows in (4, 8, 16, 32, 64, WHOLE))
GROUPS = (
    Rule(fixed_group_rows=256),
    Rule(group_rule=(64, 256, 4)),
    Rule(group_rule=(256, 1024, 16)),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=["batches", "plain", "chunks", "groups"])
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    need = options.files * 7_900 * 7
    if shutil.disk_usage(options.work).free < need:
        raise SystemExit(f"{need / 1e9:.0f} GB are needed in {options.work}")
    home = (options.work / "home").resolve()
    os.environ |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    os.environ.pop("HF_HUB_DISABLE_XET", None)
    # They read HF_HOME as they are imported.
    from order_bytes import compare_bytes
    from order_draws import compare_batches, compare_plain

    versions = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "datasets", "hf-xet", "numpy"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    try:
        if options.only in (None, "batches"):
            compare_batches((*CHUNKS, *GROUPS), options.epochs, options.seed)
        if options.only in (None, "plain"):
            compare_plain(CHUNKS, options.work / "plain", options.seed)
        for name, rules in (("chunks", CHUNKS), ("groups", GROUPS)):
            if options.only in (None, name):
                both = tuple(replace(rule, chunking=chunking) for rule in rules for chunking in (True, False))
                compare_bytes(both, options.work / "bytes", options.files, options.seed)
    finally:
        for folder in (home, options.work / "plain", options.work / "bytes"):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
