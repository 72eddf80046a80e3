"""What transformers' image processor of a model folder does to an image, as open_clip's `preprocess_cfg`, and back.

transformers 4 writes `preprocessor_config.json`, transformers 5 `processor_config.json` with the same under
"image_processor". A key that is missing has the default of its processor's class; so has one that is null, but for
`do_...`, where null is false. What changes pixels is honoured or refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipguard.core.errors import ModelError
from clipguard.core.notices import notice
from clipguard.models.checkpoint.foreign import read_json
from clipguard.models.normalization import NORMALIZATIONS
from clipguard.models.preprocessing import Preprocessing

PREPROCESSOR_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"
RESCALE_FACTOR = 1 / 255
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN_STD = {"image_mean": NORMALIZATIONS["clip"].mean, "image_std": NORMALIZATIONS["clip"].std}
_COMMON_DEFAULTS = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": RESCALE_FACTOR,
    "do_normalize": True,
    "do_pad": False,
    "resample": 3,
}
_CLIP_DEFAULTS = {
    **_COMMON_DEFAULTS,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    **_CLIP_MEAN_STD,
}
_HALF_DEFAULTS = {**_COMMON_DEFAULTS, "size": {"height": 224, "width": 224}, "image_mean": _HALF, "image_std": _HALF}
DEFAULTS: dict[str, dict[str, Any]] = {  # by class, without its ending: FeatureExtractor, ImageProcessor[Fast|Pil]
    "CLIP": _CLIP_DEFAULTS,
    "ChineseCLIP": _CLIP_DEFAULTS,
    "Bit": _CLIP_DEFAULTS,
    "Blip": {**_COMMON_DEFAULTS, "size": {"height": 384, "width": 384}, **_CLIP_MEAN_STD},
    "Siglip": _HALF_DEFAULTS,
    "ViT": {**_HALF_DEFAULTS, "resample": 2},
    "DeiT": {
        **_HALF_DEFAULTS,
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
# Without effect on the pixels of an RGB image.
_NO_EFFECT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "_valid_processor_keys",
    "do_convert_rgb", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping",
    "image_seq_length", "default_to_square", "pad_size", "_name_or_path", "transformers_version",
}  # fmt: skip


def read_image_processor(folder: Path, image_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The `preprocess_cfg` of a transformers folder whose model takes images of `image_size`, and what was assumed.

    Beside open_clip's keys it may have `resize_size`, and `resize_mode` "none"; see `Preprocessing`.

    Raises:
        ModelError: naming a key whose value clipguard's preprocessing cannot be.
    """
    path, config = _read_settings(folder)
    if config is None:
        text = (
            f"{folder} has no {PREPROCESSOR_NAME}: assumed CLIP's own, resized to {image_size} pixels (bicubic) and"
            " CLIP's mean and standard deviation; if it was trained with others, put that file there"
        )
        notice("guessed", text)
        return {}, (text,)
    values, sized = _complete(path, config, image_size)
    unknown = sorted(set(config) - set(values) - _NO_EFFECT)
    if unknown:
        notice("skipped", f"{path}: not used, as in transformers: {', '.join(unknown)}")
    for key in (key for key in values if key.startswith("do_")):
        if not isinstance(values[key], bool):
            raise _refusal(path, key, values[key], "true or false")
    _check_pad(path, config, values, image_size)
    return {**_resizing(path, values, image_size), **_normalization(path, values)}, sized


def _read_settings(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The image processor's settings and their file. As in transformers, those inside the processor's go first."""
    outer, inner = folder / PROCESSOR_NAME, folder / PREPROCESSOR_NAME
    nested = read_json(outer).get("image_processor") if outer.is_file() else None
    plain = read_json(inner) if inner.is_file() else None
    if nested is None:
        return inner, plain
    if not isinstance(nested, dict):
        raise ModelError(f'{outer}: "image_processor" is no object: save the processor again.')
    if plain is not None and any(plain[key] != nested[key] for key in plain.keys() & nested.keys() - _NO_EFFECT):
        notice("guessed", f"{outer} and {inner.name} differ: used the first, as transformers 5 does")
    return outer, nested


def _complete(path: Path, config: Mapping[str, Any], image_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """All settings, with the defaults of the class for what is missing, and what was assumed beyond them."""
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor")
    family = name.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor")
    family = family.removesuffix("FeatureExtractor")
    if family not in DEFAULTS:
        raise ModelError(
            f"{path} is of {name}, and clipguard knows {', '.join(DEFAULTS)} only: if what it does is one of these's,"
            ' write that as "image_processor_type", as in CLIPImageProcessor.'
        )
    stated = {key: False if value is None and key.startswith("do_") else value for key, value in config.items()}
    stated = {key: value for key, value in stated.items() if value is not None}
    defaults = DEFAULTS[family]
    values = {key: stated.get(key, value) for key, value in {"crop_size": None, **defaults}.items()}
    if _is_size(values["size"]) and "shortest_edge" in defaults["size"]:
        values["size"] = {"shortest_edge": values["size"]}
    assumed: tuple[str, ...] = ()
    if not {"size", "crop_size"} & stated.keys() and (values["crop_size"] or values["size"]) != _square(image_size):
        # transformers cannot run that; the model's size is meant.
        square = "shortest_edge" not in values["size"]
        values["size"] = _square(image_size) if square else {"shortest_edge": image_size}
        values["crop_size"] = _square(image_size)
        assumed = (f"{path} has no size and crop_size: assumed the model's {image_size} pixels",)
        notice("guessed", assumed[0])
    return values, assumed


def _square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def _check_pad(path: Path, config: Mapping[str, Any], values: Mapping[str, Any], image_size: int) -> None:
    """Padding comes last: nothing is left to pad if it pads to the size that images have then."""
    pad = config.get("pad_size")
    if values["do_pad"] and pad is not None and _height_width(path, "pad_size", pad) != (image_size, image_size):
        raise _refusal(path, "pad_size", pad, f"the model's {image_size}, or do_pad false")


def _resizing(path: Path, values: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """`resize_mode`, `resize_size` and `interpolation`, of what ends with images of `image_size`."""
    model = (image_size, image_size)
    if values["do_center_crop"] and _height_width(path, "crop_size", values["crop_size"]) != model:
        raise _refusal(
            path, "crop_size", values["crop_size"], f"the {image_size} of the model (image_size in config.json)"
        )
    if not values["do_resize"]:
        if not values["do_center_crop"]:
            raise ModelError(
                f"{path}: with do_resize and do_center_crop false images keep their own sizes, and the model takes"
                f" {image_size}x{image_size}: set one of them to true."
            )
        return {"resize_mode": "none"}
    interpolation = {"interpolation": _interpolation(path, values["resample"])}
    mode, size = _size(path, values["size"])
    if not values["do_center_crop"]:
        if mode == "shortest" or size != model:
            need = f'{{"height": {image_size}, "width": {image_size}}}, or do_center_crop true'
            raise _refusal(path, "size", values["size"], f"without a centre crop, {need}")
        return {"resize_mode": "squash", **interpolation}
    return {"resize_mode": mode, **interpolation, **({} if size == model else {"resize_size": size})}


def _size(path: Path, size: Any) -> tuple[str, tuple[int, int]]:
    """How images are resized, and to which (H, W); for the shortest edge both are that."""
    if isinstance(size, dict):
        size = {key: value for key, value in size.items() if value is not None}
    if isinstance(size, dict) and size.keys() == {"shortest_edge"} and _is_size(size["shortest_edge"]):
        return "shortest", (size["shortest_edge"],) * 2
    if isinstance(size, (dict, list)):
        return "squash", _height_width(path, "size", size)
    raise _refusal(path, "size", size, '{"shortest_edge": N} or {"height": N, "width": N}')


def _height_width(path: Path, key: str, value: Any) -> tuple[int, int]:
    """(H, W) of a size as transformers writes it: a number, two, or an object."""
    if _is_size(value):
        return value, value
    edges, others = value, set[str]()
    if isinstance(value, dict):
        edges = [value.get("height"), value.get("width")]
        others = {name for name, number in value.items() if number is not None} - {"height", "width"}
    if not isinstance(edges, list) or len(edges) != 2 or not all(map(_is_size, edges)) or others:
        raise _refusal(path, key, value, '{"height": N, "width": N}')
    return edges[0], edges[1]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _interpolation(path: Path, resample: Any) -> str:
    name = str(resample).rpartition(".")[2].lower()
    known = _RESAMPLE.get(resample) if isinstance(resample, int) else name if name in _RESAMPLE.values() else None
    if known is None:
        raise _refusal(path, "resample", resample, "2 (bilinear) or 3 (bicubic)")
    return known


def _normalization(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation for pixels in [0,1] of what is done to those in 0..255."""
    factor = values["rescale_factor"] if values["do_rescale"] else 1.0
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise _refusal(path, "rescale_factor", factor, "a number above 0")
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if values["do_normalize"]:
        mean = _triple(path, "image_mean", values["image_mean"], -math.inf)
        std = _triple(path, "image_std", values["image_std"], 0.0)
    scale = 1.0 if math.isclose(factor, RESCALE_FACTOR, rel_tol=1e-9) else 255 * factor
    return {"mean": [value / scale for value in mean], "std": [value / scale for value in std]}


def _triple(path: Path, key: str, value: Any, low: float) -> tuple[float, ...]:
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and low < v < math.inf for v in values)
    if not good or len(values) != 3:
        raise _refusal(path, key, value, f"three numbers{' above 0' if low == 0 else ''}")
    return tuple(values)


def _refusal(path: Path, key: str, value: Any, need: str) -> ModelError:
    return ModelError(f"{path}: {key} {json.dumps(value)} is not supported: it must be {need}.")


def write_image_processor(p: Preprocessing) -> dict[str, Any]:
    """The `preprocessor_config.json` of a preprocessing, for transformers' `CLIPImageProcessor`.

    Raises:
        ModelError: for what transformers has no setting for.
    """
    if p.resize_mode == "longest":
        raise ModelError(
            "Resizing the longest edge and padding has no counterpart in transformers' CLIPImageProcessor: convert it"
            " without `to=hf`."
        )
    height, width = p.resize_size or p.image_size
    edge = {"shortest_edge": height}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": p.resize_mode != "none",
        "size": edge if p.resize_mode == "shortest" else {"height": height, "width": width},
        "resample": 2 if p.interpolation == "bilinear" else 3,
        "do_center_crop": True,
        "crop_size": {"height": p.image_size[0], "width": p.image_size[1]},
        "do_rescale": True,
        "rescale_factor": RESCALE_FACTOR,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
        "do_convert_rgb": True,
    }
