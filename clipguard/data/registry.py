"""The field's data sets by name (registry.toml), groups of them, and one's own from a file in the same form."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from clipguard.core.errors import DatasetError, did_you_mean
from clipguard.core.files.config_files import SUFFIXES, read_config_file
from clipguard.core.plugins import load_plugins
from clipguard.data.classes.labels import NameList
from clipguard.data.classes.lists import read_class_list
from clipguard.data.formats.embedded import embedded_folders
from clipguard.data.templates import PHOTO, TemplateSets, read_template, read_templates

REMOTE = ("hf:", "wds:")
ROOT_VARIABLE = "CLIPGUARD_DATA"


@dataclass(frozen=True)
class DatasetEntry:
    """A data set as registry.toml or a file of one's own describes it. Whatever is left out comes with the data."""

    name: str
    """Its id, or the path of the file."""
    source: str | None = None
    """A path, `hf:org/name` or `wds:org/name`; None: only a copy under `data_root`."""
    split: str | None = None
    """Of the source; copies have their own."""
    size: int | None = None
    """Images of that split."""
    classes: int | None = None
    """Number of classes."""
    class_names: tuple[str, ...] | str | None = None
    """In label order, or a file of them."""
    tecoa_names: tuple[str, ...] | None = None
    """Names that TeCoA's papers use instead."""
    single: str = PHOTO.single[0]
    """The prompt of `templates="single"`."""
    templates: tuple[str, ...] | str | None = None
    """The prompts of `templates="ensemble"`, or a file of them."""
    ensemble: tuple[str, ...] | None = None
    """The same for data that come without prompts."""
    native: bool = False
    """Papers that attack some sets at their own resolution do so here (CIFAR, STL)."""
    imagenet: bool = False
    """Classes are ImageNet's, all or some."""
    image_column: str | None = None
    label_column: str | None = None
    notes: str = ""

    def written_names(self) -> NameList | None:
        """Names that the entry itself gives.

        Raises:
            DatasetError: if their file cannot be read.
        """
        if self.class_names is None:
            return None
        if isinstance(self.class_names, str):
            return read_class_list(Path(self.class_names), self.class_names)
        return NameList(list(self.class_names), self.name)

    def template_sets(self, of_data: TemplateSets) -> TemplateSets:
        """What `single` and `ensemble` mean here; `of_data`: what came with the data."""
        ensemble = of_data.ensemble if self.templates is None else self.templates
        if isinstance(ensemble, str):
            ensemble = tuple(read_templates(Path(ensemble)))
        return TemplateSets((self.single,), ensemble)

    def locate(self, data_root: Path | None) -> str:
        """The copy under `data_root` (default: CLIPGUARD_DATA) if there is one, else the source.

        Raises:
            DatasetError: if there is neither, `data_root` is no folder, or a path here has the same name.
        """
        copy = self.local_copy(data_root)
        if copy is not None:
            return str(copy)
        if self.name in registry() and Path(self.name).exists():
            raise DatasetError(
                f"a data set of the field and a path here; write ./{self.name} for the path, or `data_root=.` to take "
                "it for a copy of the data set"
            )
        if self.source is None:
            raise DatasetError(f"no public source to download from; {self.cure(data_root)} ({self.notes})")
        return self.source

    def local_copy(self, data_root: Path | None) -> Path | None:
        """DIR/<id>, if it exists."""
        root = data_root_folder(data_root)
        copy = root / self.name if root is not None else None
        return copy if copy is not None and copy.exists() else None

    def cure(self, data_root: Path | None) -> str:
        """What to do where the source cannot be had."""
        root = data_root_folder(data_root)
        if root is not None:
            return f"put a copy into {root / self.name}"
        return f"put a copy into DIR/{self.name} and say `data_root=DIR`, or {ROOT_VARIABLE}=DIR"


def data_root_folder(data_root: Path | None) -> Path | None:
    """`data_root`, else CLIPGUARD_DATA, else None.

    Raises:
        DatasetError: if it is no folder.
    """
    named = str(data_root) if data_root is not None else os.environ.get(ROOT_VARIABLE)
    if not named:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        raise DatasetError(f"`data_root` (or {ROOT_VARIABLE}) {named} is no folder; name the one that holds the copies")
    return root


@cache
def _content() -> dict[str, Any]:
    return read_config_file(Path(str(files("clipguard.data") / "registry.toml")))


@cache
def registry() -> dict[str, DatasetEntry]:
    """All registered data sets by id, in the order of registry.toml; those of plug-ins (`clipguard.datasets`) last."""
    entries = {name: read_entry(name, table) for name, table in _content().items() if name != "groups"}

    def add(name: str, entry: object) -> None:
        if isinstance(entry, (str, Path)):
            entry = replace(_read_own(str(entry)), name=name)
        if not isinstance(entry, DatasetEntry):
            raise DatasetError(f"it must be a DatasetEntry or the path of a file that describes one, not {entry!r}")
        if name in entries or name in groups():
            raise DatasetError(f"there is a data set {name!r} already")
        entries[name] = entry

    load_plugins("clipguard.datasets", add)
    return entries


def groups() -> dict[str, tuple[str, ...]]:
    """Names that stand for several data sets, and those."""
    return {"embedded": tuple(embedded_folders())} | {name: tuple(ids) for name, ids in _content()["groups"].items()}


def expand_groups(names: Iterable[str]) -> list[str]:
    """`names` with every group replaced by its members, those each once and not again if they are also named."""
    names, known = list(names), groups()
    out: list[str] = []
    for name in names:
        out += [n for n in known[name] if n not in out and n not in names] if name in known else [name]
    return out


def find_entry(name: str) -> DatasetEntry | None:
    """The entry of an id, or of one's own .toml or .yaml file; None for any other name.

    Raises:
        DatasetError: for a group, and for a file that describes no data set.
    """
    if name in groups():
        raise DatasetError(f"a group of data sets ({', '.join(groups()[name])}), where one is needed; name one of them")
    if not name.lower().endswith(SUFFIXES):
        return registry().get(name)
    return _read_own(name)


def _read_own(name: str) -> DatasetEntry:
    """The entry that a .toml or .yaml file describes."""
    path = Path(name).expanduser()
    entry = read_entry(name, read_config_file(path))
    if entry.source is None:
        raise DatasetError('it has no `source`; write where the images are, as in source = "images/"')
    return _relative_to(path.parent, entry)


def _relative_to(folder: Path, entry: DatasetEntry) -> DatasetEntry:
    """Paths in a file are meant from where the file is."""
    changes: dict[str, str] = {}
    for key in ("source", "class_names", "templates"):
        value = getattr(entry, key)
        if isinstance(value, str) and not value.startswith(REMOTE):
            changes[key] = str(folder / Path(value).expanduser())
    return replace(entry, **changes)  # type: ignore[arg-type]  # all three are str fields


def read_entry(name: str, table: dict[str, Any]) -> DatasetEntry:
    """An entry from its table.

    Raises:
        DatasetError: for a key that does not exist or a value of the wrong kind.
    """
    known = {field.name: str(field.type) for field in fields(DatasetEntry) if field.name != "name"}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise DatasetError(f"no key {key!r}.{did_you_mean(key, known)} Keys: {', '.join(known)}")
        if not _fits(value, known[key]):
            raise DatasetError(f"{key} = {value!r} is not of the right kind ({known[key].replace('tuple', 'list')})")
        values[key] = tuple(value) if isinstance(value, list) else value
    for key in ("single", "templates", "ensemble"):
        if isinstance(values.get(key), tuple):
            values[key] = tuple(read_template(template, key) for template in values[key])
        elif key == "single" and key in values:
            values[key] = read_template(values[key], key)
    return DatasetEntry(name, **values)


def _fits(value: Any, kind: str) -> bool:
    """Whether a TOML value suits a field's annotation."""
    if isinstance(value, list):
        return "tuple" in kind and bool(value) and all(isinstance(v, str) for v in value)
    return type(value).__name__ in kind.replace("tuple[str, ...]", "").split(" | ")
