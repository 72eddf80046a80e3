"""Read and check the `open_clip_config.json` of a model folder, and find its weight file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.foreign import read_json
from clipguard.models.checkpoint.shards import (
    INDEX_SUFFIX,
    METADATA_NAME,
    PART_SUFFIX,
    explain_shard,
    is_distributed,
    is_index,
    is_shard,
)

CONFIG_NAME = "open_clip_config.json"
# open_clip's own order of preference (open_clip.factory._find_checkpoint_in_dir).
WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
INTERPOLATIONS = ("bicubic", "bilinear", "random")
RESIZE_MODES = ("shortest", "longest", "squash", "none")
# open_clip's PreprocessCfg, and the one that clipguard adds; see `Preprocessing`.
PREPROCESS_KEYS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color", "resize_size"}


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model_cfg` and `preprocess_cfg` of a config file, both checked.

    Raises:
        ModelError: when the file is missing, is not JSON, or lacks or misstates a part.
    """
    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no {CONFIG_NAME}: a model folder needs that file beside its weights; for a lone"
            " weight file write ARCH:path/to/weights.pt."
        )
    config = read_json(path)
    if not isinstance(config.get("model_cfg"), dict):
        raise ModelError(f'{path} has no "model_cfg" object: export the model in open_clip\'s local-dir layout.')
    preprocess = config.get("preprocess_cfg", {})
    if not isinstance(preprocess, dict):
        raise ModelError(f'{path}: "preprocess_cfg" must be an object with mean, std, interpolation and resize_mode.')
    _check_model_config(path, config["model_cfg"])
    check_preprocessing(preprocess, str(path))
    return config["model_cfg"], preprocess


def _check_model_config(path: Path, config: dict[str, Any]) -> None:
    size = config.get("embed_dim")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ModelError(f'{path}: "embed_dim" in model_cfg must be a positive whole number, not {size!r}.')
    if str(config.get("quick_gelu", "")).lower() in ("false", "no", "0") and config["quick_gelu"] not in (False, 0):
        raise ModelError(f'{path}: "quick_gelu" in model_cfg must be true or false, not {config["quick_gelu"]!r}.')
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(config.get(part), dict):
            raise ModelError(f'{path}: model_cfg has no "{part}" object.')


def check_preprocessing(config: dict[str, Any], where: str) -> None:
    """Raise ModelError, naming `where`, unless the given preprocessing keys have values open_clip can use."""
    for key, low in (("mean", -math.inf), ("std", 0.0)):
        value = config.get(key)
        values = [value] * 3 if isinstance(value, (int, float)) else value
        if value is not None and not _three_numbers(values, low):
            raise ModelError(f'{where}: "{key}" must be three numbers{" above 0" if low == 0 else ""}, not {value!r}.')
    for key, allowed in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if config.get(key) is not None and config[key] not in allowed:
            raise ModelError(f'{where}: "{key}" must be one of {", ".join(allowed)}, not {config[key]!r}.')
    fill, resize = config.get("fill_color"), config.get("resize_size")
    if config.get("mode") not in (None, "RGB") or (
        fill is not None and (type(fill) is not int or not 0 <= fill <= 255)
    ):
        raise ModelError(f'{where}: "mode" must be "RGB" and "fill_color" a whole number in 0..255.')
    pair = isinstance(resize, list) and len(resize) == 2 and all(type(edge) is int and edge > 0 for edge in resize)
    if resize is not None and not pair:
        raise ModelError(f'{where}: "resize_size" must be two whole numbers, not {resize!r}.')


def _three_numbers(values: Any, low: float) -> bool:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return False
    return all(isinstance(v, (int, float)) and math.isfinite(v) and v > low for v in values)


def find_weights(folder: Path) -> Path:
    """The weight file of a model folder, or the index of its several, by open_clip's order of preference.

    A folder with a checkpoint of torch.distributed in it is its own weight file.

    Raises:
        ModelError: when there is none, or several of which none has a preferred name.
    """
    for name in WEIGHT_NAMES:
        for path in (folder / name, folder / f"{name}{INDEX_SUFFIX}"):
            if path.is_file():
                return path
    if is_distributed(folder):
        return folder
    files = sorted(path for path in folder.iterdir() if path.is_file())
    others = [path for path in files if path.suffix in (".safetensors", ".bin", ".pth", ".pt")]
    whole = [path for path in files if is_index(path)] + [path for path in others if not is_shard(path)]
    if not whole and others:
        raise ModelError(explain_shard(others[0]))
    if not whole:
        raise ModelError(_explain_no_weights(folder, files))
    if len(whole) > 1:
        names = ", ".join(p.name for p in whole[:5])
        raise ModelError(f"{folder} has several weight files ({names}): name the one to use {WEIGHT_NAMES[0]}.")
    return whole[0]


def _explain_no_weights(folder: Path, files: list[Path]) -> str:
    cure = f"put {WEIGHT_NAMES[0]} beside its config"
    foreign = [path.name for path in files if path.suffix in (".h5", ".msgpack", ".distcp", ".onnx", ".gguf", ".ckpt")]
    if not foreign:
        return f"{folder} has no weight file: {cure}."
    if foreign[0].endswith(PART_SUFFIX):
        return f"{folder} has parts of a checkpoint of torch.distributed without its {METADATA_NAME}: fetch that, too."
    return f"{folder} has no weight file of PyTorch, but {foreign[0]}, which clipguard does not read: {cure}."
