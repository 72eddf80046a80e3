"""A model and images that the tests of a session share; none of them writes there."""

from __future__ import annotations

import pytest
from training_runs import write_images, write_vit


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ViT with random weights, as `local-dir:FOLDER`."""
    return write_vit(tmp_path_factory.mktemp("model") / "vit")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with eight images of each of three classes."""
    return write_images(tmp_path_factory.mktemp("data") / "images")
