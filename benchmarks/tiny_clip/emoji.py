"""The emoji drawings as arrays: who drew what, which style is held out, and what each concept is called."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
TEST_STYLES = ("twemoji", "emojione")  # never seen in any training, by any script
VALIDATION_STYLES = ("fxemoji",)  # not trained on either: settings are chosen on it
TRAIN_STYLES = ("noto", "notov1", "streamline", "flat", "fluent3d")
CATEGORY_NOUNS = {"people & body": "person", "smileys & emotion": "face", "flags": "flag"}


@dataclass
class Emoji:
    """`rgba[style]`: (1644, 64, 64, 4) uint8, all zero where a style has no drawing of the concept."""

    concepts: list[dict]
    rgba: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: Path) -> Emoji:
        with np.load(folder / "emoji64.npz") as archive:
            rgba = {style: archive[style] for style in archive.files}
        return cls(json.loads((folder / "concepts.json").read_text()), rgba)

    def drawn(self, style: str) -> np.ndarray:
        """Indices of the concepts this style has drawn."""
        return np.flatnonzero(self.rgba[style][..., 3].any(axis=(1, 2)))

    def names(self, index: int) -> list[str]:
        """Plain names of a concept, the official one first."""
        concept = self.concepts[index]
        names = [concept["name"].lower(), *(n.replace("_", " ") for n in concept["short_names"])]
        return list(dict.fromkeys(name.rstrip("0123456789 ") or name for name in names))

    @cached_property
    def tasks(self) -> dict[str, dict[str, list[int]]]:
        """data set -> class name -> concept indices, from classes.toml.

        Raises ValueError for an unknown short name, a concept in two classes or a class name in two sets.
        """
        by_name: dict[str, int] = {}
        for concept in self.concepts:
            by_name.setdefault(concept["short_names"][0], concept["index"])
        table = tomllib.loads((HERE / "classes.toml").read_text())
        classes = [name for task in table.values() for name in task]
        members = [name for task in table.values() for names in task.values() for name in names]
        unknown = [name for name in members if name not in by_name]
        repeated = {n for n in classes if classes.count(n) > 1} | {n for n in members if members.count(n) > 1}
        if unknown or repeated:
            raise ValueError(f"classes.toml: unknown {unknown}, named twice {sorted(repeated)}")
        return {task: {c: [by_name[n] for n in names] for c, names in t.items()} for task, t in table.items()}

    @cached_property
    def kinds(self) -> tuple[list[str], np.ndarray]:
        """Every concept's kind: its task class, or else its Unicode subcategory as a noun. (names, kind of each)"""
        kind = [self._subcategory_noun(concept) for concept in self.concepts]
        for classes in self.tasks.values():
            for name, members in classes.items():
                for index in members:
                    kind[index] = name
        names = sorted(set(kind))
        return names, np.array([names.index(k) for k in kind])

    def _subcategory_noun(self, concept: dict) -> str:
        noun = concept["subcategory"].replace("-", " ").replace("&", "and")
        prefix = CATEGORY_NOUNS.get(concept["category"].lower(), "")
        return noun if prefix in noun else f"{prefix} {noun}".strip()


def on_background(rgba: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W) drawings with premultiplied alpha over (B, 3, H, W) or (B, 3, 1, 1), all in [0,1]."""
    return rgba[:, :3] + background * (1 - rgba[:, 3:])


def premultiplied(rgba: np.ndarray) -> torch.Tensor:
    """(N, 64, 64, 4) uint8 -> (N, 4, 64, 64) float in [0,1] with colour multiplied by alpha."""
    x = torch.from_numpy(rgba).permute(0, 3, 1, 2).float() / 255
    return torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], dim=1)
