"""What is said of findings: the entries of `run.findings`, and lines for people."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Sequence

from clipguard.core.records.run import FindingsRecord
from clipguard.sanity.checks import ALL_CHECKS, Finding
from clipguard.sanity.predictions import PREDICTION_CHECKS

log = logging.getLogger("clipguard")
NO_PROBES = "--no-probes"  # how probes are switched off


def entry(model: str, dataset: str, findings: Sequence[Finding]) -> FindingsRecord:
    """One of `run.findings`."""
    return {"model": model, "dataset": dataset, "findings": [finding.to_dict() for finding in findings]}


def alarms(
    findings: Sequence[FindingsRecord], checks: Container[str] = ALL_CHECKS, *, undecided: bool = True
) -> list[str]:
    """A line for each warning and failure of these checks in `run.findings`, and where chance cannot be told."""
    return [
        f"{f['verdict'].upper()} {f['id']}, {entry['model']} on {entry['dataset']}: {f['evidence']}. {f['advice']}"
        for entry in findings
        for f in entry["findings"]
        if f["id"] in checks and (f["verdict"] in ("failure", "warning") or (undecided and "undecided" in f["numbers"]))
    ]


def say(findings: Sequence[FindingsRecord], *, undecided: bool = True) -> None:
    """Log what the predictions give away: nothing that is computed from them can be trusted before it is understood."""
    for line in alarms(findings, PREDICTION_CHECKS, undecided=undecided):
        log.warning(line.removeprefix("WARNING "))  # which the log says itself


def finding_lines(findings: Sequence[FindingsRecord]) -> list[str]:
    """`run.findings` for people: a line for each warning and failure, and one that counts all."""
    if not findings:
        return []
    lines = alarms(findings)
    off = any(f["evidence"].endswith(f"({NO_PROBES})") for e in findings for f in e["findings"])
    why = f"; the probes were not made ({NO_PROBES})" if off else ""
    verdicts = Counter(f["verdict"] for e in findings for f in e["findings"])
    counts = ", ".join(f"{verdicts[v]} {v}" for v in ("ok", "warning", "failure", "not checked") if verdicts[v])
    return [*lines, f"Sanity checks: {counts}{why}; `clipguard doctor` makes more, docs/doctor.md explains them."]
