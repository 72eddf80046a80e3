"""What a lone weight file tells that its name leaves open: its architecture, and for an image tower its base model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from clipguard.core.environment.hub_access import hub_access
from clipguard.core.errors import ModelError
from clipguard.models.adapters.config import ADAPTER_CONFIG, is_adapter
from clipguard.models.adapters.merge import Adapter, read_adapter
from clipguard.models.checkpoint.architecture import describe_shapes, find_architectures, openai_twin, settle_activation
from clipguard.models.checkpoint.contents import explain_adapter
from clipguard.models.checkpoint.reader import WeightFile, read_metadata, read_weights
from clipguard.models.prompts.learned import METADATA, PROMPTS_NAME
from clipguard.models.sources.download import fetch_adapter, fetch_file
from clipguard.models.sources.locate import config_folder, has_config
from clipguard.models.sources.spec import DIR_PREFIX, HUB_PREFIX, ModelSource, parse_source


class Detected(NamedTuple):
    """A source that leaves nothing open."""

    source: ModelSource  # with the architecture or the base that its file tells filled in
    file: WeightFile | None = None  # what was read, if the source is a lone weight file
    notes: tuple[str, ...] = ()  # what was detected
    adapter: Adapter | None = None  # what is merged into `source.base`

    @property
    def tower(self) -> WeightFile | None:
        """The file, if it holds an image tower alone, which is put into `source.base`."""
        return None if self.source.base is None else self.file


def detect(source: ModelSource) -> Detected:
    """Read a lone weight file or an adapter, and fill in what the source leaves open: architecture, base model.

    What is on the hub is fetched. Other sources leave nothing open, and nothing of them is read.

    Raises:
        ModelError: when the file leaves open what must not be guessed; says how to name it.
    """
    source = bring_here(source)
    _refuse_prompts(source)
    if source.kind == "adapter":
        return _detect_adapter(source, Path(source.weights))
    if source.kind != "file":
        return Detected(source)
    file = read_weights(Path(source.weights), source.entry)
    if file.contents.adapter and is_adapter(file.path.parent):
        return _detect_adapter(source, file.path.parent)
    if file.contents.adapter:
        raise ModelError(explain_adapter(file.path))
    if file.contents.image_only:
        return _detect_tower(source, file)
    if source.base is not None:
        raise ModelError(f"{file.path} holds image and text tower, so there is no base to name: leave out"
                         f" {source.base.spec}.")  # fmt: skip
    if source.name:
        return Detected(source, file)
    try:
        architecture, why = settle_activation(file, find_architectures(file))
    except ModelError as error:
        folder = config_folder(file.path)
        if folder is None:
            raise
        raise ModelError(
            f"{error} Or give local-dir:{folder}: the config there says what these weights are."
        ) from error
    note = f"architecture detected: {architecture}, {why}"
    return Detected(replace(source, name=architecture), file, (note,))


def _refuse_prompts(source: ModelSource) -> None:
    """Raise ModelError for learned prompts, which belong on a model and are none: a file of them, or a run's folder."""
    file = Path(source.weights)
    if source.kind == "dir" and not has_config(Path(source.name)):
        file = Path(source.name) / PROMPTS_NAME
    if source.kind in ("file", "dir") and METADATA in read_metadata(file):
        raise ModelError(
            f"{file} holds learned prompts and no weights: name the model that they were learned on, and the file with"
            " `prompts` where it is scored."
        )


def bring_here(source: ModelSource) -> ModelSource:
    """The same with a file or adapter of the hub in the hub's cache.

    Raises:
        ModelError: when it is neither there nor to be had.
    """
    if not source.weights.startswith(HUB_PREFIX):
        return source
    with hub_access():
        fetch = fetch_adapter if source.kind == "adapter" else fetch_file
        return replace(source, weights=str(fetch(source.weights)))


def _detect_adapter(source: ModelSource, folder: Path) -> Detected:
    """An adapter is merged into the model named, or into the one that its config names."""
    adapter = read_adapter(folder)
    named = source.base or _named_base(folder, adapter.config.base)
    base, notes = _detect_base(replace(source, name=""), named)
    if source.base is None:
        notes = (f"base: {base.spec}, as its {ADAPTER_CONFIG} says", *notes)
    return Detected(replace(source, kind="adapter", base=base), notes=notes, adapter=adapter)


def _named_base(folder: Path, name: str) -> ModelSource:
    """The `base_model_name_or_path` of an adapter: a folder, there or from here, or a repository of the hub."""
    path = next((path for path in (folder / name, Path(name).expanduser()) if name and path.is_dir()), None)
    if path is not None:
        return parse_source(f"{DIR_PREFIX}{path}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return parse_source(f"{HUB_PREFIX}{name}")
    known = f"{name!r}, which is neither a folder here nor a name of the hub" if name else "no base model"
    raise ModelError(
        f"{folder} is an adapter (LoRA), and its {ADAPTER_CONFIG} names {known}: name the model it was trained on, as"
        f" in {folder}@ViT-B-32-quickgelu:openai."
    )


def _detect_tower(source: ModelSource, file: WeightFile) -> Detected:
    """An image tower has the text tower of its base: the one named, or OpenAI's where the layout implies that."""
    contents = file.contents
    if source.base is not None:
        base, notes = _detect_base(source, source.base)
        return Detected(replace(source, base=base), file, notes)
    candidates = [source.name] if source.name else find_architectures(file)
    openai = openai_twin(candidates)
    if openai is None or not contents.openai_base:
        example = f"{openai}:openai" if openai else f"{candidates[0] if candidates else 'ARCH'}:TAG"
        raise ModelError(
            f"{file.path} holds an image tower alone ({contents.format}{describe_shapes(candidates)}): name the model"
            f" it was tuned from, whose text tower goes with it, as in `base={example}`."
        )
    base = parse_source(f"{openai}:openai")
    why = f"base detected: {base.spec}, because only OpenAI's models are tuned by code that saves this layout"
    return Detected(replace(source, base=base), file, (why,))


def _detect_base(source: ModelSource, base: ModelSource) -> tuple[ModelSource, tuple[str, ...]]:
    try:
        found = detect(base)
    except ModelError as error:
        raise ModelError(f"The base of {source.weights}: {error}") from error
    base, notes = found.source, found.notes
    if found.adapter is not None:
        raise ModelError(f"The base {base.spec} is an adapter, too: merge it first (`clipguard convert`).")
    if base.base is not None:
        raise ModelError(f"The base {base.spec} is an image tower alone: name a whole model.")
    if source.name and source.name != base.name:
        raise ModelError(f"{source.spec}: {source.name} and the base {base.spec} differ; leave out {source.name}:.")
    return base, tuple(f"base: {note}" for note in notes)
