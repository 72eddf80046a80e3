"""Robust checkpoints that others published, by short name: the table in `published.toml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from clipguard.core.errors import ModelError
from clipguard.core.files.config_files import read_config_file
from clipguard.core.plugins import load_plugins

TABLE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class Published:
    """A checkpoint that is out there: where it is, how it was trained, and how its numbers came about."""

    name: str
    method: str
    architecture: str  # open_clip's, with its activation
    trained_on: str
    eps: str  # of the training attack, linf, in units of 1/255
    paper: str
    evaluated: str  # how its published numbers were measured
    results: str = ""
    at: str = ""  # a spec, for one that comes with an installed package
    hub: str = ""  # a repository of the Hugging Face hub
    file: str = ""  # the file's name, there or elsewhere
    where: str = ""  # where it is published, if not on the hub
    base: str = ""  # whose text tower goes with a file that is an image tower
    normalization: str = ""  # where it differs from the base's
    unverified: list[str] = field(default_factory=list)

    @property
    def quick_gelu(self) -> bool:
        """Whether it was trained with QuickGELU."""
        return self.architecture.endswith("-quickgelu")

    @property
    def source(self) -> str:
        """Where it is, for people."""
        if self.at or self.hub:
            return self.at or self._on_hub()
        return f"{self.file}, {self.where}; base {self.base}"

    def _on_hub(self) -> str:
        """The spec of a repository, or of a file in one."""
        return f"hf-hub:{self.hub}" + (f"/{self.file}@{self.base}" if self.file else "")

    def spec(self) -> str:
        """The spec that loads it.

        Raises:
            ModelError: when it is not on the hub, so that somebody has to fetch it.
        """
        if self.at or self.hub:
            return self.at or self._on_hub()
        option = f"#normalization={self.normalization}" if self.normalization else ""
        raise ModelError(
            f"{self.name} is not on the Hugging Face hub: download {self.file} ({self.where}) and give it as `model`"
            f" path/to/{self.file}@{self.base}{option}."
        )


@cache
def published_models() -> tuple[Published, ...]:
    """Every checkpoint of the table, and those of plug-ins (`clipguard.models`)."""
    table = {name: Published(name=name, **entry) for name, entry in read_config_file(TABLE).items()}

    def add(_: str, checkpoint: object) -> None:
        if not isinstance(checkpoint, Published):
            raise ModelError(f"it must be a clipguard.models.sources.published.Published, not {checkpoint!r}")
        if checkpoint.name in table:
            raise ModelError(f"there is a checkpoint {checkpoint.name!r} already")
        table[checkpoint.name] = checkpoint

    load_plugins("clipguard.models", add)
    return tuple(table.values())


def find_published(name: str) -> Published | None:
    """The checkpoint of that short name."""
    return next((entry for entry in published_models() if entry.name == name), None)


def find_repository(repository: str) -> Published | None:
    """The checkpoint that is that whole hub repository."""
    return next((entry for entry in published_models() if entry.hub == repository and not entry.file), None)
