"""Every command that clipguard prints or documents is one: it parses, and gives what it is said to give."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import clipguard
from clipguard.benchmark.plan import OF_DEFENSE, BenchPlan
from clipguard.benchmark.protocols import PROTOCOLS, make_plan
from clipguard.benchmark.rerun_command import rerun
from clipguard.cli import app, run
from clipguard.core.errors import ClipguardError
from clipguard.models.inspection import bench_command

ROOT = Path(clipguard.__file__).parents[1]
WEIGHTS = ["a folder/w.pt", "w.pt", "a b.pt", "it's.pt"]
MODELS, SETS = ["tiny", "ViT-B-32:a folder/w.pt@tiny#normalization=0,0,0/1,1,1"], ["emoji-food", "my photos/a.parquet"]
# A value of every field of a plan, other than the default, and some that are easily written wrong.
VALUES: dict[str, list[Any]] = {
    "eps": [["0.0157/255"], ["0,1,4/255,31.4159265358979,255"], ["1"]],
    "attacks": [("pgd-10", "apgd-ce(iterations=5,restarts=2)"), ("my attacks/mine.toml",)],
    "norm": ["l2"],
    "n_samples": [None, 7, 200, 1000],
    "seed": [3],
    "batch_size": [5],
    "resolution": ["native", "mixed"],
    "resize": ["crop256"],
    "logit_scale": [100.0, 12.345678901234567],
    "quantize": [True],
    "eps_mode": ["nested", "independent"],
    "engine": ["reference"],
    "precision": ["tf32", "auto", "float32"],
    "compile": [True],
    "device": ["cuda:1"],
    "templates": ["single", 'a "photo" of a {}, $HOME.', "my prompts.txt"],
    "text": ["original"],
    "prompts": ["my runs/prompts.safetensors", "apt/model.pth.tar-50#position=middle"],
    "split": ["a b"],
    "classes": ["my names.txt", "a, 'b c'"],
    "decode": ["plain", "upright"],
    "class_names": ["tecoa"],
    "duplicate_names": [True],
    "image_column": ["an image"],
    "label_column": ["a label"],
    "data_root": [Path("/my data")],
}
CASES = [(name, value) for name, values in VALUES.items() for value in values]


class PlanError(Exception):
    """Carries the plan out of the command, before anything is run."""


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What the command line makes of a printed command: its plan. Run where the weight files are."""
    monkeypatch.chdir(tmp_path)
    for name in WEIGHTS:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()

    def stop(plan: BenchPlan) -> None:
        raise PlanError(plan)

    def parse(command: str) -> BenchPlan:
        program, *words = shlex.split(command)
        assert program == "clipguard"
        monkeypatch.setattr(BenchPlan, "check", stop)
        with pytest.raises(PlanError) as caught:
            run(words)
        plan: BenchPlan = caught.value.args[0]
        return plan

    return parse


def stored(plan: BenchPlan, **more: Any) -> dict[str, Any]:
    """`run` of a result file, as it is read again."""
    run: dict[str, Any] = json.loads(json.dumps({"plan": plan.to_dict(), "models": dict.fromkeys(plan.models), **more}))
    return run


def plain(plan: BenchPlan) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(plan.to_dict()))
    return {"models": list(plan.models), **content}


def test_no_field_of_a_plan_is_forgotten() -> None:
    elsewhere = {"models", "datasets", "protocol", "overrides", "part", "workers", "ray", "decoders"}  # not stored
    elsewhere |= set(OF_DEFENSE)  # without a defence, they are not stored
    assert set(VALUES) == {f.name for f in fields(BenchPlan)} - elsewhere


@pytest.mark.parametrize("protocol", [None, *PROTOCOLS])
@pytest.mark.parametrize(("name", "value"), CASES)
def test_the_command_to_rerun_gives_the_same_plan(protocol: str | None, name: str, value: Any, planned: Any) -> None:
    plan = make_plan(MODELS, SETS, protocol=protocol, **{name: value})
    again = rerun(stored(plan))
    assert again.note == ""
    assert plain(planned(again.command)) == plain(plan), again.command


def test_all_at_once(planned: Any) -> None:
    values = {name: values[0] for name, values in VALUES.items() if name != "eps"}
    plan = make_plan(MODELS, SETS, **values)
    assert plain(planned(rerun(stored(plan)).command)) == plain(plan)


def test_the_command_of_a_defended_run_gives_the_same_plan(planned: Any) -> None:
    given = {"threats": ("transfer", "black-box"), "votes": 3, "draws": 2, "transfer_from": ("tiny",)}
    plan = make_plan(MODELS, SETS, defense="jpeg(quality=50)+ttc", **given)
    run = stored(plan, defense={})
    run["models"] = {plan.shown(name): {"name": name} for name in plan.models}
    assert plain(planned(rerun(run).command)) == plain(plan)


def test_defaults_are_not_written() -> None:
    assert (
        rerun(stored(make_plan(["tiny"], ["emoji-food"]))).command
        == "clipguard bench --model tiny --dataset emoji-food"
    )


def test_probes_that_were_switched_off_stay_off() -> None:
    assert "--no-probes" in rerun(stored(make_plan(["tiny"]), probes=False)).command


def test_a_part_is_said_and_the_command_is_of_the_whole(planned: Any) -> None:
    plan = make_plan(["tiny"], ["emoji-food"], n_samples=60, part=(0, 20))
    again = rerun(stored(plan))
    assert "images 0 to 19 in a seeded random order" in again.note
    assert plain(planned(again.command)) == plain(plan) | {"part": None}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attacks": ("a,b.toml",)}, "attacks ('a,b.toml',)"),
    ],
)
def test_what_only_python_can_ask_for_is_said(options: dict[str, Any], said: str) -> None:
    again = rerun(stored(make_plan(["tiny"], ["emoji-food"], **options)))
    assert again.command == ""
    assert said in again.note


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teleport": True}, "of a newer clipguard: its plan has teleport. Update clipguard"),
        ({"protocol": "next"}, "`protocol` 'next' is unknown"),
        ({"eps": "four"}, "damaged"),
    ],
)
def test_a_plan_that_is_not_understood_is_one_line(change: dict[str, Any], said: str) -> None:
    run = stored(make_plan(["tiny"], ["emoji-food"]))
    run["plan"] |= change
    again = rerun(run)
    assert again.command == ""
    assert said in again.note


def test_a_run_without_plan_and_one_of_an_older_clipguard(planned: Any) -> None:
    assert "older clipguard" in rerun({"models": {}}).note
    run = stored(make_plan(["tiny"], ["emoji-food"]))
    for name in ("part", "text", "duplicate_names", "class_names", "overrides"):
        del run["plan"][name]
    assert planned(rerun(run).command) == make_plan(["tiny"], ["emoji-food"])


def test_the_report_of_a_sequential_comparison_has_a_command_that_runs(tmp_path: Path, planned: Any) -> None:
    blind = "tiny#normalization=0,0,0/255,255,255"
    images = ["-d", "emoji-food", "--attack", "none", "--eps", "1", "-n", "40"]
    assert run(["-q", "compare", "tiny", blind, *images, "--sequential", "--first", "20", "--no-store"]) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert run(["-q", "report", str(folder), "--out", "r.html", "--gallery", "0"]) == 0
    assert run(["-q", "report", str(folder), "--out", "r.md", "--format", "md", "--gallery", "0"]) == 0
    (command,) = re.findall(r"<pre><code>(clipguard .*)</code></pre>", (tmp_path / "r.html").read_text())
    for name in ("r.html", "r.md"):
        assert "images 0 to 19 in a seeded random order" in (tmp_path / name).read_text()
    plan = planned(html.unescape(command))
    assert (plan.part, plan.n_samples, plan.datasets) == (None, 40, ("emoji-food",))


@pytest.mark.parametrize("spec", ["tiny", "a folder/w.pt", "w.pt#normalization=clip", "ViT-B-32:it's.pt"])
def test_the_command_that_inspect_prints_names_the_model(spec: str, planned: Any) -> None:
    assert planned(bench_command(spec)).models == (spec,)
    (based,) = planned(bench_command("a b.pt", "tiny")).models
    assert based.startswith("a b.pt@tiny")


PROGRAM = typer.main.get_command(app)


# All that is written ---------------------------------------------------------------------------------------------


def documents() -> Iterator[tuple[str, str]]:
    """Where commands are written for people: docs, and all of the package: help, messages, model cards, pages."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        yield str(path.relative_to(ROOT)), path.read_text()
    for path in sorted((ROOT / "clipguard").rglob("*")):
        if path.suffix in (".py", ".j2"):
            yield str(path.relative_to(ROOT)), path.read_text()


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `clipguard ...` in code, with where it is; the words of each, as a shell would pass them."""
    for where, text in documents():
        joined = text.replace("\\\n", " ")
        blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", joined, re.DOTALL) if where.endswith(".md") else []
        lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
        lines += [code for line in joined.splitlines() for code in re.findall(r"`(clipguard [^`]+)`", line)]
        for line in lines:
            synopsis = re.search(r"[{\[]|\w\|\w", line.replace("{}", ""))
            if line.startswith("clipguard ") and not synopsis:
                words = shlex.split(line, comments=True)
                ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", "||", ";")]
                yield where, words[1 : ends[0] if ends else None]


def parse(words: Sequence[str]) -> None:
    """As the program does, but for running it. Raises typer's error for what is no command."""
    group: Any = PROGRAM
    context = group.make_context("clipguard", list(words))
    rest = [*getattr(context, "_protected_args", []), *context.args]
    while hasattr(group, "resolve_command") and rest:
        name, group, rest = group.resolve_command(context, rest)
        context = group.make_context(name, list(rest), parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]


def test_every_command_that_is_written_anywhere_parses() -> None:
    seen, wrong = 0, []
    for where, words in commands():
        bare = len(words) == 1 or words[-1] in ("...", "…")  # `clipguard bench` as a name
        try:
            if not bare:
                parse(words)
                seen += 1
        except typer.Exit:  # --help
            seen += 1
        except (typer.TyperException, ClipguardError) as error:
            if not re.match("Missing|.* requires an argument", str(error)):  # the name of an option, as in a sentence
                wrong.append(f"{where}: clipguard {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)
    assert seen > 60
