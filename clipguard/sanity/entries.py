"""What is said of findings: the entries of `run.findings`, and lines for people."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Sequence
from typing import TypedDict

from clipguard.sanity.checks import CHECKS, Finding, FindingRecord
from clipguard.sanity.predictions import PREDICTION_CHECKS

log = logging.getLogger("clipguard")
NO_PROBES = "--no-probes"  # how probes are switched off


class Entry(TypedDict):
    """One of `run.findings` in a result file."""

    model: str
    dataset: str
    findings: list[FindingRecord]


def entry(model: str, dataset: str, findings: Sequence[Finding]) -> Entry:
    """What was found out about a model on a data set, for the result file."""
    return {"model": model, "dataset": dataset, "findings": [finding.to_dict() for finding in findings]}


def alarms(findings: Sequence[Entry], checks: Container[str] = CHECKS, *, undecided: bool = True) -> list[str]:
    """Lines for people.

    Args:
        findings: `run.findings`.
        checks: those that are told of.
        undecided: whether to tell also where there are too few images to tell.

    Returns:
        A line for each warning and failure.
    """
    return [
        f"{f['verdict'].upper()} {f['id']}, {entry['model']} on {entry['dataset']}: {f['evidence']}. {f['advice']}"
        for entry in findings
        for f in entry["findings"]
        if f["id"] in checks and (f["verdict"] in ("failure", "warning") or (undecided and "undecided" in f["numbers"]))
    ]


def say(findings: Sequence[Entry], *, undecided: bool = True) -> None:
    """Log what the predictions give away: nothing that is computed from them can be trusted before it is understood."""
    for line in alarms(findings, PREDICTION_CHECKS, undecided=undecided):
        log.warning(line.removeprefix("WARNING "))  # which the log says itself


def finding_lines(findings: Sequence[Entry]) -> list[str]:
    """`run.findings` for people: a line for each warning and failure, and one that counts all."""
    if not findings:
        return []
    lines = alarms(findings)
    off = any(f["evidence"].endswith(f"({NO_PROBES})") for e in findings for f in e["findings"])
    why = f"; the probes were not made ({NO_PROBES})" if off else ""
    verdicts = Counter(f["verdict"] for e in findings for f in e["findings"])
    counts = ", ".join(f"{verdicts[v]} {v}" for v in ("ok", "warning", "failure", "not checked") if verdicts[v])
    return [*lines, f"Sanity checks: {counts}{why}; `clipguard doctor` makes more, docs/doctor.md explains them."]
