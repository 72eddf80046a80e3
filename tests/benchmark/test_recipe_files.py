"""Recipes from files: both formats give what the names give, and every mistake is one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipguard.attacks.recipes import parse_recipe
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.core.errors import ClipguardError

TOML = """
name = "thorough"
eot = 3
stages = ["apgd-ce(iterations=50,restarts=2)", {attack = "pgd", iterations = 7, random_start = false}, "autoattack"]
"""
YAML = """
name: thorough
eot: 3
stages:
  - apgd-ce(iterations=50,restarts=2)
  - attack: pgd
    iterations: 7
    random_start: false
  - autoattack
"""


@pytest.mark.parametrize(("file", "content"), [("a.toml", TOML), ("a.yaml", YAML), ("A.YML", YAML)])
def test_a_file_is_the_stages_it_names(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    recipe = open_recipe(str(tmp_path / file))
    names = ("apgd-ce(iterations=50,restarts=2)", "pgd-7(random_start=false)", "autoattack")
    assert recipe.stages == tuple(stage for name in names for stage in parse_recipe(name).stages)
    assert (recipe.name, recipe.eot) == ("thorough", 3)


def test_the_name_is_the_file_s_unless_given(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('stages = ["pgd-3"]')
    recipe = open_recipe(str(tmp_path / "mine.toml"))
    assert (recipe.name, recipe.eot, recipe.stages) == ("mine", 1, parse_recipe("pgd-3").stages)


def test_what_is_no_file_is_a_name() -> None:
    assert open_recipe("pgd-3") == parse_recipe("pgd-3")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.toml", None, "Cannot read"),
        ("a.toml", "stages = [", "not valid TOML"),
        ("a.yaml", "stages: [", "not valid YAML"),
        ("a.yaml", "- pgd-3", "must hold settings by name"),
        ("a.toml", "", "needs a list of stages"),
        ("a.toml", "stages = []", "needs a list of stages"),
        ("a.toml", 'stages = "pgd-3"', "needs a list of stages"),
        ("a.toml", 'stages = ["pgd-3"]\nrestarts = 2', "'restarts' is no key"),
        ("a.toml", 'stages = ["pgdd-3"]', "Unknown attack"),
        ("a.toml", "stages = [3]", "a stage is a name or a table"),
        ("a.toml", "stages = [{iterations = 3}]", "a stage is a name or a table"),
        ("a.toml", 'stages = [{attack = "apgd-ce", steps = 3}]', "no option 'steps'"),
        ("a.toml", 'stages = ["pgd-3(eot=2)"]', "outside the stages"),
        ("a.toml", 'stages = ["pgd-3"]\neot = 0', "eot must be a whole number"),
        ("a.toml", 'stages = ["pgd-3"]\nname = 3', "name must be a text"),
        ("a.toml", 'stages = ["pgd-3"]\nname = "autoattack"', "clipguard's own"),
    ],
)
def test_mistakes(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(ClipguardError, match=message) as caught:
        open_recipe(str(tmp_path / file))
    assert "\n" not in str(caught.value)
