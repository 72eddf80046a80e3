"""Prompt templates: which sentences a class name is put into."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipguard.core.errors import DatasetError, did_you_mean
from clipguard.core.notices import notice
from clipguard.data.classes.pasted_lines import clean_lines, drop_numbers, is_quoted, unquote
from clipguard.data.classes.pasted_value import parse_literal, strings
from clipguard.data.text_files import existing_file, read_text

TYPED = "--templates"  # where templates come from that were typed: stored in notices, so spelled as it always was
PLACES = re.compile(r"\{\s*\w*\s*\}|%s|<\w+>|\[\w+\]")  # how others write the place of the name


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


def resolve_templates(choice: str, sets: TemplateSets, dataset: str = "") -> list[str]:
    """`"single"`, `"ensemble"`, a template (`"a sketch of a {}"`) or a file of them -> templates with one `{}` each.

    Args:
        choice: as the user wrote it.
        sets: what `single` and `ensemble` mean for the data set.
        dataset: whose templates are taken from a file that has those of several.

    Raises:
        DatasetError: if `choice` is none of these, or the file has a line that cannot be a template.
    """
    if choice == "single":
        return list(sets.single)
    if choice == "ensemble":
        return list(sets.ensemble)
    path = existing_file(choice)
    if path is not None:
        return read_templates(path, dataset)
    if re.match(r"lambda\b|[fF]?['\"]|[\[(]", choice.lstrip()) and "{" in choice:
        return _parse_templates(choice, Path(TYPED), dataset)
    if set("{}%") & set(choice):
        return [read_template(_without_quotes(choice), "`templates`")]
    hint = did_you_mean(choice, ["single", "ensemble"])
    raise DatasetError(
        f"no templates {choice!r}.{hint} Give 'single', 'ensemble', a template with {{}}, or a text file of such."
    )


def read_templates(path: Path, dataset: str = "") -> list[str]:
    """Templates of a text file, one a line, `{}` or CLIP_benchmark's `{c}` for the class name.

    Also read, and said in a notice: quotes, commas at the end and comments; a list as of Python, JSON or YAML; lines
    `lambda c: f'a photo of a {c}.'`; and CLIP_benchmark's table of data sets, of which `dataset` says the one.

    Raises:
        DatasetError: with the line, for anything else.
    """
    return _parse_templates(read_text(path), path, dataset)


def _parse_templates(text: str, path: Path, dataset: str) -> list[str]:
    value, done, form = parse_literal(text, path), list[str](), "a list"
    if isinstance(value, dict):
        key = _choose(value, dataset, path)
        value, form = value[key], f"those of {key!r}"
    if value is None:
        lines = drop_numbers(clean_lines(text, path))
        form, done = "lines", list(lines.done)
        entries = [(t, f"line {n}") for t, n in zip(lines.texts, lines.numbers, strict=True)]
    else:

        def refuse(reason: str) -> DatasetError:
            return DatasetError(f"{path} must hold templates, one a line, or a list of them ({reason})")

        entries = [(t, f"entry {n}") for n, t in enumerate(strings(value, refuse), start=1)]
    templates = [read_template(entry, f"{path}: {where}") for entry, where in entries]
    if done or form != "lines":
        without = f", without {', '.join(done)}" if done else ""
        notice("translated", f"{path}: read as {form}{without}: {len(templates)} templates, first {templates[0]!r}")
    return templates


def read_template(text: str, where: str) -> str:
    """A template with `{}` for the class name, or CLIP_benchmark's `{c}`.

    Raises:
        DatasetError: for anything else.
    """
    template = text.replace("{c}", "{}")
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        place = PLACES.search(template)
        hint = f"; write {{}} in place of {place[0]}" if place and "{}" not in template else ""
        raise DatasetError(f"{where} must hold one '{{}}' (or '{{c}}') for the class name, got {text!r}{hint}")
    return template


def _without_quotes(text: str) -> str:
    return unquote(text) if is_quoted(text) and text != '"{}"' else text


def _choose(table: dict[str, Any], dataset: str, path: Path) -> str:
    """The key of a data set's templates in a table of several, as `cifar10` or `vtab/cifar10`."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])

    keys = [key for key in table if plain(str(key)) == plain(dataset)] or (list(table) if len(table) == 1 else [])
    if len(keys) != 1:
        raise DatasetError(
            f"{path} has templates of {len(table)} data sets ({', '.join(map(str, list(table)[:8]))}, ...), and which "
            f"are meant for {dataset or 'these images'} is not clear; put those into a file of their own, one a line"
        )
    return keys[0]
