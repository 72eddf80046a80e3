"""What a fine-tuning run leaves: its folder, and how accurate the model was before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from clipguard.core.checking import check_type
from clipguard.core.errors import FinetuneError
from clipguard.core.html_table import html_table
from clipguard.finetuning.output.card import accuracy_markdown, accuracy_rows, eps_label
from clipguard.finetuning.output.record import RUN_NAME, RunRecord, read_run, to_json

COLUMNS = ("model", "norm", "eps", "attack", "n", "correct", "accuracy", "ci_low", "ci_high")


@dataclass
class FinetuneResult:
    """A finished run: its folder, and the content of its `run.json`.

    The run has written both; there is nothing to save. Of several processes only the main one finishes a run; the
    others have `run` as it began, not complete.
    """

    out: Path
    run: RunRecord

    @classmethod
    def load(cls, folder: str | Path) -> FinetuneResult:
        """The run in a folder of `clipguard.finetune` or `clipguard finetune`, finished or not.

        Raises:
            FinetuneError: if there is none, or one of a newer clipguard.
        """
        check_type("`folder`", folder, str | Path, FinetuneError)
        if not (Path(folder) / RUN_NAME).is_file():
            raise FinetuneError(f"{folder} holds no {RUN_NAME}; name the folder of a fine-tuning run.")
        return cls(Path(folder), read_run(Path(folder)))

    def to_json(self) -> str:
        """`run.json`, which is strict JSON: no NaN."""
        return to_json(self.run).decode()

    def to_frame(self) -> pd.DataFrame:
        """Clean and robust accuracy of the model before and after, a row each; eps as in the tables, 0 for clean."""
        config = self.run["config"]
        scores = self.run["evaluation"]["scores"] if "evaluation" in self.run else {}
        rows = [
            {"model": name, "norm": config["norm"], "eps": eps, "attack": attack} | accuracy
            for name, score in scores.items()
            for eps, attack, accuracy in (
                (0.0, "none", score["clean"]),
                (config["eps"], self.run["evaluation"]["attack"], score["robust"]),
            )
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def to_markdown(self) -> str:
        """What was trained, and accuracy before and after with intervals; the table is that of the model card."""
        accuracy = accuracy_markdown(self.run) if self.run["complete"] else "The run is not complete."
        return f"{self._title()}.\n\n{accuracy}\n"

    def _title(self) -> str:
        config = self.run["config"]
        return f"{config['method']} on {config['dataset']}, from {config['model']}, in {self.out}"

    def _notes(self) -> list[str]:
        """What stands beside the accuracies."""
        if not self.run["complete"]:
            return ["The run is not complete."]
        steps = f"step {self.run['resolved']['exported_step']} of {self.run['resolved']['steps']}"
        return [f"{steps}; in percent, with 95 % Wilson intervals, images: {self.run['evaluation']['images']}"]

    def __repr__(self) -> str:
        attacked = f"PGD-10 {eps_label(self.run['config'])}"
        scores = [f"{name}, n {n}: clean {clean}, {attacked} {hit}" for name, n, clean, hit in accuracy_rows(self.run)]
        return "\n".join([f"FinetuneResult: {self._title()}", *self._notes(), *scores])

    def _repr_html_(self) -> str:
        headings = ["model", "n", "clean", f"PGD-10, {eps_label(self.run['config'])}"]
        return html_table(headings, accuracy_rows(self.run), "lrrr", [self._title(), *self._notes()])
