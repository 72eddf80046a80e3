"""How long does clipguard take to start, beside the libraries that every CLIP script imports?

`python startup.py` runs `python -c "import torch, open_clip"`, `clipguard --help`, `clipguard list attacks` and
`clipguard bench --attack none -n 8` on the embedded model in turns, each in a process of its own with one thread, and
writes processor seconds, wall seconds and peak memory to `results/startup.json`. Takes about three minutes.
`--importtime` prints the slowest imports of one of them instead: `python startup.py --importtime "list attacks"`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

IMPORTS = "import torch, open_clip"
COMMANDS = {
    IMPORTS: ["-c", IMPORTS],
    "--help": ["-m", "clipguard", "--help"],
    "list attacks": ["-m", "clipguard", "list", "attacks"],
    "bench": ["-m", "clipguard", "-q", "bench", "--model", "tiny", "--attack", "none", "-n", "8", "--no-store"],
}
SLOW = 50_000  # microseconds of an import that is shown


def start(name: str, *options: str) -> tuple[dict[str, float], str]:
    """What one process took, and what it wrote to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *options, *COMMANDS[name]]
        if name == "bench":
            command += ["--out", f"{folder}/run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, **quiet)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)  # of this process alone; RUSAGE_CHILDREN has the largest of all
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed: {said}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    numbers = {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
        "wall_seconds": round(wall, 3),
        "peak_mib": round(used.ru_maxrss * unit / 2**20, 1),
    }
    return numbers, said


def show_imports(name: str) -> None:
    """Imports that take long, their own imports included, those that need them above."""
    lines = []
    for line in start(name, "-X", "importtime")[1].splitlines():
        found = re.fullmatch(r"import time: +\d+ \| +(\d+) \|( +)(\S+)", line)
        if found and int(found[1]) >= SLOW:
            lines.append(f"{int(found[1]) / 1e6:8.2f} s {found[2]}{found[3]}")
    print("\n".join(reversed(lines)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--importtime", choices=list(COMMANDS), metavar="COMMAND", help=" | ".join(COMMANDS))
    args = parser.parse_args()
    if args.importtime:
        show_imports(args.importtime)
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    load = []
    for name in COMMANDS:  # without the clock: files come into the system's cache, and bench tests the processor once
        start(name)
    for repeat in range(args.repeats):
        load.append(round(os.getloadavg()[0], 2))
        for name in list(COMMANDS)[:: -1 if repeat % 2 else 1]:
            runs[name].append(start(name)[0])
            print(name, json.dumps(runs[name][-1]), flush=True)
    from common import provenance, save  # not before: a process's peak is at least what its parent holds

    results: dict[str, dict[str, Any]] = {}
    for name, found in runs.items():
        columns = {key: [run[key] for run in found] for key in found[0]}
        results[name] = {key: [statistics.median(v), min(v), max(v)] for key, v in columns.items()}
    content = {"unit": "median, min, max", "results": results, "load_average": load, "cores": os.cpu_count()}
    save("startup", content | {"runs": runs} | provenance())
    print(f"\n{'':24} {'CPU s':>7} {'wall s':>7} {'MiB':>7}")
    for name, row in results.items():
        print(f"{name:24} {row['cpu_seconds'][0]:7.2f} {row['wall_seconds'][0]:7.2f} {row['peak_mib'][0]:7.0f}")


if __name__ == "__main__":
    main()
