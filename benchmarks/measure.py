"""What a command costs, its descendants included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """What one run cost; the peak is that of the largest process."""

    user_s: float
    total_s: float
    wall_s: float
    peak_mb: float


def measure(command: list[str], folder: Path) -> Run:
    """Run a command to its end in `folder` and return what it cost."""
    os.sync()
    launcher = [sys.executable, "-S", str(Path(__file__).with_name("cost.py"))]
    done = subprocess.run([*launcher, *command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout))
