"""TOML and YAML files that a user wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from clipguard.core.errors import ClipguardError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIXES = (".toml", ".yaml", ".yml")


def read_config_file(path: Path) -> dict[str, Any]:
    """The table that a .toml, .yaml or .yml file holds. Raises ClipguardError for anything else."""
    if path.suffix.lower() not in SUFFIXES:
        raise ClipguardError(f"{path} is neither TOML nor YAML; its name must end in {', '.join(SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ClipguardError(f"Cannot read {path}: {first_line(error)}.") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ClipguardError(f"{path} is not valid {path.suffix[1:].upper()}: {first_line(error)}.") from error
    if not isinstance(content, dict):
        raise ClipguardError(f"{path} must hold settings by name, as in `name: value`, not a {type(content).__name__}.")
    return content
