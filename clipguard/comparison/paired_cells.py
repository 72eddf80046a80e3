"""Two results of the same benchmark, image by image: what changed, by how much, and whether by chance.

docs/compare.md says what a regression is, and why.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clipguard.benchmark.checks.findings import prediction_entries
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import AVERAGE
from clipguard.comparison.comparability import differences, model_name
from clipguard.comparison.result import Batches, CellChange, Comparison, Verdict
from clipguard.comparison.rules import Metric, Rules
from clipguard.core.errors import ResultError
from clipguard.sanity.entries import alarms
from clipguard.statistics.anytime import Outcomes
from clipguard.statistics.decision import AnytimeTests, FixedTests, PairedCell, Tests, detectable_drop, n_to_decide
from clipguard.statistics.paired import Pairs, mcnemar_p_value

CELL = ["dataset", "norm", "attack", "eps"]
IMAGE = [*CELL, "index", "label"]


def compare_results(
    base: BenchResult, candidate: BenchResult, rules: Rules, *, force: bool = False, batches: Batches | None = None
) -> Comparison:
    """Compare two results of one model each.

    Args:
        base: the result of one model.
        candidate: that of another.
        rules: what counts as a regression.
        force: compare the images they share where they are not like for like.
        batches: how images were taken, if in batches: then by tests that hold however often one looks.

    Raises:
        ResultError: where they are not like for like and `force` is not set, or have nothing in common.
    """
    names = model_name(base, "BASE"), model_name(candidate, "CANDIDATE")
    reasons = differences(base, candidate)
    if reasons and not force:
        why = "; ".join(reasons)
        raise ResultError(f"Not comparable: {why}. Bench both alike, or `force` compares the images they share.")
    cells = _chosen(_paired(base.samples, candidate.samples, batches), rules.metrics)
    if not cells:
        metrics = ", ".join(rules.metrics)
        raise ResultError(
            f"BASE and CANDIDATE share no image of any cell to compare (`metrics` {metrics}); bench more."
        )
    tests = AnytimeTests() if batches else FixedTests()
    p_values = tests.regressions(cells, rules.max_drop / 100)
    changes = tuple(_change(tests, cell, p, rules, len(cells)) for cell, p in zip(cells, p_values, strict=True))
    models = {"base": base.run["models"][names[0]], "candidate": candidate.run["models"][names[1]]}
    findings = (prediction_entries(result) for result in (base, candidate))
    warnings = dict.fromkeys(line for entries in findings for line in alarms(entries, undecided=False))
    stopped = batches.stopping_point() if batches else None
    return Comparison(*names, models, rules, tuple(reasons), changes, stopped, tuple(warnings))


def _paired(base: pd.DataFrame, candidate: pd.DataFrame, batches: Batches | None) -> list[PairedCell]:
    """Every cell that both have, over the images that both have."""
    columns = [*IMAGE, "robust"]
    both = base[columns].merge(candidate[columns], on=IMAGE, suffixes=("_base", "_candidate"), validate="one_to_one")
    cells = []
    for _, rows in both.groupby(CELL, sort=False, observed=True):
        first = rows.iloc[0]
        before, after = rows["robust_base"], rows["robust_candidate"]
        pairs = Pairs(len(rows), int((before & ~after).sum()), int((after & ~before).sum()))
        key = str(first["dataset"]), str(first["norm"]), str(first["attack"]), float(first["eps"])
        changes: Outcomes = after.to_numpy(np.float64) - before.to_numpy(np.float64)
        if batches:
            rank = {index: place for place, index in enumerate(batches.order[key[0]])}
            changes = changes[np.argsort([rank[index] for index in rows["index"]])]
        cells.append(PairedCell(*key, (pairs,), float(before.mean()), float(after.mean()), changes))
    return cells


def _chosen(cells: list[PairedCell], metrics: Sequence[Metric]) -> list[PairedCell]:
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


def _change(tests: Tests, cell: PairedCell, p_regression: float, rules: Rules, n_cells: int) -> CellChange:
    """The statistics of one cell out of `n_cells`, for which `p_regression` is adjusted."""
    allowed = rules.max_drop / 100
    low, high = tests.interval(cell)
    p_noninferiority = tests.noninferiority(cell, allowed)
    verdict: Verdict = "inconclusive"
    if p_regression <= rules.alpha:
        verdict = "regression"
    elif p_noninferiority <= rules.alpha:
        verdict = "no regression"
    lost, gained = sum(p.lost for p in cell.pairs), sum(p.gained for p in cell.pairs)
    needed = n_to_decide(tests, cell, allowed, rules.alpha, n_cells) if verdict == "inconclusive" else None
    return CellChange(
        dataset=cell.dataset,
        norm=cell.norm,
        attack=cell.attack,
        eps=cell.eps,
        n=cell.n,
        base=cell.base,
        candidate=cell.candidate,
        change=cell.candidate - cell.base,
        ci_low=low,
        ci_high=high,
        lost=lost,
        gained=gained,
        p_mcnemar=mcnemar_p_value(lost, gained),
        p_regression=p_regression,
        p_harmless=p_noninferiority,
        verdict=verdict,
        n_to_decide=needed,
        detectable_drop=detectable_drop(tests, cell, allowed, rules.alpha, n_cells),
    )
