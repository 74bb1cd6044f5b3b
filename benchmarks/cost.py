"""Run a command and print what it cost, all its descendants included: `python -S cost.py COMMAND …`.

A program of its own, and a small one: Linux counts the memory of whoever starts a process as that process's, and the
times of grandchildren only reach whoever waits for them.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36  # orphans become children of this process, so that their times are counted
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
code = process.wait()
wall_s = time.perf_counter() - start
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
cost = {
    "user_s": usage.ru_utime,
    "total_s": usage.ru_utime + usage.ru_stime,
    "wall_s": wall_s,
    "peak_mb": usage.ru_maxrss / 1024,
}
print(json.dumps(cost))
sys.exit(code)
