"""From a name to config and weights on this machine: detect what a file leaves open, fetch what is not here."""

from __future__ import annotations

import importlib.resources
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipguard.core.errors import ModelError
from clipguard.core.notices import notice
from clipguard.models.build import Checkpoint
from clipguard.models.checkpoint.architecture import describe_shapes, find_architectures, openai_twin, settle_activation
from clipguard.models.checkpoint.config import CONFIG_NAME, PREPROCESS_KEYS, find_weights, read_config
from clipguard.models.checkpoint.image_processor import read_image_processor
from clipguard.models.checkpoint.layouts import ADAPTER_CONFIG, explain_adapter
from clipguard.models.checkpoint.reader import WeightFile, read_weights
from clipguard.models.checkpoint.transformers import CONFIG_NAME as TRANSFORMERS_CONFIG
from clipguard.models.checkpoint.transformers import read_transformers_config
from clipguard.models.download import fetch_repository, fetch_tag
from clipguard.models.published import find_repository
from clipguard.models.source import ModelSource, parse_source


def detect(source: ModelSource) -> tuple[ModelSource, WeightFile | None, tuple[str, ...]]:
    """The same source with what its file tells (architecture, base model) filled in, the file, and what was detected.

    Sources that are no lone weight file come back as they are.

    Raises:
        ModelError: when the file leaves open what must not be guessed; says how to name it.
    """
    if source.kind != "file":
        return source, None, ()
    file = read_weights(Path(source.weights), source.entry)
    if file.contents.adapter:
        raise ModelError(explain_adapter(file.path))
    if file.contents.image_only:
        return _detect_tower(source, file)
    if source.base is not None:
        raise ModelError(f"{file.path} holds image and text tower, so there is no base to name: leave out"
                         f" {source.base.spec}.")  # fmt: skip
    if source.name:
        return source, file, ()
    try:
        architecture, why = settle_activation(file, find_architectures(file))
    except ModelError as error:
        folder = config_folder(file.path)
        if folder is None:
            raise
        raise ModelError(
            f"{error} Or give local-dir:{folder}: the config there says what these weights are."
        ) from error
    return replace(source, name=architecture), file, (f"architecture detected: {architecture}, {why}",)


def _detect_tower(source: ModelSource, file: WeightFile) -> tuple[ModelSource, WeightFile, tuple[str, ...]]:
    """An image tower has the text tower of its base: the one named, or OpenAI's where the layout implies that."""
    contents = file.contents
    if source.base is not None:
        base, notes = _detect_base(source, source.base)
        return replace(source, base=base), file, notes
    found = [source.name] if source.name else find_architectures(file)
    openai = openai_twin(found) if contents.openai_base else None
    if openai is None:
        example = openai_twin(found) or (found[0] if found else "ARCH")
        tag = "openai" if openai_twin(found) else "TAG"
        raise ModelError(
            f"{file.path} holds an image tower alone ({contents.format}{describe_shapes(found)}): name the model it was"
            f" tuned from, whose text tower goes with it, as in --base {example}:{tag}."
        )
    base = parse_source(f"{openai}:openai")
    why = f"base detected: {base.spec}, because only OpenAI's models are tuned by code that saves this layout"
    return replace(source, base=base), file, (why,)


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


def needs_hub(source: ModelSource) -> bool:
    """Whether weights, config, tokenizer or text tower come from the hub or its cache."""
    if source.base is not None:
        return needs_hub(source.base)
    if source.kind in ("hub", "tag"):
        return True
    if source.kind == "tiny":
        return False
    if source.kind == "dir":
        config, _ = _read_folder(Path(source.name))
        return bool(config["text_cfg"].get("hf_model_name"))
    import open_clip

    text = open_clip.get_model_config(source.name)["text_cfg"]
    return bool(text.get("hf_model_name") or text.get("hf_tokenizer_name")) or "siglip" in source.name.lower()


def locate(source: ModelSource, file: WeightFile | None = None) -> Checkpoint:
    """Find (for hub and tag: fetch) the config and the weight file of a whole model, a detected one.

    Raises:
        ModelError: when they are not to be had or do not describe a model.
    """
    if source.kind == "hub":
        config, weights = fetch_repository(source.name)
        label = f"hf-hub:{source.name}@{weights.parent.name}/{weights.name}"
        checkpoint = _folder_checkpoint(config.parent, weights, f"hf-hub:{source.name}", label)
        return _state_activation(checkpoint, source.name)
    if source.kind in ("dir", "tiny"):
        folder = Path(source.name) if source.kind == "dir" else _tiny_folder()
        _read_folder(folder)  # its absence explains more than the absence of weights
        weights = find_weights(folder)
        label = weights.name if source.kind == "tiny" else str(weights)
        return _folder_checkpoint(folder, weights, f"local-dir:{folder}", label)
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    model_cfg = open_clip.get_model_config(source.name)
    if source.kind == "file":
        path = Path(source.weights)
        return Checkpoint(source.name, source.name, model_cfg, {}, path, source.weights, file=file)
    tag = get_pretrained_cfg(source.name, source.weights)
    weights = fetch_tag(f"{source.name}:{source.weights}", tag)
    label = f"{source.weights} ({tag.get('hf_hub') or tag.get('url')})"
    return Checkpoint(source.name, source.name, model_cfg, tag, weights, label, from_tag=True)


def locate_base(base: ModelSource, path: Path) -> Checkpoint:
    """The base of the image tower at `path`, whole; see `locate`."""
    try:
        return locate(base)
    except ModelError as error:
        cure = "(Another base: --base ARCH:FILE or --base local-dir:FOLDER.)"
        raise ModelError(f"The base of {path}: {error} {cure}") from error


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Model config of a folder in open_clip's layout with its preprocessing's, or in transformers', without."""
    if not (folder / CONFIG_NAME).is_file() and (folder / TRANSFORMERS_CONFIG).is_file():
        return read_transformers_config(folder), None
    if not (folder / CONFIG_NAME).is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(explain_adapter(folder / "adapter_model.safetensors"))
    return read_config(folder / CONFIG_NAME)


def config_folder(path: Path) -> Path | None:
    """The folder of a weight file if it is a whole model's: with a config beside, and this as its weights."""
    folder = path.parent
    try:
        if _has_config(folder) and find_weights(folder).resolve() == path.resolve():
            return folder
    except ModelError:  # a config of something else, or several weight files
        return None
    return None


def _has_config(folder: Path) -> bool:
    """Whether a config that can be read is there."""
    there = any((folder / name).is_file() for name in (CONFIG_NAME, TRANSFORMERS_CONFIG))
    return there and bool(_read_folder(folder))


def _folder_checkpoint(folder: Path, weights: Path, tokenizer: str, label: str) -> Checkpoint:
    model_cfg, preprocess = _read_folder(folder)
    place = tokenizer.removeprefix("local-dir:")
    if preprocess is None:
        where = f"{TRANSFORMERS_CONFIG} of {place}"
        preprocess, notes = read_image_processor(folder, model_cfg["vision_cfg"]["image_size"])
        return Checkpoint(where, "", model_cfg, preprocess, weights, label, from_folder=True, notes=notes)
    unknown = sorted(set(preprocess) - PREPROCESS_KEYS)
    if unknown:
        notice("skipped", f"{folder / CONFIG_NAME}: not used of preprocess_cfg, as in open_clip: {', '.join(unknown)}")
    return Checkpoint(f"{CONFIG_NAME} of {place}", tokenizer, model_cfg, preprocess, weights, label, from_folder=True)


def _state_activation(checkpoint: Checkpoint, repository: str) -> Checkpoint:
    """Published robust models tuned from OpenAI's have QuickGELU, even if their config does not say so."""
    published = find_repository(repository)
    if published is None or not published.quick_gelu or "quick_gelu" in checkpoint.model_cfg:
        return checkpoint
    note = f"activation: QuickGELU, because {published.name} was tuned from OpenAI's weights; its config does not say"
    return replace(checkpoint, model_cfg={**checkpoint.model_cfg, "quick_gelu": True}, notes=(*checkpoint.notes, note))


def _tiny_folder() -> Path:
    folder = Path(str(importlib.resources.files("clipguard") / "assets" / "models" / "tiny"))
    if not folder.is_dir():
        raise ModelError("This installation lacks the embedded model 'tiny': reinstall clipguard.")
    return folder
