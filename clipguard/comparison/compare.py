"""Two results of the same benchmark, image by image: what changed, by how much, and whether by chance.

docs/compare.md says what a regression is, and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from clipguard.benchmark.findings import prediction_entries
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import AVERAGE
from clipguard.comparison.comparability import differences, model_name
from clipguard.comparison.rules import Rules
from clipguard.core.errors import ResultError
from clipguard.sanity.entries import alarms
from clipguard.statistics.anytime import Outcomes
from clipguard.statistics.decision import AnytimeTests, FixedTests, PairedCell, Tests, detectable_drop, n_to_decide
from clipguard.statistics.paired import Pairs, mcnemar_p_value

SCHEMA = 1
Verdict = Literal["regression", "inconclusive", "no regression"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # worst first
CELL = ["dataset", "norm", "attack", "eps"]
IMAGE = [*CELL, "index", "label"]
ROUNDING = 1e-9  # points


@dataclass(frozen=True)
class CellChange:
    """One cell of both models, or the average over data sets (`dataset` "average"; `n`, `lost`, `gained` are sums).

    Accuracies and changes are fractions; `change` is candidate minus base. `p_regression` is Holm-adjusted.
    `n_to_decide` is the number of images at which the verdict would be clear if the rates seen here are the true ones,
    `detectable_drop` the smallest drop that would be called a regression here; None where there is no such number.
    """

    dataset: str
    norm: str
    attack: str
    eps: float
    n: int
    base: float
    candidate: float
    change: float
    ci_low: float
    ci_high: float
    lost: int
    gained: int
    p_mcnemar: float
    p_regression: float
    p_harmless: float
    verdict: Verdict
    n_to_decide: int | None
    detectable_drop: float | None


@dataclass(frozen=True)
class Comparison:
    """What `clipguard compare` found: a `CellChange` for each cell, and what was compared under which rules.

    `base` and `candidate` are model names, `models` their provenance, `differences` why the results are not like for
    like (empty unless comparing was forced), `sequential` when it stopped, if in batches (`Batches.to_dict`),
    `warnings` what the clean predictions of either give away, a line each (docs/doctor.md).
    """

    base: str
    candidate: str
    models: Mapping[str, Any]
    rules: Rules
    differences: tuple[str, ...]
    cells: tuple[CellChange, ...]
    sequential: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of all cells."""
        return min((cell.verdict for cell in self.cells), key=VERDICTS.index)

    @property
    def settled(self) -> bool:
        """Whether more images could not change the verdict: a regression somewhere, or none anywhere."""
        return self.verdict != "inconclusive"

    def failed(self, fail_on: str = "regression") -> list[CellChange]:
        """The cells that fail under `fail_on`, one of `FAIL_ON`; regressions always do."""
        return [cell for cell in self.cells if self._fails(cell, fail_on)]

    def _fails(self, cell: CellChange, fail_on: str) -> bool:
        if fail_on == "any-drop" and -100 * cell.change > self.rules.max_drop + ROUNDING:
            return True
        return cell.verdict == "regression" or (fail_on == "inconclusive" and cell.verdict == "inconclusive")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": SCHEMA, "verdict": self.verdict} | asdict(self)

    def to_json(self) -> str:
        """Strict JSON: no NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


@dataclass(frozen=True)
class Batches:
    """How images are taken for `--sequential`.

    order: of each data set, the indices of all images that may be taken, in random order. looks: numbers of images a
    data set after which was looked, ascending; the last is where it stopped.
    """

    order: Mapping[str, Sequence[int]]
    looks: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """`sequential` in the JSON: images used and at hand by data set, and the share that was saved."""
        of = {name: len(indices) for name, indices in self.order.items()}
        n = {name: min(count, self.looks[-1]) for name, count in of.items()}
        return {"looks": list(self.looks), "n": n, "of": of, "saved": 1 - sum(n.values()) / sum(of.values())}


def compare_results(
    base: BenchResult, candidate: BenchResult, rules: Rules, *, force: bool = False, batches: Batches | None = None
) -> Comparison:
    """Compare two results of one model each; with `batches` by tests that hold however often it is called.

    Raises ResultError where they are not like for like and `force` is not set, or have nothing in common.
    """
    names = model_name(base, "BASE"), model_name(candidate, "CANDIDATE")
    reasons = differences(base, candidate)
    if reasons and not force:
        why = "; ".join(reasons)
        raise ResultError(f"Not comparable: {why}. Bench both alike, or --force compares the images they share.")
    seen = _chosen(_cells(base.samples, candidate.samples, batches), rules.metrics)
    if not seen:
        wanted = ", ".join(rules.metrics)
        raise ResultError(f"BASE and CANDIDATE share no image of any cell to compare (--metric {wanted}); bench more.")
    tests = AnytimeTests() if batches else FixedTests()
    adjusted = tests.regressions(seen, rules.max_drop / 100)
    cells = tuple(_change(tests, s, p, rules, len(seen)) for s, p in zip(seen, adjusted, strict=True))
    models = {"base": base.run["models"][names[0]], "candidate": candidate.run["models"][names[1]]}
    sides = (prediction_entries(side) for side in (base, candidate))
    warnings = dict.fromkeys(line for entries in sides for line in alarms(entries, undecided=False))
    how = batches.to_dict() if batches else None
    return Comparison(*names, models, rules, tuple(reasons), cells, how, tuple(warnings))


def _cells(base: pd.DataFrame, candidate: pd.DataFrame, batches: Batches | None) -> list[PairedCell]:
    """Every cell that both have, over the images that both have."""
    columns = [*IMAGE, "robust"]
    both = base[columns].merge(candidate[columns], on=IMAGE, suffixes=("_base", "_candidate"), validate="one_to_one")
    found = []
    for _, rows in both.groupby(CELL, sort=False, observed=True):
        cell = rows.iloc[0]
        before, after = rows["robust_base"], rows["robust_candidate"]
        pairs = Pairs(len(rows), int((before & ~after).sum()), int((after & ~before).sum()))
        key = str(cell["dataset"]), str(cell["norm"]), str(cell["attack"]), float(cell["eps"])
        changes: Outcomes = after.to_numpy(np.float64) - before.to_numpy(np.float64)
        if batches:
            rank = {index: place for place, index in enumerate(batches.order[key[0]])}
            changes = changes[np.argsort([rank[index] for index in rows["index"]])]
        found.append(PairedCell(*key, (pairs,), float(before.mean()), float(after.mean()), changes))
    return found


def _chosen(cells: list[PairedCell], metrics: Sequence[str]) -> list[PairedCell]:
    """The cells of the metrics asked for; averages are of every attack and eps, where there are several data sets."""
    chosen = [cell for cell in cells if ("clean" if cell.attack == "none" else "robust") in metrics]
    return chosen + _averages(cells) if "average" in metrics else chosen


def _averages(cells: list[PairedCell]) -> list[PairedCell]:
    """Averages over data sets with equal weights, of what all data sets have."""
    datasets = {cell.dataset for cell in cells}
    groups: dict[tuple[str, str, float], list[PairedCell]] = {}
    for cell in cells:
        groups.setdefault((cell.norm, cell.attack, cell.eps), []).append(cell)
    return [
        PairedCell(
            AVERAGE,
            *key,
            pairs=tuple(cell.pairs[0] for cell in group),
            base=sum(cell.base for cell in group) / len(group),
            candidate=sum(cell.candidate for cell in group) / len(group),
            changes=_mean_changes(group),
        )
        for key, group in groups.items()
        if len(group) == len(datasets) > 1
    ]


def _mean_changes(group: Sequence[PairedCell]) -> Outcomes:
    """The first images of all data sets, the second of all, and so on, as far as the smallest goes: mean changes."""
    n = min(len(cell.changes) for cell in group)
    changes: Outcomes = np.mean([cell.changes[:n] for cell in group], axis=0)
    return changes


def _change(tests: Tests, seen: PairedCell, p_regression: float, rules: Rules, cells: int) -> CellChange:
    """The statistics of one cell out of `cells`; `p_regression` is adjusted for them."""
    allowed = rules.max_drop / 100
    low, high = tests.interval(seen)
    p_harmless = tests.noninferiority(seen, allowed)
    verdict: Verdict = "inconclusive"
    if p_regression <= rules.alpha:
        verdict = "regression"
    elif p_harmless <= rules.alpha:
        verdict = "no regression"
    lost, gained = sum(p.lost for p in seen.pairs), sum(p.gained for p in seen.pairs)
    needed = n_to_decide(tests, seen, allowed, rules.alpha, cells) if verdict == "inconclusive" else None
    return CellChange(
        dataset=seen.dataset,
        norm=seen.norm,
        attack=seen.attack,
        eps=seen.eps,
        n=seen.n,
        base=seen.base,
        candidate=seen.candidate,
        change=seen.candidate - seen.base,
        ci_low=low,
        ci_high=high,
        lost=lost,
        gained=gained,
        p_mcnemar=mcnemar_p_value(lost, gained),
        p_regression=p_regression,
        p_harmless=p_harmless,
        verdict=verdict,
        n_to_decide=needed,
        detectable_drop=detectable_drop(tests, seen, allowed, rules.alpha, cells),
    )
