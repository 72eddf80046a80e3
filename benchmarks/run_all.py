"""Measures everything anew that runs on a CPU without other files, and writes the README's tables.

`python run_all.py` (`make benchmarks`) says first how long each script takes, roughly, on two cores; `--list` says only
that, `--only NAME ...` runs some of them. One that fails is told at the end and stops none of the others.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROBUST = "build/robust-tiny"
ON_ROBUST, VARIANTS = f"--model local-dir:{ROBUST}", "--variants exact nested compiled"


@dataclass(frozen=True)
class Step:
    """A script, what it is given, and how many minutes it takes or so."""

    script: str
    minutes: int
    arguments: str = ""
    note: str = ""


STEPS = [
    Step("startup", 4),
    Step("few_images", 5),
    Step("head_cost", 5),
    Step("profile_attack", 20),
    Step("attack_memory", 15),
    Step("allocator", 45),
    Step("loading", 5),
    Step("scaling_simulation", 10),
    Step("store_scale", 10),
    Step("memory_scale", 5),
    Step("robust_tiny", 10, f"--out {ROBUST}", "a model that the next ones need"),
    Step("pgd_cycles", 30, f"--model tiny --model {ROBUST}"),
    Step("plan_error", 10, f"--model tiny --eps 1,4 --model local-dir:{ROBUST} --eps 4,12"),
    Step(
        "plan_error",
        10,
        "--eps 4 --attack 'apgd-ce(iterations=5)+square(queries=20)' --n-samples 60 --seeds 2 --votes 3 --draws 2 "
        "--defense csr --defense jpeg --defense random-resize",
    ),
    Step(
        "attack_speed", 30, f"--name 'robust, autoattack-fast' --attack autoattack-fast --n 24 {ON_ROBUST} {VARIANTS}"
    ),
    Step("attack_speed", 60, f"--name 'robust, autoattack' --attack autoattack --n 8 {ON_ROBUST} {VARIANTS}"),
    Step(
        "attack_parity",
        0,
        f"--robust local-dir:{ROBUST}",
        "seven hours if its results are deleted first: what is there is not run again",
    ),
    Step("compare_sequential", 2),
    Step("chance_check", 13),
    Step("finetuning_speed", 15),
    Step("gpu", 240, note="only where there is a GPU"),
    Step("tables", 0, note="the README's tables, from the results"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[step.script for step in STEPS], metavar="NAME")
    args = parser.parse_args()
    steps = [step for step in STEPS if not args.only or step.script in args.only]
    if not torch.cuda.is_available():
        steps = [step for step in steps if step.script != "gpu"]
    for step in steps:
        print(f"{step.script:20} {step.minutes:4} min  {step.note}".rstrip())
    print(f"{'all':20} {sum(step.minutes for step in steps):4} min, roughly", flush=True)
    if args.list:
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    failed = []
    for step in steps:
        print(f"\n== {step.script} {step.arguments}", flush=True)
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(HERE / f"{step.script}.py"), *shlex.split(step.arguments)], env=environment
        )
        print(f"== {step.script}: {(time.perf_counter() - started) / 60:.1f} min", flush=True)
        if done.returncode:
            failed.append(step.script)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
