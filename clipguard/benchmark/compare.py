"""Two results of the same benchmark, image by image: what changed, by how much, and whether by chance.

docs/compare.md says what a regression is, and why.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pandas as pd
from scipy.stats import norm

from clipguard.benchmark.comparable import differences, model_name
from clipguard.benchmark.results import BenchResult
from clipguard.benchmark.tables import AVERAGE
from clipguard.errors import ClipguardError, ResultError
from clipguard.statistics import Pairs, harmless_p_value, holm, mcnemar_p_value, paired_interval, regression_p_value

SCHEMA = 1
Metric = Literal["clean", "robust", "average"]
Verdict = Literal["regression", "inconclusive", "no regression"]
FailOn = Literal["regression", "any-drop", "inconclusive"]
METRICS: tuple[Metric, ...] = get_args(Metric)
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # worst first
FAIL_ON: tuple[FailOn, ...] = get_args(FailOn)
CELL = ["dataset", "norm", "attack", "eps"]
IMAGE = [*CELL, "index", "label"]
ROUNDING = 1e-9  # points
MOST_IMAGES = 10**7  # beyond this, no number of images is named


@dataclass(frozen=True)
class Rules:
    """What counts as a regression: a drop of more than `max_drop` points, at level `alpha` over all cells of `metrics`.

    Raises ClipguardError for values that make no test.
    """

    max_drop: float = 1.0
    alpha: float = 0.05
    metrics: tuple[str, ...] = METRICS

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.max_drop < 100:
            raise ClipguardError(f"--max-drop must be points of accuracy, at least 0 and below 100: {self.max_drop}.")
        if not 0 < self.alpha < 0.5:
            raise ClipguardError(f"--alpha must be above 0 and below 0.5, as in 0.05: {self.alpha}.")
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            problem = f"{unknown[0]!r} is unknown" if unknown else "is missing"
            raise ClipguardError(f"--metric {problem}; use {', '.join(METRICS)}.")


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
    like (empty unless comparing was forced).
    """

    base: str
    candidate: str
    models: Mapping[str, Any]
    rules: Rules
    differences: tuple[str, ...]
    cells: tuple[CellChange, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all cells."""
        return min((cell.verdict for cell in self.cells), key=VERDICTS.index)

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
class _Seen:
    """What both models did on the same images: `pairs` of each data set, accuracies averaged over them."""

    dataset: str
    norm: str
    attack: str
    eps: float
    pairs: tuple[Pairs, ...]
    base: float
    candidate: float


def compare_results(base: BenchResult, candidate: BenchResult, rules: Rules, *, force: bool = False) -> Comparison:
    """Compare two results of one model each.

    Raises ResultError where they are not like for like and `force` is not set, or have nothing in common.
    """
    names = model_name(base, "BASE"), model_name(candidate, "CANDIDATE")
    reasons = differences(base, candidate)
    if reasons and not force:
        why = "; ".join(reasons)
        raise ResultError(f"Not comparable: {why}. Bench both alike, or --force compares the images they share.")
    seen = _chosen(_cells(base.samples, candidate.samples), rules.metrics)
    if not seen:
        wanted = ", ".join(rules.metrics)
        raise ResultError(f"BASE and CANDIDATE share no image of any cell to compare (--metric {wanted}); bench more.")
    adjusted = holm([regression_p_value(s.pairs, rules.max_drop / 100) for s in seen])
    cells = tuple(_change(s, p, rules, len(seen)) for s, p in zip(seen, adjusted, strict=True))
    models = {"base": base.run["models"][names[0]], "candidate": candidate.run["models"][names[1]]}
    return Comparison(*names, models, rules, tuple(reasons), cells)


def _cells(base: pd.DataFrame, candidate: pd.DataFrame) -> list[_Seen]:
    """Every cell that both have, over the images that both have."""
    columns = [*IMAGE, "robust"]
    both = base[columns].merge(candidate[columns], on=IMAGE, suffixes=("_base", "_candidate"), validate="one_to_one")
    found = []
    for _, rows in both.groupby(CELL, sort=False, observed=True):
        cell = rows.iloc[0]
        before, after = rows["robust_base"], rows["robust_candidate"]
        pairs = Pairs(len(rows), int((before & ~after).sum()), int((after & ~before).sum()))
        key = str(cell["dataset"]), str(cell["norm"]), str(cell["attack"]), float(cell["eps"])
        found.append(_Seen(*key, (pairs,), float(before.mean()), float(after.mean())))
    return found


def _chosen(cells: list[_Seen], metrics: Sequence[str]) -> list[_Seen]:
    """The cells of the metrics asked for; averages are of every attack and eps, where there are several data sets."""
    chosen = [cell for cell in cells if ("clean" if cell.attack == "none" else "robust") in metrics]
    return chosen + _averages(cells) if "average" in metrics else chosen


def _averages(cells: list[_Seen]) -> list[_Seen]:
    """Averages over data sets with equal weights, of what all data sets have."""
    datasets = {cell.dataset for cell in cells}
    groups: dict[tuple[str, str, float], list[_Seen]] = {}
    for cell in cells:
        groups.setdefault((cell.norm, cell.attack, cell.eps), []).append(cell)
    return [
        _Seen(
            AVERAGE,
            *key,
            pairs=tuple(cell.pairs[0] for cell in group),
            base=sum(cell.base for cell in group) / len(group),
            candidate=sum(cell.candidate for cell in group) / len(group),
        )
        for key, group in groups.items()
        if len(group) == len(datasets) > 1
    ]


def _change(seen: _Seen, p_regression: float, rules: Rules, cells: int) -> CellChange:
    """The statistics of one cell out of `cells`; `p_regression` is adjusted for them."""
    allowed = rules.max_drop / 100
    low, high = paired_interval(seen.pairs)
    p_harmless = harmless_p_value(seen.pairs, allowed)
    verdict: Verdict = "inconclusive"
    if p_regression <= rules.alpha:
        verdict = "regression"
    elif p_harmless <= rules.alpha:
        verdict = "no regression"
    lost, gained = sum(p.lost for p in seen.pairs), sum(p.gained for p in seen.pairs)
    return CellChange(
        dataset=seen.dataset,
        norm=seen.norm,
        attack=seen.attack,
        eps=seen.eps,
        n=sum(p.n for p in seen.pairs),
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
        n_to_decide=_n_to_decide(seen.pairs, rules, cells) if verdict == "inconclusive" else None,
        detectable_drop=_detectable_drop(seen, rules, cells),
    )


def _n_to_decide(pairs: tuple[Pairs, ...], rules: Rules, cells: int) -> int | None:
    """Images, in all, at which the rates seen here would decide: a score grows with the square root of their number.

    None if they would not with 10 million: then the drop is close to `max_drop`.
    """
    p, level = harmless_p_value(pairs, rules.max_drop / 100), rules.alpha
    if p > 0.5:  # it fell by more than is allowed
        p, level = regression_p_value(pairs, rules.max_drop / 100), rules.alpha / cells
    seen, wanted = norm.isf(p), norm.isf(level)
    n = sum(p.n for p in pairs)
    return math.ceil(n * (wanted / seen) ** 2) if seen > wanted * math.sqrt(n / MOST_IMAGES) else None


def _detectable_drop(seen: _Seen, rules: Rules, cells: int) -> float | None:
    """The smallest drop that would be a regression with these images, and as many gained: the first step of Holm.

    None for averages, and where losing every image that the base had right would not be enough.
    """
    if len(seen.pairs) > 1:
        return None
    n, gained, right = seen.pairs[0].n, seen.pairs[0].gained, round(seen.base * seen.pairs[0].n)

    def shows(lost: int) -> bool:
        return regression_p_value([Pairs(n, lost, gained)], rules.max_drop / 100) <= rules.alpha / cells

    lost = bisect_left(range(right + 1), True, key=shows)
    return (lost - gained) / n if lost <= right else None
