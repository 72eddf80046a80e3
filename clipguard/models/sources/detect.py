"""What a lone weight file tells that its name leaves open: its architecture, and for an image tower its base model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.architecture import describe_shapes, find_architectures, openai_twin, settle_activation
from clipguard.models.checkpoint.contents import explain_adapter
from clipguard.models.checkpoint.reader import WeightFile, read_weights
from clipguard.models.sources.locate import config_folder
from clipguard.models.sources.spec import ModelSource, parse_source


class Detected(NamedTuple):
    """A source that leaves nothing open."""

    source: ModelSource  # with the architecture or the base that its file tells filled in
    file: WeightFile | None = None  # what was read, if the source is a lone weight file
    notes: tuple[str, ...] = ()  # what was detected

    @property
    def tower(self) -> WeightFile | None:
        """The file, if it holds an image tower alone, which is put into `source.base`."""
        return None if self.source.base is None else self.file


def detect(source: ModelSource) -> Detected:
    """Read a lone weight file, and fill in what the source leaves open: architecture, base model.

    Other sources leave nothing open, and nothing of them is read.

    Raises:
        ModelError: when the file leaves open what must not be guessed; says how to name it.
    """
    if source.kind != "file":
        return Detected(source)
    file = read_weights(Path(source.weights), source.entry)
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
        base, _, notes = detect(base)
    except ModelError as error:
        raise ModelError(f"The base of {source.weights}: {error}") from error
    if base.base is not None:
        raise ModelError(f"The base {base.spec} is an image tower alone: name a whole model.")
    if source.name and source.name != base.name:
        raise ModelError(f"{source.spec}: {source.name} and the base {base.spec} differ; leave out {source.name}:.")
    return base, tuple(f"base: {note}" for note in notes)
