"""Pack here, load with datasets 3.6.0 in an environment of its own: `make test-datasets3`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-datasets3"
REAL_CROPS = ROOT.parent / "shared" / "real" / "crops"

sys.path.insert(0, str(HERE.parent))

from builders import CAMERAS, crop_names, image_bytes, many_crops, pack_folder, write_crops  # noqa: E402


def make_environment() -> Path:
    """Return the Python of the environment, installing it once."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        constraints = ["--constraint", HERE / "constraints.txt"]
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *constraints, "datasets==3.6.0", "pillow"], check=True)
        stamp.touch()
    return python


def make_folders(root: Path) -> None:
    """Write what `check.py` loads: both formats, twins one byte apart, many crops, the real ones where they are."""
    crops = write_crops(root / "crops", [*crop_names(), "bounding_box_train/00000_c000s0_1.png"])
    (crops / "cameras.csv").write_text(CAMERAS)
    for format_ in ("parquet", "webdataset"):
        pack_folder(crops, root / format_ / "entire-id", format=format_)
        if REAL_CROPS.is_dir():
            pack_folder(REAL_CROPS, root / f"real-{format_}" / "entire-id", format=format_)
    many_crops(root / "many", people=60, shots=4)
    for twin in "ab":
        twin_crops = write_crops(root / f"crops-{twin}", crop_names())
        (twin_crops / "query" / "00000_c000s0_760487.jpg").write_bytes(image_bytes(99) + twin.encode())
        pack_folder(twin_crops, root / f"twin-{twin}" / "entire-id")


def main() -> None:
    """Make the environment and the folders, and run the checks there."""
    python = make_environment()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folders(root)
        real = str(REAL_CROPS) if REAL_CROPS.is_dir() else ""
        environment = {**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        subprocess.run(
            [python, HERE / "check.py", root, real, ROOT / "loading_script" / "load_entire_id.py"],
            check=True,
            env=environment,
        )


if __name__ == "__main__":
    main()
