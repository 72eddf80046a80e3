"""Where the numbers of a report come from, how to get them again, and what to cite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipguard.attacks.methods.pgd import PGD
from clipguard.attacks.registry import ATTACKS, attack_class
from clipguard.benchmark.rerun_command import Rerun, rerun
from clipguard.benchmark.results.table import protocol_line
from clipguard.core.records.run import CostRecord, DatasetRecord, ModelRecord, RunRecord
from clipguard.models.sources.published import find_published, published_models
from clipguard.models.sources.spec import HUB_PREFIX
from clipguard.reporting.board import Run

HUB = "https://huggingface.co"
CLIPGUARD = (
    "@software{{clipguard, title = {{clipguard: benchmarking and training the adversarial robustness of CLIP models}}, "
    "version = {{{version}}}}}"
)
Facts = list[tuple[str, str]]  # name, value
ELSEWHERE = {  # keys of a run that the page shows in their own way
    "complete",
    "plan",
    "models",
    "datasets",
    "attacks",
    "costs",
    "versions",
    "machine",
    "findings",
    "protocol",
}


@dataclass(frozen=True)
class Source:
    """All that is known about a run, as texts."""

    number: int
    path: str
    facts: Facts
    models: list[tuple[str, Facts]]  # by name
    datasets: list[tuple[str, Facts]]
    attacks: list[tuple[str, str]]  # by name, all parameters
    costs: list[tuple[str, ...]]  # model, data set, attack, forward and backward passes, seconds
    rerun: Rerun
    complete: bool


@dataclass(frozen=True)
class Reference:
    """Something to cite, and its page if it has one."""

    text: str
    url: str = ""


def describe(run: Run) -> Source:
    """The provenance of a run, as texts."""
    record = run.result.run
    return Source(
        run.number,
        run.path,
        _facts(record),
        [(name, _model_facts(model)) for name, model in record["models"].items()],
        [(name, _dataset_facts(dataset)) for name, dataset in record["datasets"].items()],
        [(name, json.dumps(parameters)) for name, parameters in record["attacks"].items()],
        [_cost(cost) for cost in record["costs"]],
        rerun(record),
        bool(record["complete"]),
    )


def _facts(run: RunRecord) -> Facts:
    """What has no group of its own on the page."""
    facts = [("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items()))]
    facts.append(("machine", ", ".join(f"{name} {value}" for name, value in run["machine"].items())))
    protocol = run.get("protocol")
    if protocol:
        facts.append(("protocol", protocol_line(protocol).removeprefix("protocol ")))
    return facts + [(key.replace("_", " "), _text(value)) for key, value in run.items() if key not in ELSEWHERE]


def _model_facts(model: ModelRecord) -> Facts:
    return [(key.replace("_", " "), _text(value)) for key, value in model.items() if value not in (None, [], "")]


def _dataset_facts(dataset: DatasetRecord) -> Facts:
    names, templates = dataset["class_names"], dataset["templates"]
    return [
        ("source", f"{dataset['source']}, split {dataset['split']}"),
        ("images", f"{dataset['n']} of {dataset['of']}"),
        ("fingerprint", dataset["fingerprint"]),
        ("classes", f"{len(names)}: {_some(names)}"),
        ("prompts", f"{len(templates)}: {_some(templates)}"),
    ]


def _some(values: Sequence[str], most: int = 4) -> str:
    return ", ".join(values[:most]) + (", …" if len(values) > most else "")


def _cost(cost: CostRecord) -> tuple[str, ...]:
    stages = cost["stages"].values()
    forward, backward = sum(stage["forward"] for stage in stages), sum(stage["backward"] for stage in stages)
    seconds = f"{sum(stage['seconds'] for stage in stages):.1f}"
    return (cost["model"], cost["dataset"], cost["attack"], f"{forward:,}", f"{backward:,}", seconds)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def references(runs: Sequence[Run]) -> list[Reference]:
    """clipguard, the attacks that ran, and the pages of checkpoints that have one."""
    versions = sorted({run.result.run["versions"]["clipguard"] for run in runs})
    out = [Reference(CLIPGUARD.format(version=", ".join(versions)))]
    stages = [s["attack"] for run in runs for a in run.result.run["attacks"].values() for s in a["stages"]]
    ran = {attack_class(stage) for stage in stages}
    # In the order of the registry, but PGD before FGSM, as every report had it.
    papers = dict.fromkeys(a.citation for a in sorted(ATTACKS.values(), key=lambda a: a is not PGD) if a in ran)
    out += [Reference(paper, _page(paper)) for paper in papers if paper]
    for name in dict.fromkeys(name for run in runs for name in run.result.run["models"]):
        out += _checkpoint(name)
    return out


def _page(citation: str) -> str:
    """The page of a paper whose citation ends in its number at arXiv."""
    number = citation.rpartition("arXiv:")[2] if "arXiv:" in citation else ""
    return number and f"https://arxiv.org/abs/{number}"


def _checkpoint(name: str) -> list[Reference]:
    bare = name.partition("#")[0]
    place = bare.removeprefix(HUB_PREFIX).partition("@")[0] if bare.startswith(HUB_PREFIX) else ""
    repository = "/".join(place.split("/")[:2])
    file = place.removeprefix(repository).strip("/")
    found = (p for p in published_models() if repository and (p.hub, p.file) == (repository, file))
    known = find_published(bare) or next(found, None)
    hub = repository or (known.hub if known else "")
    text = f"{name}: {known.method}, {known.paper}" if known else name
    return [Reference(text, f"{HUB}/{hub}" if hub else "")] if known or hub else []
