"""Tiny model folders and a registered tiny architecture, made once per test run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from open_clip import factory
from tiny_models import reference_model, register_architectures, state_of, write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> a complete local-dir folder (shared: do not change its files)."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = write_model(tmp_path_factory.mktemp("model") / family, family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registered tiny ViT with plain GELU; `<name>-quickgelu` is its twin."""
    configs, paths = dict(factory._MODEL_CONFIGS), list(factory._MODEL_CONFIG_PATHS)
    register_architectures(tmp_path_factory.mktemp("architectures"))
    yield "clipguard-test-vit"
    factory._MODEL_CONFIGS, factory._MODEL_CONFIG_PATHS = configs, paths


@pytest.fixture(scope="session")
def vit_state(model_folder: Callable[[str], Path]) -> dict[str, torch.Tensor]:
    """The weights of the tiny ViT (shared: copy before changing)."""
    return state_of(reference_model(model_folder("vit")))
