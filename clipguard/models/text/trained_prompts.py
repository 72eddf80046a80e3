"""The prompts that `clipguard finetune` trained a checkpoint with: a model may come to expect them."""

from __future__ import annotations

import json
from pathlib import Path

from clipguard.models.checkpoint.reader import read_metadata

RUN_FILE = "run.json"  # that fine-tuning leaves beside the weights
METADATA = "clipguard_trained_prompts"  # of a weight file that was made from those of a run
READ_NO_TEXT = ("fare", "sim-clip")  # methods of the time when runs did not say it themselves


def trained_prompts(weights: Path, sha256: str) -> tuple[str, ...]:
    """The prompts in the run that made a weight file, or in the file itself if that was made of a run's.

    None where there is neither, or the run's loss read no text.

    Args:
        weights: the file.
        sha256: of it: a run beside other weights does not count.
    """
    try:
        run = json.loads((weights.parent / RUN_FILE).read_text(encoding="utf-8"))
        if run["sha256"] != sha256:
            return _recorded(weights)
        prompts = run.get("trained_prompts")
        if prompts is None:
            without = run["config"]["method"].partition("(")[0] in READ_NO_TEXT
            prompts = [] if without else run["dataset"]["templates"]
        return tuple(map(str, prompts))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return _recorded(weights)  # no file, of another program, or of a run that was not finished


def _recorded(weights: Path) -> tuple[str, ...]:
    """What `record_prompts` wrote into a weight file."""
    try:
        prompts = json.loads(read_metadata(weights)[METADATA])
        return tuple(map(str, prompts)) if isinstance(prompts, list) else ()
    except (KeyError, ValueError):
        return ()


def record_prompts(content: bytes, prompts: tuple[str, ...]) -> bytes:
    """A safetensors file with the prompts in its metadata, where `trained_prompts` finds them; without any, as it was.

    The header is written here, and not by safetensors, which has several texts of it in a random order.

    Args:
        content: of the file.
        prompts: of the training.
    """
    if not prompts:
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = {**header.get("__metadata__", {}), METADATA: json.dumps(prompts)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def common_prompts(base: tuple[str, ...], tuned: tuple[str, ...]) -> tuple[str, ...] | None:
    """The prompts of a model between two: those of either where the other has none, or the same; else None."""
    if base and tuned and set(base) != set(tuned):
        return None
    return tuned or base


def describe_prompts(prompts: tuple[str, ...]) -> str:
    """In a few words: `the prompt 'a photo of a {}.'`, or how many there are, and the first."""
    return f"the prompt {prompts[0]!r}" if len(prompts) == 1 else f"{len(prompts)} prompts such as {prompts[0]!r}"
