"""How often is `clipguard compare --sequential` wrong, and how many images does it save?

`python compare_sequential.py` simulates images that are lost and gained at known rates, looks after every batch as the
command does, with its own tests, and writes to `results/compare_sequential.json`:

- false alarms: how often a regression is *ever* declared where the true drop is at most the one allowed, against two
  peers: the test for a fixed number of images, used once at the end (right), and used at every look (wrong: peeking);
- power: how often the right verdict is reached, and the mean number of images when it stops.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from itertools import product

import numpy as np
import numpy.typing as npt
from common import provenance, save

from clipguard.comparison.sequential import FIRST, GROWTH, batch_ends
from clipguard.statistics.anytime import adjusted_p_values, log_e_of_counts
from clipguard.statistics.paired import Pairs, holm, noninferiority_p_value, regression_p_value

ALPHA = 0.05
# Sets, attacks (one of them none), averages: one cell; four sets, clean; four sets, clean and attacked, with averages.
LAYOUTS = {1: (1, 1, False), 4: (4, 1, False), 10: (4, 2, True)}
DROPS, DISCORDANT = (0.0, 0.005, 0.01), (0.02, 0.1, 0.3)  # true drops up to the one allowed, images lost or gained
EFFECTS = [  # images at most, allowed drop, share lost, share gained
    (200, 0.01, 0.15, 0.05),
    (200, 0.01, 0.25, 0.05),
    (200, 0.01, 0.45, 0.05),
    (1000, 0.01, 0.06, 0.01),
    (1000, 0.01, 0.10, 0.05),
    (1000, 0.01, 0.15, 0.05),
    (1000, 0.01, 0.25, 0.05),
    (1000, 0.01, 0.0, 0.0),
    (1000, 0.05, 0.01, 0.01),
    (1000, 0.05, 0.05, 0.05),
    (1000, 0.05, 0.02, 0.12),
]
Cells = list[npt.NDArray[np.float64]]


def simulate(rng: np.random.Generator, layout: tuple[int, int, bool], n: int, lost: float, gained: float) -> Cells:
    """Changes of the cells of one comparison, (n,) each; attacked cells share half of them with clean ones."""
    sets, attacks, averages = layout
    draw = functools.partial(rng.choice, [1.0, -1.0, 0.0], p=[gained, lost, 1 - lost - gained], size=(sets, n))
    groups = [draw()]
    groups += [np.where(rng.random((sets, n)) < 0.5, groups[0], draw()) for _ in range(attacks - 1)]
    return [cell for group in groups for cell in group] + [group.mean(axis=0) for group in groups if averages]


def at_looks(changes: npt.NDArray[np.float64], looks: list[int]) -> tuple[npt.NDArray[np.float64], ...]:
    """The values of the changes, and how often each came before every look: (V,), (looks, V)."""
    values = np.unique(changes)
    return values, np.cumsum(changes[:, None] == values, axis=0)[np.array(looks) - 1]


def sequential(cells: Cells, looks: list[int], allowed: float) -> tuple[str, int]:
    """Verdict of the command, and the number of images a set at which it stops."""
    counts = [at_looks(cell, looks) for cell in cells]
    worse = np.array([log_e_of_counts(-values, n, allowed) for values, n in counts])
    fine = np.array([log_e_of_counts(values, n, -allowed) for values, n in counts])
    for number, look in enumerate(looks):
        if worse[:, number].max() >= -np.log(ALPHA) and min(adjusted_p_values(worse[:, number])) <= ALPHA:
            return "regression", look
        if fine[:, number].min() >= -np.log(ALPHA):
            return "no regression", look
    return "inconclusive", looks[-1]


@functools.lru_cache(None)
def fixed_p_values(n: int, lost: int, gained: int, allowed: float) -> tuple[float, float]:
    pairs = [Pairs(n, lost, gained)]
    return regression_p_value(pairs, allowed), noninferiority_p_value(pairs, allowed)


def fixed(cells: Cells, n: int, allowed: float) -> str:
    """Verdict of the command without `--sequential`, on the first n images; for cells of single sets."""
    p = [fixed_p_values(n, int((c[:n] < 0).sum()), int((c[:n] > 0).sum()), allowed) for c in cells]
    if min(holm([regression for regression, _ in p])) <= ALPHA:
        return "regression"
    return "no regression" if max(harmless for _, harmless in p) <= ALPHA else "inconclusive"


def false_alarms(repetitions: int, n: int, allowed: float) -> list[dict[str, float]]:
    """Shares of comparisons in which a regression is declared in any cell, though none is worse than allowed."""
    rng, looks, rows = np.random.default_rng(0), list(batch_ends(FIRST, n)), []
    for (cells, layout), discordant, drop in product(LAYOUTS.items(), DISCORDANT, DROPS):
        rates = (discordant + drop) / 2, (discordant - drop) / 2
        ours = once = peeking = 0
        for _ in range(repetitions):
            seen = simulate(rng, layout, n, *rates)
            ours += sequential(seen, looks, allowed)[0] == "regression"
            if not layout[2]:
                verdicts = [fixed(seen, look, allowed) for look in looks]
                once += verdicts[-1] == "regression"
                peeking += "regression" in verdicts
        row = {"cells": cells, "discordant": discordant, "drop": drop, "sequential": ours / repetitions}
        if not layout[2]:  # the averages of fixed tests take too long for a simulation
            row |= {"fixed": once / repetitions, "fixed_at_every_look": peeking / repetitions}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def power(repetitions: int) -> list[dict[str, object]]:
    """One cell: how often each test gives the right verdict, and the mean number of images of the sequential one."""
    rng, rows = np.random.default_rng(1), []
    for n, allowed, lost, gained in EFFECTS:
        looks, right = list(batch_ends(FIRST, n)), "regression" if lost - gained > allowed else "no regression"
        runs = [simulate(rng, LAYOUTS[1], n, lost, gained) for _ in range(repetitions)]
        ours = [sequential(seen, looks, allowed) for seen in runs]
        row = {
            "n": n,
            "allowed": allowed,
            "lost": lost,
            "gained": gained,
            "right_verdict": right,
            "sequential": np.mean([verdict == right for verdict, _ in ours]),
            "mean_images": round(float(np.mean([stop for _, stop in ours])), 1),
            "fixed": np.mean([fixed(seen, n, allowed) == right for seen in runs]),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    started, n, allowed = time.process_time(), 1000, 0.01
    alarms = false_alarms(repetitions, n, allowed)
    content = {
        "repetitions": repetitions,
        "alpha": ALPHA,
        "first": FIRST,
        "growth": GROWTH,
        "false_alarms": {"n": n, "allowed": allowed, "looks": list(batch_ends(FIRST, n)), "rows": alarms},
        "power": power(repetitions),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    save("compare_sequential", provenance() | content)


if __name__ == "__main__":
    main()
