"""The folder that a certification writes its files to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipguard.certification.figure import certified_plots
from clipguard.certification.result import CERTIFY, SAMPLES, CertifyResult
from clipguard.core.files.output import OutputFolder
from clipguard.core.records.samples import parquet_bytes


class CertifyFolder(OutputFolder):
    """Where the files go; one with an interrupted run of the very same settings is gone on with."""

    def __init__(self, path: Path, *, plan: dict[str, Any] | None = None, **options: Any) -> None:
        """Take a folder.

        Args:
            path: the folder.
            plan: the settings of a run that can go on, models and all; None for one that would lose finished cells.
            options: those of `OutputFolder`, as what is raised.
        """
        self._plan = plan
        super().__init__(path, **options)

    def may_go_on(self) -> bool:
        """Whether it holds an interrupted run of these settings."""
        try:
            run = json.loads((self.path / CERTIFY).read_text(encoding="utf-8"))["run"]
            before = run["complete"], run["plan"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return self._plan is not None and before == (False, self._plan)

    def write(self, result: CertifyResult) -> None:
        """Write the files, and let others have the folder. Raises OutputError if the disk does not take them.

        Until the last is there, the folder is that of an interrupted run.
        """
        begun = CertifyResult({**result.run, "complete": False})
        self.write_files({CERTIFY: (begun.to_json() + "\n").encode()})
        plots = {f"{plot.name}.png": plot.file("png") for plot in certified_plots(result)}
        self.write_files(
            {
                SAMPLES: parquet_bytes(result.samples),
                "certify.csv": result.to_frame().to_csv(index=False).encode(),
                "certify.md": result.to_markdown().encode(),
                **plots,
                CERTIFY: (result.to_json() + "\n").encode(),
            }
        )
        self.release()
