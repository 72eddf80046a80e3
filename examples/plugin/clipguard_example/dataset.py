"""A data set that comes with the package: the path of the file that describes it."""

from __future__ import annotations

from pathlib import Path

SHAPES = Path(__file__).with_name("shapes.toml")
