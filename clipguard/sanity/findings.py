"""All answers of an examination, as a list that shows itself at a prompt and in a notebook."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from clipguard.core.html_table import html_table
from clipguard.core.markdown import escape_markdown, markdown_table
from clipguard.sanity.checks import VERDICTS, Finding, Verdict, worst

HEADINGS = ("check", "verdict", "evidence", "advice")


class Findings(list[Finding]):
    """The findings of `clipguard.doctor`, in the order of the checks."""

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return worst(self)

    def to_frame(self) -> pd.DataFrame:
        """One row a finding: id, verdict, evidence, numbers (a dict), advice."""
        return pd.DataFrame(
            [finding.to_dict() for finding in self], columns=["id", "verdict", "evidence", "numbers", "advice"]
        )

    def to_markdown(self) -> str:
        """A table to post, and what it comes to."""
        rows = [[escape_markdown(text) for text in row] for row in self._rows()]
        return "\n".join([*markdown_table(HEADINGS, rows, "llll"), "", self._counts()]) + "\n"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(finding.id, finding.verdict, finding.evidence, finding.advice) for finding in self]

    def _counts(self) -> str:
        verdicts = Counter(finding.verdict for finding in self)
        counts = ", ".join(f"{verdicts[v]} {v}" for v in reversed(VERDICTS) if verdicts[v])
        return f"{counts or 'no checks'}. docs/doctor.md explains every check."

    def __repr__(self) -> str:
        return "\n".join([f"Findings: {self._counts()}", *map(str, self)])

    def _repr_html_(self) -> str:
        return html_table(HEADINGS, self._rows(), "llll", [self._counts()])
