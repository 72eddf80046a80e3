"""Config and weights of a whole model on this machine: where they lie, or fetched to there."""

from __future__ import annotations

import importlib.resources
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipguard.core.errors import ModelError
from clipguard.core.notices import notice
from clipguard.models.build import Checkpoint
from clipguard.models.checkpoint.config import CONFIG_NAME, PREPROCESS_KEYS, find_weights, read_config
from clipguard.models.checkpoint.image_processor import read_image_processor
from clipguard.models.checkpoint.reader import WeightFile
from clipguard.models.checkpoint.transformers import CONFIG_NAME as TRANSFORMERS_CONFIG
from clipguard.models.checkpoint.transformers import read_transformers_config
from clipguard.models.sources.download import fetch_repository, fetch_tag
from clipguard.models.sources.open_clip_catalog import tag_config
from clipguard.models.sources.published import find_repository
from clipguard.models.sources.spec import ModelSource
from clipguard.models.sources.vocabulary import with_vocabulary


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
    """Find (for hub and tag: fetch) the config and the weight file of a whole model.

    Args:
        source: where from; of a lone weight file, with the architecture that `detect` filled in.
        file: what was read of that weight file, if it was.

    Raises:
        ModelError: when they are not to be had or do not describe a model.
    """
    if source.kind == "hub":
        return _locate_repository(source.name)
    if source.kind == "tag":
        return _locate_tag(source.name, source.weights)
    if source.kind == "file":
        import open_clip

        model_cfg = open_clip.get_model_config(source.name)
        return Checkpoint(source.name, source.name, model_cfg, {}, Path(source.weights), source.weights, file=file)
    folder = Path(source.name) if source.kind == "dir" else _tiny_folder()
    _read_folder(folder)  # its absence explains more than the absence of weights
    weights = find_weights(folder)
    label = weights.name if source.kind == "tiny" else str(weights)
    return _folder_checkpoint(folder, weights, f"local-dir:{folder}", label)


def _locate_repository(repository: str) -> Checkpoint:
    config, weights = fetch_repository(repository)
    label = f"hf-hub:{repository}@{weights.parent.name}/{weights.name}"
    return with_known_activation(_folder_checkpoint(config.parent, weights, f"hf-hub:{repository}", label), repository)


def _locate_tag(architecture: str, tag: str) -> Checkpoint:
    import open_clip

    config = tag_config(architecture, tag)
    weights = fetch_tag(f"{architecture}:{tag}", config)
    label = f"{tag} ({config.get('hf_hub') or config.get('url')})"
    model_cfg = open_clip.get_model_config(architecture)
    return Checkpoint(architecture, architecture, model_cfg, config, weights, label, from_tag=True)


def locate_base(base: ModelSource, path: Path) -> Checkpoint:
    """The base of the image tower at `path`, whole; see `locate`."""
    try:
        return locate(base)
    except ModelError as error:
        cure = "(Another base: `base=ARCH:FILE` or `base=local-dir:FOLDER`.)"
        raise ModelError(f"The base of {path}: {error} {cure}") from error


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Model config of a folder in open_clip's layout with its preprocessing's, or in transformers', without."""
    if not (folder / CONFIG_NAME).is_file() and (folder / TRANSFORMERS_CONFIG).is_file():
        return read_transformers_config(folder), None
    return read_config(folder / CONFIG_NAME)


def config_folder(path: Path) -> Path | None:
    """The folder of a weight file if it is a whole model's: with a config beside, and this as its weights."""
    folder = path if path.is_dir() else path.parent
    try:
        if has_config(folder) and find_weights(folder).resolve() == path.resolve():
            return folder
    except ModelError:  # a config of something else, or several weight files
        return None
    return None


def has_config(folder: Path) -> bool:
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
    where = f"{CONFIG_NAME} of {place}"
    notes = _tell_naflex(model_cfg, folder)
    return with_vocabulary(
        Checkpoint(where, tokenizer, model_cfg, preprocess, weights, label, from_folder=True, notes=notes)
    )


def _tell_naflex(model_cfg: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """What to know of an image tower that could take images of any shape."""
    if "naflex" not in str(model_cfg["vision_cfg"].get("timm_model_name")):
        return ()
    note = "NaFlex image tower: scored on images of one size, as open_clip builds it, not each of its own shape"
    notice("guessed", f"{folder}: {note}")
    return (note,)


def with_known_activation(checkpoint: Checkpoint, repository: str) -> Checkpoint:
    """The checkpoint of a hub repository; if it is a published one tuned from OpenAI's, with their QuickGELU.

    Only where its config does not say what it has: one that does is believed.
    """
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
