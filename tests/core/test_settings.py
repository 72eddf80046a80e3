"""One declaration a setting: the command line, files, Python and the docs agree on names and defaults."""

from __future__ import annotations

import json
import runpy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

import clipguard
from clipguard.api.options import BenchOptions, CompareOptions, FinetuneOptions
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.cli import app, attack, bench, certify, compare, doctor, finetune, run
from clipguard.cli.options import read_config
from clipguard.comparison.rules import Rules
from clipguard.core.errors import ClipguardError
from clipguard.core.settings import Setting, read_settings, settings_of
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.settings import resolve

COMMANDS: dict[str, Any] = {
    "bench": bench,
    "attack": attack,
    "doctor": doctor,
    "certify": certify,
    "compare": compare,
    "finetune": finetune,
}
ALL = [(name, setting) for name, module in COMMANDS.items() for setting in module.SETTINGS.values()]


@cache
def options_of(command: str) -> dict[str, Any]:
    """The options of a command, by their name in Python."""
    return {p.name: p for p in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "setting"), ALL, ids=[f"{c}-{s.name}" for c, s in ALL])
def test_the_command_line_has_what_is_declared(command: str, setting: Setting) -> None:
    option = options_of(command)[setting.name]
    assert option.opts[0] == setting.flag
    assert (setting.letter in option.opts) or not setting.letter
    assert option.help == setting.full_help
    assert option.default is None  # what was not given is known as such, and the declaration has the default


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_else_is_an_option(command: str) -> None:
    own = {"help", "config", "images", "base", "candidate", "resume", "no_store"}
    assert set(options_of(command)) - set(COMMANDS[command].SETTINGS) <= own


@pytest.mark.parametrize("declared", [BenchPlan, FinetuneConfig, Rules])
def test_every_default_is_a_value(declared: Any) -> None:
    for name, setting in settings_of(declared).items():
        if name not in ("eps", "datasets"):  # which depend on other settings
            setting.check(setting.default)


@pytest.mark.parametrize(
    ("options", "declared", "beside"),
    [
        (BenchOptions, BenchPlan, {"models", "datasets", "eps", "attacks"}),
        (FinetuneOptions, FinetuneConfig, {"method", "out"}),
    ],
)
def test_python_takes_the_same_names_and_choices(options: Any, declared: Any, beside: set[str]) -> None:
    hints, settings = get_type_hints(options), settings_of(declared)
    assert set(hints) == set(settings) - beside
    for name, hint in hints.items():
        setting = settings[name]
        parts = get_args(hint) or (hint,)
        texts = {text for part in (hint, *parts) for text in get_args(part) if isinstance(text, str)}
        assert texts - {setting.none} == set(setting.choices), name
        assert (type(None) in parts) == setting.may_be_none, name


def test_compare_takes_those_of_bench() -> None:
    assert set(get_type_hints(CompareOptions)) == set(get_type_hints(BenchOptions)) | {"datasets", "eps", "attacks"}


def test_the_docs_list_them() -> None:
    hooks = runpy.run_path(str(Path(clipguard.__file__).parents[1] / "docs" / "hooks.py"))
    text = hooks["settings_page"]()
    for _, setting in ALL:
        assert f"| `{setting.name}` | `{setting.flag}" in text, setting.name


VALUES: dict[str, Any] = {
    "models": ["tiny"],
    "datasets": ["emoji-food"],
    "eps": [0.0157, 4],
    "attacks": ["pgd-10", "apgd-ce(iterations=5)"],
    "n_samples": None,
    "batch_size": 7,
    "logit_scale": 50.0,
    "quantize": True,
    "seed": 3,
}


def test_what_a_run_wrote_is_a_configuration_file(tmp_path: Path) -> None:
    """Also an eps that would be asked about if somebody typed it, and None where a word stands for it."""
    plan = make_plan(**{**VALUES, "eps": ["0.0157/255", "4"]})
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"run": {"models": {"tiny": {}}, "plan": plan.to_dict()}}))
    assert make_plan(**read_config(file, settings_of(BenchPlan))) == plan
    config = resolve({"eps": "0.0157/255", "step_size": "0.5", "steps": 3, "seed": 4})
    file.write_text(json.dumps({"config": config.to_dict()}))
    assert resolve({}, read_config(file, settings_of(FinetuneConfig))) == config


@pytest.mark.parametrize("suffix", ["toml", "yaml", "json"])
def test_a_file_says_what_the_command_line_says(suffix: str, tmp_path: Path) -> None:
    values = {"dataset": ["emoji-food"], "attack": "fgsm,pgd-2", "eps": [1, 4], "n-samples": 5, "quantize": True}
    file = tmp_path / f"settings.{suffix}"
    lines = {"toml": "{} = {}", "yaml": "{}: {}"}.get(suffix)
    text = "\n".join(lines.format(k, json.dumps(v)) for k, v in values.items()) if lines else json.dumps(values)
    file.write_text(text)
    from_file = make_plan(models="tiny", **read_config(file, settings_of(BenchPlan)))
    typed = make_plan("tiny", ["emoji-food"], attacks="fgsm,pgd-2", eps="1,4", n_samples="5", quantize=True)
    assert from_file == typed
    assert from_file.eps[1].typed == 4  # numbers of a file are those of the command line


REFUSED = [
    ("bench", "sed: 1", "'sed' is no setting. Did you mean 'seed'"),
    ("bench", "seed: -1", "--seed must be a whole number of at least 0, not -1"),
    ("doctor", "norm: linff", "--norm 'linff' is unknown. Did you mean 'linf'? Use linf or l2"),
    ("attack", "quantize: 2", "--quantize must be true or false, not 2"),
    ("compare tiny tiny", "max_drop: 200", "--max-drop must be a number of at least 0 and below 100, not 200"),
    ("finetune", "lr: fast", "--lr must be a number above 0, not 'fast'"),
    ("bench", "dataset: a\ndatasets: b", "'datasets' is there twice"),
    ("report", "galery: 1", "'galery' is no setting of this command. Did you mean 'gallery'"),
]


@pytest.mark.parametrize(("command", "content", "message"), REFUSED)
def test_bad_files_are_one_line(
    command: str, content: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content + "\n")
    assert run([*command.split(), "--config", str(file)]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_the_command_line_wins_over_the_file_and_other_commands_take_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.toml").write_text(
        'datasets = ["emoji-food"]\nattacks = ["none"]\nn_samples = 3\nout = "r"\nstore = "none"\n'
    )
    assert run(["-q", "bench", "--config", "b.toml", "-n", "4"]) == 0
    assert json.loads(Path("r/results.json").read_text())["run"]["plan"]["n_samples"] == 4
    Path("l.yaml").write_text("what: protocols\n")
    capfd.readouterr()
    assert run(["list", "--config", "l.yaml"]) == 0
    assert "fare" in capfd.readouterr().out


def test_names_of_fields_and_settings_are_the_same() -> None:
    assert {f.name for f in fields(BenchPlan)} - set(settings_of(BenchPlan)) == {"part", "overrides"}
    assert {f.name for f in fields(FinetuneConfig)} == set(settings_of(FinetuneConfig))


@pytest.mark.parametrize(
    ("setting", "value", "read"),
    [
        ("n_samples", "all", None),
        ("n_samples", "12", 12),
        ("logit_scale", "2e1", 20.0),
        ("quantize", "yes", True),
        ("attacks", "pgd-10,apgd-ce(iterations=50,restarts=2)", ("pgd-10", "apgd-ce(iterations=50,restarts=2)")),
        ("datasets", Path("a,b"), ("a,b",)),
        ("data_root", "/data", Path("/data")),
    ],
)
def test_values_are_read_in_their_type(setting: str, value: Any, read: Any) -> None:
    assert settings_of(BenchPlan)[setting].read(value) == read


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ClipguardError, match=r"'epz' is no setting. Did you mean 'eps'"):
        read_settings({"epz": 1}, settings_of(BenchPlan))


@pytest.mark.parametrize("command", ["bench", "attack", "doctor"])
def test_the_results_of_a_run_are_a_file_for_commands_with_fewer_settings(command: str, tmp_path: Path) -> None:
    plan = make_plan("tiny", "emoji-food", attacks="pgd-3", eps="4", n_samples=5)
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"run": {"models": {"tiny": {}}, "plan": plan.to_dict(), "probes": False}}))
    values = read_config(file, COMMANDS[command].SETTINGS)
    assert (values["attacks"], values["n_samples"], values.get("probes", False)) == (("pgd-3",), 5, False)
    file.write_text(json.dumps({"run": {"models": {"tiny": {}}, "plan": plan.to_dict() | {"engine": "reference"}}}))
    if command != "bench":  # which says something that the command cannot do
        with pytest.raises(ClipguardError, match="'engine' is no setting"):
            read_config(file, COMMANDS[command].SETTINGS)


def test_the_eps_of_a_file_is_not_taken_for_another_norm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("eps: 4\n")
    assert run(["bench", "--config", str(file), "--norm", "l2"]) == 2
    assert f"--eps of {file} is for linf; give --eps for --norm l2, too." in capfd.readouterr().err
