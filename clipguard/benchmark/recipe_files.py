"""Recipes of one's own: a TOML or YAML file that names stages, to be given where an attack's name goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipguard.attacks.base import Attack
from clipguard.attacks.recipes import Recipe, parse_recipe
from clipguard.attacks.registry import ATTACKS, SUITES
from clipguard.core.checking import check_type
from clipguard.core.errors import AttackError
from clipguard.core.files.config_files import SUFFIXES, read_config_file
from clipguard.core.notices import notice

KEYS = ("name", "eot", "stages")


def open_recipe(text: str) -> Recipe:
    """The recipe of a name (see `parse_recipe`) or of a .toml, .yaml or .yml file.

    A file has `stages`, a list whose members are names with options (`"apgd-ce(restarts=5)"`) or tables
    (`{attack = "apgd-ce", restarts = 5}`), and may have `name` (default: the file's) and `eot`.
    Raises AttackError for an unknown name or option, or a value that makes no sense.
    """
    check_type("An attack's name", text, str, AttackError)
    recipe = _open(text)
    for stage in recipe.stages:
        notice_odd_steps(stage)
    return recipe


def notice_odd_steps(stage: Attack) -> None:
    """Say how a step size is taken where 2/255, in pixels or in 1/255, may have been meant."""
    fraction = stage.options().get("step_size")
    if fraction is not None and (fraction > 1 or fraction * stage.iterations < 0.5):
        notice(
            "guessed",
            f"{stage.full_name}: step_size {fraction:g} is a fraction of eps: {stage.iterations} steps of it come to "
            f"{fraction * stage.iterations:.3g} eps; a step of 1/255 at eps 4/255 is 0.25",
        )


def _open(text: str) -> Recipe:
    if not text.strip().lower().endswith(SUFFIXES):
        return parse_recipe(text)
    path = Path(text.strip())
    content = read_config_file(path)
    unknown = sorted(set(content) - set(KEYS))
    if unknown:
        raise AttackError(f"{path}: {unknown[0]!r} is no key of a recipe; it has {', '.join(KEYS)}.")
    stages, name = content.get("stages"), content.get("name", path.stem)
    if not isinstance(stages, list) or not stages:
        raise AttackError(f'{path} needs a list of stages, as in stages = ["apgd-ce(restarts=5)", "square"].')
    if not isinstance(name, str) or not name:
        raise AttackError(f"{path}: name must be a text, not {name!r}.")
    if name in SUITES or name in ATTACKS:
        raise AttackError(f"{path}: {name!r} is an attack of clipguard's own; give the recipe another name.")
    eot = content.get("eot", 1)
    parsed = [parse_recipe(_spell(path, stage)) for stage in stages]
    if any(recipe.eot != 1 for recipe in parsed):
        raise AttackError(f"{path}: eot belongs to the whole recipe; write `eot = K` outside the stages.")
    whole = parse_recipe(f"none(eot={eot})")  # its value is checked there
    return Recipe(name, tuple(stage for recipe in parsed for stage in recipe.stages), whole.eot)


def _spell(path: Path, stage: Any) -> str:
    """A stage as `parse_recipe` reads it."""
    if isinstance(stage, str):
        return stage
    if not isinstance(stage, Mapping) or not isinstance(stage.get("attack"), str):
        raise AttackError(f"{path}: a stage is a name or a table with `attack`, not {stage!r}.")
    listed = ",".join(f"{key}={value}" for key, value in stage.items() if key != "attack")
    return f"{stage['attack']}({listed})" if listed else str(stage["attack"])
