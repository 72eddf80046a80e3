"""Prompt templates: which sentences a class name is put into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipguard.data.textfile import read_lines
from clipguard.errors import DatasetError, did_you_mean


@dataclass(frozen=True)
class TemplateSets:
    """What `single` and `ensemble` mean for a dataset."""

    single: tuple[str, ...]
    ensemble: tuple[str, ...]


PHOTO = TemplateSets(
    single=("a photo of a {}.",),
    # SIMPLE_IMAGENET_TEMPLATES of open_clip, as strings: there they are functions, and importing it takes seconds.
    ensemble=(
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
)
DRAWING = TemplateSets(
    single=("a drawing of a {}.",),
    ensemble=("a drawing of a {}.", "an emoji of a {}.", "a picture of a {}.", "a {}."),
)


def resolve_templates(choice: str, sets: TemplateSets) -> list[str]:
    """`"single"`, `"ensemble"`, a template (`"a sketch of a {}"`) or a file of them -> templates with one `{}` each.

    Raises DatasetError if `choice` is none of these, or the file has a line that cannot be a template.
    """
    if choice == "single":
        return list(sets.single)
    if choice == "ensemble":
        return list(sets.ensemble)
    path = Path(choice).expanduser()
    if choice.count("{}") == 1 and not path.is_file():
        return [choice]
    if not path.is_file():
        hint = did_you_mean(choice, ["single", "ensemble"])
        raise DatasetError(
            f"no templates {choice!r}.{hint} Give 'single', 'ensemble', a template with {{}}, or a text file of such."
        )
    return read_templates(path)


def read_templates(path: Path) -> list[str]:
    """Templates of a text file, one a line, `{}` or CLIP_benchmark's `{c}` for the class name. Raises DatasetError."""
    return [read_template(line, f"{path}: line {number}") for number, line in enumerate(read_lines(path), start=1)]


def read_template(text: str, where: str) -> str:
    """A template with `{}` for the class name, or CLIP_benchmark's `{c}`. Raises DatasetError for anything else."""
    template = text.replace("{c}", "{}")
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise DatasetError(f"{where} must hold one '{{}}' (or '{{c}}') for the class name, got {text!r}")
    return template
