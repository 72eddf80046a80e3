"""What the sanity probes found, in the store: a file for each model, attack, eps and choice of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipguard.core.errors import first_line
from clipguard.sanity.checks import Finding
from clipguard.store.store import Store, canonical, sha256

FOLDER = "probes"


def path_of(store: Store, key: Mapping[str, Any]) -> Path:
    """The file of a key, whether or not it is there."""
    return store.path / FOLDER / f"{sha256(canonical(key).encode())}.json"


def files(store: Store) -> list[Path]:
    """All that are there, by name."""
    return sorted((store.path / FOLDER).glob("*.json"))


def write(store: Store, key: Mapping[str, Any], findings: Sequence[Finding], costs: Mapping[str, Any]) -> None:
    """Keep findings and what they took. Raises OutputError if the disk does not take it."""
    plain = [{"id": f.id, "verdict": f.verdict, "evidence": f.evidence, "numbers": dict(f.numbers)} for f in findings]
    kept = {"key": key, "findings": plain, "costs": costs}
    store.write(path_of(store, key), f"{canonical({**kept, 'sha256': sha256(canonical(kept).encode())})}\n".encode())


def read(store: Store, path: Path) -> dict[str, Any] | None:
    """`key`, `findings` and `costs` of a file. None if there is none; a damaged one is set aside with a warning."""
    try:
        kept = json.loads(path.read_bytes())
        digest = kept.pop("sha256")
        if digest != sha256(canonical(kept).encode()) or path != path_of(store, kept["key"]):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        store.set_aside(path, first_line(error))
        return None
    return dict(kept)
