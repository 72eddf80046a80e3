"""The folder that a bench run writes its files to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.result import RESULTS, SAMPLES, BenchResult
from clipguard.core.files.output import OutputFolder
from clipguard.core.records.run import model_names
from clipguard.core.records.samples import parquet_bytes


def _is_unfinished(path: Path, plan: BenchPlan) -> bool:
    """Whether a folder holds an interrupted run of this plan, and so nothing that running it again would lose."""
    try:
        run = json.loads((path / RESULTS).read_text(encoding="utf-8"))["run"]
        before = run["complete"], model_names(run), run["plan"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return before == (False, list(plan.models), json.loads(json.dumps(plan.to_dict())))


class ResultFolder(OutputFolder):
    """Where a run's files go; one with an interrupted run of the very same `plan` is gone on with."""

    def __init__(self, path: Path, *, plan: BenchPlan | None = None, **options: Any) -> None:
        """The options, and what is raised, are those of `OutputFolder`."""
        self._plan = plan
        super().__init__(path, **options)

    def may_go_on(self) -> bool:
        """Whether it holds an interrupted run of the plan."""
        return self._plan is not None and _is_unfinished(self.path, self._plan)

    def write(self, result: BenchResult, markdown: str) -> None:
        """Write the four files of a bench run, and let others have the folder.

        Until the last is there, the folder is that of an interrupted run. Raises OutputError if the disk does not take
        them.
        """
        begun = BenchResult({**result.run, "complete": False})
        self.write_files({RESULTS: (begun.to_json() + "\n").encode()})
        self.write_files(
            {
                SAMPLES: parquet_bytes(result.samples),
                "results.csv": result.to_frame().to_csv(index=False).encode(),
                "results.md": markdown.encode(),
                RESULTS: (result.to_json() + "\n").encode(),
            }
        )
        self.release()
