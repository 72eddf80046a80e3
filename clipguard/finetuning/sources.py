"""Where a run's model and data come from: the names in its settings, or objects of Python in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from clipguard.data import ZeroShotDataset
from clipguard.finetuning.config import FinetuneConfig
from clipguard.models.loading import LoadedModel, hash_tensors, load_model


@dataclass(frozen=True)
class Sources:
    """What is in memory of a run's model and data; the settings name the rest, and call an object by its name.

    Attributes:
        model: in place of `model`; a run trains a copy.
        dataset: in place of `dataset`; all of it is for training. It is opened with the run's settings.
    """

    model: LoadedModel | None = None
    dataset: Callable[[FinetuneConfig], ZeroShotDataset] | None = None

    def load(self, config: FinetuneConfig, device: str | torch.device) -> LoadedModel:
        """The model as it came, with weights that nobody else has."""
        if self.model is None:
            return load_model(config.model, device=device)
        return self.model.copy().to(device)

    def record(self, fingerprint: str) -> dict[str, str]:
        """For `run.json`: the settings that an object stood for, and SHA-256 of its weights or data (`fingerprint`)."""
        hashes = {}
        if self.model is not None:
            hashes["model"] = hash_tensors(self.model.model.state_dict())
        if self.dataset is not None:
            hashes["dataset"] = fingerprint
        return hashes


NAMED = Sources()
