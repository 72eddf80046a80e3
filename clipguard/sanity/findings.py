"""All answers of an examination, as a list that shows itself at a prompt and in a notebook."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from clipguard.core.checking import check_type
from clipguard.core.errors import OutputError, ResultError, first_line
from clipguard.core.files.output import OutputFile
from clipguard.core.html_table import html_table
from clipguard.core.markdown import escape_markdown, markdown_table
from clipguard.sanity.checks import ALL_CHECKS, VERDICTS, Finding, Verdict, worst

HEADINGS = ("check", "verdict", "evidence", "advice")


SCHEMA = 1


class Findings(list[Finding]):
    """The findings of `clipguard.doctor`, in the order of the checks."""

    @classmethod
    def load(cls, path: str | Path) -> Findings:
        """The findings in a file that `save` or `clipguard doctor --format json` wrote.

        Raises:
            ResultError: for a file that is missing, damaged, or holds none.
        """
        check_type("`path`", path, str | Path, ResultError)
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultError(f"{path} cannot be read ({first_line(error)}); name a file of `doctor`.") from error
        try:
            if content["schema"] != SCHEMA:
                raise KeyError("schema")
            return cls(_finding(row) for row in content["findings"])
        except (KeyError, TypeError) as error:
            raise ResultError(f"{path} holds no findings with schema {SCHEMA}; call the doctor again.") from error

    def save(self, path: str | Path) -> Path:
        """Write what `clipguard doctor --format json` says of the checks, which `load` reads.

        Args:
            path: a new file.

        Returns:
            The file.

        Raises:
            OutputError: if it exists, or cannot be written; nothing is overwritten.
        """
        check_type("`path`", path, str | Path, OutputError)
        with OutputFile(Path(path), option="`path`") as file:
            file.write(f"{self.to_json()}\n".encode())
        return Path(path)

    def to_json(self) -> str:
        """Strict JSON: schema, verdict, findings."""
        content = {"schema": SCHEMA, "verdict": self.verdict, "findings": [finding.to_dict() for finding in self]}
        return json.dumps(content, indent=2, allow_nan=False)

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


def _finding(row: Mapping[str, Any]) -> Finding:
    """The inverse of `Finding.to_dict`. Raises KeyError or TypeError for anything else."""
    if row["id"] not in ALL_CHECKS or row["verdict"] not in VERDICTS:
        raise KeyError(row["id"])
    return Finding(row["id"], row["verdict"], row["evidence"], row["numbers"])
