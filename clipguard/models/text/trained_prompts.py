"""The prompts that `clipguard finetune` trained a checkpoint with: a model may come to expect them."""

from __future__ import annotations

import json
from pathlib import Path

RUN_FILE = "run.json"  # that fine-tuning leaves beside the weights
READ_NO_TEXT = ("fare", "sim-clip")  # methods of the time when runs did not say it themselves


def trained_prompts(weights: Path, sha256: str) -> tuple[str, ...]:
    """The prompts in the run that made a weight file; none where none did, or its loss read no text.

    Args:
        weights: the file.
        sha256: of it: a run beside other weights does not count.
    """
    try:
        run = json.loads((weights.parent / RUN_FILE).read_text(encoding="utf-8"))
        if run["sha256"] != sha256:
            return ()
        prompts = run.get("trained_prompts")
        if prompts is None:
            without = run["config"]["method"].partition("(")[0] in READ_NO_TEXT
            prompts = [] if without else run["dataset"]["templates"]
        return tuple(map(str, prompts))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return ()  # no file, of another program, or of a run that was not finished


def describe_prompts(prompts: tuple[str, ...]) -> str:
    """In a few words: `the prompt 'a photo of a {}.'`, or how many there are, and the first."""
    return f"the prompt {prompts[0]!r}" if len(prompts) == 1 else f"{len(prompts)} prompts such as {prompts[0]!r}"
