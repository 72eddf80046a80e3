"""How fast is a table from a full store of a million rows, how large are they, and what do 64 writers at once cost?

`python store_scale.py` makes a store under the real keys of ten attacks at nine eps on 10,000 small images, a hundred
rows an image, and has `clipguard bench` render it, in a process of its own and timed whole. Outcomes are drawn, for
only their number counts. Then 64 processes write into one cell while it is merged. Writes `results/store_scale.json`,
in about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

# Nothing heavier up here: the writers are forks of this process.
from clipguard.store.store import COLUMNS, Store, StoredCell, distinct

ATTACKS = [f"pgd-{steps}" for steps in range(2, 12)]
EPS = list(range(1, 10))
CLASSES = ["apple", "bear", "cat", "dog", "elephant", "fish", "goat", "horse", "iguana", "jackal"]
SEGMENTS, WRITERS, EACH = 20, 64, 8  # of a cell; processes, and segments of each
# Between this process and a command: Linux counts the memory of the process that starts one as its own.
WAIT = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
T = TypeVar("T")


def make_images(path: Path, images: int) -> list[str]:
    """A data set of small images, and the hashes of their pixels."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Pillow

    from clipguard.core.records.provenance import image_hash

    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    pictures = [Pillow.fromarray(one) for one in pixels]
    columns = {"image": pictures, "label": [number % len(CLASSES) for number in range(images)]}
    Dataset.from_dict(columns, Features({"image": Image(), "label": ClassLabel(names=CLASSES)})).to_parquet(path)
    return [image_hash(picture) for picture in pictures]


def make_rows(cell: StoredCell, attack: str, data: str, hashes: list[str], indices: np.ndarray) -> pd.DataFrame:
    """Rows of these images at eps 0 and all others: about half are broken at the last."""
    draw = np.random.default_rng(int(indices[0]))
    frames = []
    for eps in (0, *EPS):
        robust = draw.random(len(indices)) < 0.55 if eps == EPS[-1] else np.ones(len(indices), dtype=bool)
        label = indices % len(CLASSES)
        columns = {
            "cell": cell.name,
            "image": [hashes[index] for index in indices],
            "model": "tiny",
            "dataset": data,
            "index": indices,
            "label": label,
            "norm": "linf",
            "eps": float(eps),
            "attack": attack,
            "clean_pred": label,
            "adv_pred": np.where(robust, label, (label + 1) % len(CLASSES)),
            "robust": robust,
            "broken_by": np.where(robust, None, attack),
            "distance": np.where(robust, 0.0, eps),
            "margin": np.where(robust, 1, -1) * draw.random(len(indices)),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames).sort_values(["index", "eps"])[list(COLUMNS)]


def fill(store: Path, data: Path, hashes: list[str]) -> int:
    """Put rows of all images under the keys that a run on two of them has made; how many rows that are."""
    import clipguard

    options: dict[str, Any] = {"n_samples": 2, "probes": False, "device": "cpu"}
    clipguard.bench("tiny", str(data), ",".join(map(str, EPS)), ATTACKS, store=store, **options)
    total = 0
    for cell in Store(store).cells():
        known = cell.segments()
        attack = str(known[0].rows["attack"].iloc[0])
        for path in cell.folder.glob("*.parquet"):
            path.unlink()
        for indices in np.array_split(np.arange(len(hashes)), SEGMENTS):
            rows = make_rows(cell, attack, str(data), hashes, indices)
            cell.add(rows, [{**known[0].cost_log[0], "rows": len(rows)}])
            total += len(rows)
    return total


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return work(), round(time.perf_counter() - started, 2)


def command(*arguments: str) -> dict[str, float]:
    """Seconds of a command and of its processors, whole, its largest memory, and how busy the machine is."""
    line = [sys.executable, "-c", WAIT, sys.executable, "-m", "clipguard", *arguments]
    said, seconds = timed(lambda: subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)
    used, peak = map(float, said.splitlines()[-1].split())
    return {
        "seconds": seconds,
        "processor_seconds": round(used, 2),
        "peak_mib": round(peak / 1024),
        "load_average": round(os.getloadavg()[0], 1),
    }


def write_into(store: str, key: dict[str, Any], number: int) -> None:
    """What one of many writers does."""
    cell = Store(store).cell(key)
    hashes = [f"{index:064x}" for index in range(WRITERS * EACH * 4)]
    for segment in range(EACH):
        start = (number * EACH + segment) * 4
        rows = make_rows(cell, "pgd-2", "data", hashes, np.arange(start, start + 4))
        cell.add(rows, [_cost(len(rows))])


def _cost(rows: int) -> Any:
    moment = "2026-01-01T00:00:00+00:00"
    return {"versions": {}, "device": "cpu", "from": moment, "to": moment, "rows": rows, "stages": {}}


def many_writers(folder: Path) -> dict[str, Any]:
    """64 writers at once, with a merge again and again until they are done: nothing is lost."""
    context = get_context("fork")
    store, key = folder / "shared", {"device": "cpu", "of": "many writers"}
    started = time.perf_counter()
    writers = [context.Process(target=write_into, args=(str(store), key, number)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    merges: list[float] = []
    while any(writer.is_alive() for writer in writers):
        merges.append(timed(lambda: Store(store).cell(key).merge())[1])
        time.sleep(0.5)
    seconds = time.perf_counter() - started
    codes = {writer.exitcode for writer in writers}
    cell = Store(store).cell(key)
    last = timed(cell.merge)[1]
    rows = distinct(cell.segments())
    expected = WRITERS * EACH * 4 * (1 + len(EPS))
    return {
        "writers": WRITERS,
        "segments": WRITERS * EACH,
        "seconds": round(seconds, 1),
        "exit_codes": sorted(codes, key=str),
        "merges_meanwhile": len(merges),
        "longest_merge_seconds": max(merges, default=0.0),
        "last_merge_seconds": last,
        "rows": len(rows),
        "rows_lost": expected - len(rows),
        "segments_at_the_end": len(cell.segments()),
        "damaged": len(list((store / "damaged").glob("*"))),
    }


def measure(folder: Path, images: int, repeats: int) -> dict[str, Any]:
    data, store = folder / "images.parquet", folder / "store"
    hashes = make_images(data, images)
    rows = fill(store, data, hashes)
    size = sum(path.stat().st_size for path in store.glob("cells/*/*.parquet"))
    line = [
        "-q",
        "bench",
        "-d",
        str(data),
        "--attack",
        ",".join(ATTACKS),
        "--eps",
        ",".join(map(str, EPS)),
        "-n",
        "all",
    ]
    line += ["--store", str(store), "--no-probes", "--device", "cpu", "--format", "csv", "--out"]
    renders = []
    for _ in range(repeats):
        renders.append(command(*line, str(folder / "out")))
        print(json.dumps(renders[-1]), flush=True)
        run = json.loads((folder / "out" / "results.json").read_text())["run"]
        assert sum(cost["computed"] for cost in run["costs"]) == 0, "not all was in the store"
        shutil.rmtree(folder / "out")
    cells = Store(store).cells()
    segments, reading = timed(lambda: [cell.segments() for cell in cells])
    _, once = timed(lambda: [distinct(one) for one in segments])
    clean = ["-q", "bench", "-d", str(data), "--attack", "none", "--no-probes", "--device", "cpu", "--no-store"]
    clean += ["--format", "csv", "--out"]
    return {
        "images": images,
        "rows": rows,
        "cells": len(cells),
        "segments": sum(map(len, segments)),
        "render_options": "-q bench --no-probes --format csv, 10 attacks, 9 eps, all images",
        "bytes_a_row": round(size / rows, 1),
        "render": renders,
        "reading_seconds": reading,
        "distinct_seconds": once,
        "start_with_one_image": command(*clean, str(folder / "one"), "-n", "1"),
        "clean_passes_of_all_images": command(*clean, str(folder / "clean"), "-n", "all"),
        "merging": command("-q", "store", "gc", "--store", str(store)),
        "bytes_a_row_merged": round(sum(p.stat().st_size for p in store.glob("cells/*/*.parquet")) / rows, 1),
        "render_merged": command(*line, str(folder / "merged")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        writers = many_writers(Path(folder))
        print(json.dumps(writers), flush=True)
        found = measure(Path(folder), args.images, args.repeats)
    content = {**found, "many_writers": writers, "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)}
    from common import provenance, save

    save("store_scale", content | provenance())
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
