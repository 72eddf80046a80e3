"""The record of a run, typed: `run` in results.json and its parts. docs/results.md says what each key means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired

from clipguard.core.notices import Notice
from clipguard.core.records.provenance import Machine


class StageCost(TypedDict):
    """Passes, counted in images, and seconds of one attack, of "clean" or of "verification".

    `skipped` are forward passes that were not needed, since a run came back to a point; left out where there are none.
    """

    forward: int
    backward: int
    seconds: float
    skipped: NotRequired[int]


StageCosts = dict[str, StageCost]  # by attack


def add_costs(one: StageCost, other: StageCost, times: int = 1) -> StageCost:
    """One cost and so many times the other, which may be -1."""
    total: StageCost = {
        "forward": one["forward"] + times * other["forward"],
        "backward": one["backward"] + times * other["backward"],
        "seconds": one["seconds"] + times * other["seconds"],
    }
    skipped = one.get("skipped", 0) + times * other.get("skipped", 0)
    return {**total, "skipped": skipped} if skipped else total


class _CostOfRows(TypedDict):
    model: str
    dataset: str
    norm: str
    attack: str
    batch_size: int | None
    stages: StageCosts


class CostRecord(_CostOfRows, total=False):
    """One of `run.costs`. The last three are of runs with a store; `stored` is what the reused results took."""

    reused: int
    computed: int
    stored: StageCosts


CostLogEntry = TypedDict(  # a class cannot have the key "from"
    "CostLogEntry",
    {"versions": dict[str, str], "device": str, "from": str, "to": str, "rows": int, "stages": StageCosts},
)
"""Who computed how many rows of the store, when (UTC, ISO 8601), on what, and what it took."""


class FindingRecord(TypedDict):
    """One answer of a sanity check (docs/doctor.md)."""

    id: str
    verdict: Literal["ok", "warning", "failure", "not checked"]
    evidence: str
    numbers: dict[str, float]
    advice: str


class FindingsRecord(TypedDict):
    """One of `run.findings`: the answers about one model on one data set."""

    model: str
    dataset: str
    findings: list[FindingRecord]


class ModelRecord(TypedDict):
    """One of `run.models`: `ModelInfo` as JSON."""

    name: str
    architecture: str
    weights: str
    sha256: str
    activation: str
    mean: list[float]
    std: list[float]
    image_size: list[int]
    interpolation: str
    resize_mode: str
    parameters: int
    image_parameters: int
    logit_scale: float
    logit_bias: float | None
    text: str
    text_sha256: str | None
    format: str
    base: str | None
    base_sha256: str | None
    base_cosine: float | None
    detected: list[str]


class DatasetRecord(TypedDict):
    """One of `run.datasets`: which images were evaluated (`n` of `of`), and what they were classified by."""

    source: str
    split: str
    n: int
    of: int
    fingerprint: str
    class_names: list[str]
    templates: list[str]
    pixels: dict[str, int]
    indices: list[int]


class AttackRecord(TypedDict):
    """One of `run.attacks`: every parameter of a recipe, stage by stage."""

    name: str
    eot: int
    stages: list[dict[str, Any]]


class ProtocolRecord(TypedDict):
    """The protocol of a run, and every setting that differs from it."""

    name: str
    overrides: dict[str, Any]


class DefenseRecord(TypedDict):
    """The defences around the models of a run, and how they were attacked (docs/defenses.md)."""

    chain: list[dict[str, Any]]
    random: bool
    threats: list[str]
    votes: int
    draws: int
    transfer_from: list[str]
    passes: list[int]  # of the image tower, forward and backward, that an image takes at most


class BatchInvariance(TypedDict):
    """Whether an image's bits are the same in any batch, and how passes are filled up for it."""

    holds: bool
    fill: Literal["least", "multiple", "full", "alone"]


class _AlwaysRecorded(TypedDict):
    complete: bool
    started: str
    wall_seconds: float
    versions: dict[str, str]
    machine: Machine
    seed: int
    norm: str
    eps: list[float]
    eps_mode: str
    resolution: str
    quantize: bool
    engine: str
    precision: str
    compile: bool
    batch_size: int | str
    text: str
    models: dict[str, ModelRecord]
    datasets: dict[str, DatasetRecord]
    attacks: dict[str, AttackRecord]
    costs: list[CostRecord]


class RunRecord(_AlwaysRecorded, total=False):
    """`run` in results.json and run.json: everything that can change a number, and what came of it beside the cells.

    Runs of an older clipguard lack some of the keys: read those that were added with `get`.
    """

    plan: dict[str, Any]
    protocol: ProtocolRecord | None
    resize: str
    decode: str
    logit_scale: float | str
    class_names: str
    batch_invariant: dict[str, BatchInvariance]
    notices: list[Notice]
    probes: bool
    in_memory: list[str]  # names of objects that were given from Python
    findings: list[FindingsRecord]
    defense: DefenseRecord  # of runs with one
    labels: str  # `clipguard attack`: where they come from


def model_names(run: RunRecord) -> list[str]:
    """The models of a run as they were typed: those with a defence or prompts have another name in its tables."""
    renamed = "defense" in run or run.get("plan", {}).get("prompts") is not None
    return [record["name"] if record and renamed else shown for shown, record in run["models"].items()]
