"""What the sanity probes found, in the store: a file for each model, attack, eps and choice of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypedDict, cast

from clipguard.core.errors import first_line
from clipguard.core.records.run import StageCosts
from clipguard.sanity.checks import Finding, Verdict
from clipguard.store.places import Place, listed
from clipguard.store.store import Store, canonical, sha256

PROBES = "probes"  # their folder


class ProbeKey(TypedDict):
    """Everything that can change what the probes find."""

    version: int
    cells: list[str]  # names of the stored cells of what is attacked, which stand for the model and the attacks
    eps: float  # in pixels of [0,1]
    images: list[tuple[int, str, int]]  # index, SHA-256 and label
    class_names: list[str]


class StoredFinding(TypedDict):
    """A `Finding`; the advice is that of the clipguard that reads it."""

    id: str
    verdict: Verdict
    evidence: str
    numbers: dict[str, float]


class StoredProbes(TypedDict):
    """The content of a file: what was probed, what came of it, and what it took."""

    key: ProbeKey
    findings: list[StoredFinding]
    costs: StageCosts


def probe_file(store: Store, key: ProbeKey) -> Place:
    """The file of a key, whether or not it is there."""
    return store.path / PROBES / f"{sha256(canonical(key).encode())}.json"


def probe_files(store: Store) -> list[Place]:
    """All that are there, by name."""
    return listed(store.path / PROBES, "*.json")


def write_probes(store: Store, key: ProbeKey, findings: Sequence[Finding], costs: StageCosts) -> None:
    """Keep findings and what they took.

    Raises:
        OutputError: if the disk does not take it.
    """
    plain: list[StoredFinding] = [
        {"id": f.id, "verdict": f.verdict, "evidence": f.evidence, "numbers": dict(f.numbers)} for f in findings
    ]
    probes: StoredProbes = {"key": key, "findings": plain, "costs": costs}
    whole = {**probes, "sha256": sha256(canonical(probes).encode())}
    store.write(probe_file(store, key), f"{canonical(whole)}\n".encode())


def read_probes(store: Store, path: Place) -> StoredProbes | None:
    """The content of a file; None if there is none. A damaged one is set aside with a warning."""
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("sha256")
        if digest != sha256(canonical(content).encode()) or path != probe_file(store, content["key"]):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        store.set_aside(path, first_line(error))
        return None
    return cast(StoredProbes, content)
