"""`load_model`: from what the user typed to a model that is frozen, checked and described."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Resize
from torchvision.transforms.functional import to_tensor

from clipguard.core.checking import check_type
from clipguard.core.device import check_device
from clipguard.core.errors import ModelError
from clipguard.core.hub_access import hub_access
from clipguard.core.quiet_libraries import quiet
from clipguard.models.build import Checkpoint, build, load_tokenizer, load_tower, load_weights
from clipguard.models.checkpoint.reader import WeightFile, hash_file
from clipguard.models.classifier import Preprocessing, Resolution, ZeroShotClassifier, cut_centre
from clipguard.models.locate import detect, locate, locate_base, needs_hub
from clipguard.models.source import ModelSource, parse_source
from clipguard.models.text.encoding import Tokenizer, encode_classes
from clipguard.models.text.tuned import ORIGINAL_FILE, TEXT_FILE, TextChoice, TextMap, read_text_map, restore_original

RELATED = 0.5  # cosine of weights; fine-tuning moves them little
log = logging.getLogger("clipguard")


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded, as detected and not as guessed: printed, and stored with every result."""

    name: str  # as the user typed it
    architecture: str  # open_clip's name, or the config file it came from
    weights: str  # file, hub file or tag
    sha256: str  # of the weight file
    activation: str  # "QuickGELU" or "GELU" (for ModifiedResNet: of the text tower), or the timm tower's name
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: tuple[int, int]  # (H, W)
    interpolation: str
    resize_mode: str
    parameters: int
    image_parameters: int
    logit_scale: float  # the factor on the cosine, after exp
    logit_bias: float | None
    text: str = "as in the weights"  # or tuned or original, by which file beside them
    text_sha256: str | None = None  # of that file
    format: str = "open_clip checkpoint"  # how the weights are laid out in their file
    base: str | None = None  # the model whose text tower goes with an image tower, as named or detected
    base_sha256: str | None = None
    base_cosine: float | None = None  # of the image tower's weights and the base's; near 1 if tuned from it
    detected: tuple[str, ...] = ()  # what was detected where the user named nothing, and what was left out

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class LoadedModel:
    """A checkpoint in memory: float32, eval mode, every parameter frozen.

    Attributes:
        info: where it came from and what it is.
        model: the open_clip model itself (`encode_image`, `encode_text`, `visual`, `logit_scale`).
        tokenizer: open_clip's tokenizer for it.
        preprocessing: its normalisation, size and resize mode.
        text_map: tuned text that the text tower does not hold, if any; applied by `classifier` and `text_features`.
        model_cfg: open_clip's config of the architecture.
        device: where it lives.
    """

    def __init__(
        self,
        info: ModelInfo,
        model: nn.Module,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        model_cfg: dict[str, Any],
        text_map: TextMap | None = None,
    ) -> None:
        self.info = info
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.model_cfg = model_cfg
        self.text_map = text_map
        self.device = torch.device("cpu")
        self._text: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    @cached_property
    def tower_sha256(self) -> str:
        """SHA-256 of the image tower as loaded: names, shapes, types and values of its tensors, from whatever file."""
        digest = hashlib.sha256()
        tensors: dict[str, Tensor] = self.model.visual.state_dict()  # type: ignore[union-attr]
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def preprocess(self, resolution: Resolution = "model") -> Callable[[Image.Image], Tensor]:
        """A picklable function from a PIL image to pixels (3, H, W), float32 in [0,1].

        "model" is open_clip's own evaluation transform without its normalisation; "native" keeps the image's size.
        """
        if resolution == "native":
            return to_native_pixels
        p = self.preprocessing
        if p.cuts:
            return CutPixels(p)
        from open_clip.transform import PreprocessCfg, image_transform_v2

        config = PreprocessCfg(p.image_size, "RGB", p.mean, p.std, p.interpolation, p.resize_mode, p.fill_color)
        return Compose(image_transform_v2(config, is_train=False).transforms[:-1])  # type: ignore[no-any-return]

    def classifier(
        self,
        class_names: Sequence[str],
        templates: Sequence[str],
        resolution: Resolution = "model",
        *,
        duplicates: bool = False,
    ) -> ZeroShotClassifier:
        """A classifier over `class_names`; see `ZeroShotClassifier`. Text is encoded once per (names, templates).

        duplicates: allow names that differ and have the same tokens.

        Raises:
            ModelError: when there are no names or templates, a template has no `{}`, two different names have the same
                tokens, or the model's tuned text is a table without one of the names.
        """
        text = self.text_features(class_names, templates, duplicates=duplicates)
        return ZeroShotClassifier(self.model, text, self.preprocessing, resolution)

    def text_features(
        self, class_names: Sequence[str], templates: Sequence[str], *, duplicates: bool = False
    ) -> Tensor:
        """The class-text matrix (D, C), float32, columns of unit length; cached on this object."""
        key = (tuple(class_names), tuple(templates))
        if key not in self._text:
            self._text[key] = encode_classes(
                self.model, self.tokenizer, class_names, templates, self.device, self.text_map, duplicates=duplicates
            )
        return self._text[key]

    def to(self, device: str | torch.device) -> LoadedModel:
        """Move model and cached text to `device`, in place; classifiers made earlier must be made again.

        Raises:
            ModelError: when the device does not exist here.
        """
        self.device = check_device(device)
        self.model.to(self.device)
        if self.text_map is not None:
            self.text_map.to(self.device)
        self._text = {key: text.to(self.device) for key, text in self._text.items()}
        return self


def load_model(spec: str | Path, *, device: str | torch.device = "cpu", text: TextChoice = "tuned") -> LoadedModel:
    """Load a model named as on the command line.

    Args:
        spec: `tiny`, `ARCH:TAG`, `path/to/weights.pt`, `ARCH:path/to/weights.pt`, `hf-hub:org/repo`, `local-dir:path`
            or the short name of a published model; `FILE@BASE` for an image tower and the model it was tuned from;
            `#normalization=...` and `#entry=...` at the end. See docs/checkpoints.md.
        device: a torch device.
        text: "original" scores a model whose text clipguard tuned with the text it had before; see `text_map.py`.

    Raises:
        ModelError: one line that says what is wrong with the name, the files or the weights, and the cure.
    """
    check_type("A model's name", spec, str | Path, ModelError)
    check_type("text", text, TextChoice, ModelError)
    target = check_device(device)
    source, file, detected = detect(parse_source(str(spec)))
    with hub_access() if needs_hub(source) else nullcontext():
        whole = locate(source, file) if source.base is None or file is None else locate_base(source.base, file.path)
        if source.normalization is not None:
            whole = replace(whole, preprocess_cfg={**whole.preprocess_cfg, **source.normalization._asdict()})
        with quiet():
            model = build(whole)
            tokenizer = load_tokenizer(whole)
            sha256, left_out = load_weights(model, whole)
            cosine = load_tower(model, file, whole) if source.base is not None and file is not None else None
    preprocessing = _preprocessing(model, whole.preprocess_cfg)
    info = _describe(source, whole, sha256, model, preprocessing)
    info = replace(info, detected=detected + whole.notes + left_out)
    if file is not None:
        info = _describe_file(info, source, file, cosine)
    info, text_map = _load_text(info, whole, model, text)
    return LoadedModel(info, model, tokenizer, preprocessing, whole.model_cfg, text_map).to(target)


def _describe_file(info: ModelInfo, source: ModelSource, file: WeightFile, cosine: float | None) -> ModelInfo:
    """The info with what is known of a lone weight file; for an image tower it says at first what the base is."""
    info = replace(info, format=file.contents.format)
    if source.base is None or cosine is None:
        return info
    if cosine < RELATED:
        log.warning(
            "%s: its image tower has little in common with that of %s (cosine of the weights %.2f): was it tuned from"
            " another model? If so, name that with --base",
            source.spec,
            source.base.spec,
            cosine,
        )
    return replace(
        info,
        weights=f"{file.path} (image tower), {info.weights} (the rest)",
        sha256=file.sha256,
        base=source.base.spec,
        base_sha256=info.sha256,
        base_cosine=round(cosine, 4),
        detected=info.detected + file.contents.notes,
    )


def _load_text(
    info: ModelInfo, checkpoint: Checkpoint, model: nn.Module, text: TextChoice
) -> tuple[ModelInfo, TextMap | None]:
    """Apply what a fine-tuning run left about the text beside the weights, and say so in the info."""
    tuned, original = (checkpoint.weights.parent / name for name in (TEXT_FILE, ORIGINAL_FILE))
    if text == "original":
        if original.is_file():
            restore_original(model, original)
            return replace(info, text=f"original, from {original.name}", text_sha256=hash_file(original)), None
        if tuned.is_file():
            return replace(info, text=f"original, without {tuned.name}"), None
        raise ModelError(f"{info.name} has no original text beside its own: clipguard did not tune its text.")
    if not tuned.is_file():
        return (replace(info, text="tuned, in the weights") if original.is_file() else info), None
    text_map = read_text_map(tuned, checkpoint.model_cfg["embed_dim"])
    return replace(
        info, text=f"tuned, by the {text_map.kind} map in {tuned.name}", text_sha256=hash_file(tuned)
    ), text_map


@dataclass(frozen=True)
class CutPixels:
    """An image as pixels (3, H, W) in [0,1], resized (or not) and its centre cut out, as transformers does it."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        p, image = self.preprocessing, image.convert("RGB")
        if p.resize_size is not None:
            edge = p.resize_size[0] if p.resize_mode == "shortest" else list(p.resize_size)
            image = Resize(edge, interpolation=InterpolationMode(p.interpolation))(image)
        return cut_centre(to_native_pixels(image), p.image_size)


def to_native_pixels(image: Image.Image) -> Tensor:
    """An image at its own size as RGB pixels (3, H, W), float32 in [0,1]."""
    pixels: Tensor = to_tensor(image.convert("RGB"))
    return pixels


def _preprocessing(model: nn.Module, given: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing open_clip attached to the model, spelled out, and what it leaves out of the given one."""
    resize_size = given.get("resize_size")
    config: dict[str, Any] = model.visual.preprocess_cfg  # type: ignore[union-attr,assignment]
    size = config["size"]
    return Preprocessing(
        image_size=(int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1])),
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
        # open_clip evaluates "random" (a training setting) as bicubic.
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        resize_mode=config["resize_mode"],
        fill_color=int(config["fill_color"]),
        resize_size=None if resize_size is None else (resize_size[0], resize_size[1]),
    )


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    return float(value[0]), float(value[1]), float(value[2])


def _describe_resize(p: Preprocessing) -> str:
    if p.resize_size is None:
        return p.resize_mode
    height, width = p.resize_size
    return f"{p.resize_mode} to {height if p.resize_mode == 'shortest' else f'{height}x{width}'}, then the centre"


def _describe(
    source: ModelSource, checkpoint: Checkpoint, sha256: str, model: nn.Module, preprocessing: Preprocessing
) -> ModelInfo:
    own = "QuickGELU" if checkpoint.model_cfg.get("quick_gelu", False) else "GELU"
    bias = getattr(model, "logit_bias", None)
    visual = model.visual
    assert isinstance(visual, nn.Module)
    return ModelInfo(
        name=source.spec,
        architecture=checkpoint.architecture,
        weights=checkpoint.label,
        sha256=sha256,
        activation=str(checkpoint.model_cfg["vision_cfg"].get("timm_model_name") or own),
        mean=preprocessing.mean,
        std=preprocessing.std,
        image_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        resize_mode=_describe_resize(preprocessing),
        parameters=sum(p.numel() for p in model.parameters()),
        image_parameters=sum(p.numel() for p in visual.parameters()),
        logit_scale=float(model.logit_scale.detach().exp()),  # type: ignore[operator]
        logit_bias=None if bias is None else float(bias.detach()),
        format="open_clip checkpoint" if checkpoint.tokenizer_name else "Hugging Face CLIPModel",
    )
