"""Does memory grow with the number of images?

`python memory_scale.py` has `clipguard bench --attack none` measure the embedded model on synthetic parquet files of
more and more images of 272 pixels, each in a process of its own, and takes the largest resident set of that process.
Decoded images are kept up to two gigabytes, by design, which 9,700 of these fill. Writes `results/memory_scale.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import provenance, save
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from PIL import Image

CLASSES = ["apple", "bear", "cat", "dog", "elephant", "fish", "goat", "horse", "iguana", "jackal"]
DISTINCT, BLOCK = 500, 1000  # pictures, which come again and again; rows of a row group
SIDE, PATCH = 272, 68  # pixels of a picture, and of its patches of one colour


def make_data(path: Path, images: int) -> None:
    """A parquet file as `datasets` writes them, row group by row group."""
    draw = np.random.default_rng(0)
    pictures = []
    for colours in draw.integers(0, 256, (DISTINCT, SIDE // PATCH, SIDE // PATCH, 3), dtype=np.uint8):
        content = io.BytesIO()
        Image.fromarray(colours.repeat(PATCH, axis=0).repeat(PATCH, axis=1)).save(content, "PNG")
        pictures.append({"bytes": content.getvalue(), "path": None})
    schema = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)}).arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, images, BLOCK):
            numbers = range(start, min(images, start + BLOCK))
            columns = {
                "image": [pictures[number % DISTINCT] for number in numbers],
                "label": [number % len(CLASSES) for number in numbers],
            }
            writer.write_table(pa.table(columns, schema=schema))


def measure(folder: Path, images: int) -> dict[str, float]:
    """The largest resident set of a run, in MiB, and its seconds."""
    data = folder / f"{images}.parquet"
    make_data(data, images)
    line = ["-q", "bench", "-d", str(data), "--attack", "none", "-n", "all", "--no-probes", "--device", "cpu"]
    line += ["--store", str(folder / "store"), "--format", "csv", "--out", str(folder / f"out-{images}")]
    started = time.perf_counter()
    run = subprocess.Popen([sys.executable, "-m", "clipguard", *line], stdout=subprocess.DEVNULL)
    peak = 0
    while run.poll() is None:
        peak = max(peak, _resident(run.pid))
        time.sleep(0.1)
    assert run.returncode == 0
    data.unlink()
    return {"images": images, "peak_mib": peak, "seconds": round(time.perf_counter() - started, 1)}


def _resident(process: int) -> int:
    """MiB of a process: what is its own, not the pages of files that the system can take back."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines.get("RssAnon", "0 kB").split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[10_000, 30_000, 100_000])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for images in args.images:
            rows.append(measure(Path(folder), images))
            print(json.dumps(rows[-1]), flush=True)
            _save(rows)


def _save(rows: list[dict[str, float]]) -> None:
    """What is known so far: the largest run takes an hour."""
    first, last = rows[0], rows[-1]
    grown = (last["peak_mib"] - first["peak_mib"]) * 2**20 / max(last["images"] - first["images"], 1)
    content = {
        "runs": rows,
        "bytes_an_image": round(grown),
        "largest_over_smallest": round(last["peak_mib"] / first["peak_mib"], 3),
        "load_average": os.getloadavg()[0],
        **provenance(),
    }
    save("memory_scale", content)


if __name__ == "__main__":
    main()
