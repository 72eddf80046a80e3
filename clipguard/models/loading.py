"""`load_model`: from what the user typed to a model that is frozen, checked and described."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose
from torchvision.transforms.functional import to_tensor

from clipguard.errors import ModelError
from clipguard.hub import hub_access
from clipguard.models.build import Checkpoint, build, load_tokenizer, load_weights
from clipguard.models.classifier import Preprocessing, Resolution, ZeroShotClassifier
from clipguard.models.config import CONFIG_NAME, find_weights, read_config
from clipguard.models.hub import fetch_repository, fetch_tag
from clipguard.models.quiet import quiet
from clipguard.models.source import ModelSource, parse_source
from clipguard.models.text import Tokenizer, encode_classes
from clipguard.models.text_map import ORIGINAL_FILE, TEXT_FILE, TextChoice, TextMap, read_text_map, restore_original
from clipguard.models.weights import hash_file


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

    def preprocess(self, resolution: Resolution = "model") -> Callable[[Image.Image], Tensor]:
        """A picklable function from a PIL image to pixels (3, H, W), float32 in [0,1].

        "model" is open_clip's own evaluation transform without its normalisation; "native" keeps the image's size.
        """
        if resolution == "native":
            return to_native_pixels
        from open_clip.transform import PreprocessCfg, image_transform_v2

        p = self.preprocessing
        config = PreprocessCfg(p.image_size, "RGB", p.mean, p.std, p.interpolation, p.resize_mode, p.fill_color)
        return Compose(image_transform_v2(config, is_train=False).transforms[:-1])  # type: ignore[no-any-return]

    def classifier(
        self, class_names: Sequence[str], templates: Sequence[str], resolution: Resolution = "model"
    ) -> ZeroShotClassifier:
        """A classifier over `class_names`; see `ZeroShotClassifier`. Text is encoded once per (names, templates).

        Raises:
            ModelError: when there are no names or templates, a template has no `{}`, or the model's tuned text is
                a table without one of the names.
        """
        text = self.text_features(class_names, templates)
        return ZeroShotClassifier(self.model, text, self.preprocessing, resolution)

    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """The class-text matrix (D, C), float32, columns of unit length; cached on this object."""
        key = (tuple(class_names), tuple(templates))
        if key not in self._text:
            self._text[key] = encode_classes(
                self.model, self.tokenizer, class_names, templates, self.device, self.text_map
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


def load_model(spec: str, *, device: str | torch.device = "cpu", text: TextChoice = "tuned") -> LoadedModel:
    """Load a model named as on the command line.

    Args:
        spec: `tiny`, `ARCH:TAG`, `ARCH:path/to/weights.pt`, `hf-hub:org/repo` or `local-dir:path`.
        device: a torch device.
        text: "original" scores a model whose text clipguard tuned with the text it had before; see `text_map.py`.

    Raises:
        ModelError: one line that says what is wrong with the name, the files or the weights, and the cure.
    """
    target = check_device(device)
    source = parse_source(spec)
    with hub_access() if _needs_hub(source) else nullcontext():
        checkpoint = _locate(source)
        with quiet():
            model = build(checkpoint)
            tokenizer = load_tokenizer(checkpoint)
            sha256 = load_weights(model, checkpoint)
    preprocessing = _preprocessing(model)
    info = _describe(source, checkpoint, sha256, model, preprocessing)
    info, text_map = _load_text(info, checkpoint, model, text)
    return LoadedModel(info, model, tokenizer, preprocessing, checkpoint.model_cfg, text_map).to(target)


def _load_text(
    info: ModelInfo, checkpoint: Checkpoint, model: nn.Module, text: TextChoice
) -> tuple[ModelInfo, TextMap | None]:
    """Apply what a fine-tuning run left about the text beside the weights, and say so in the info."""
    if text not in get_args(TextChoice):
        raise ModelError(f"text must be tuned or original, not {text!r}.")
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


def to_native_pixels(image: Image.Image) -> Tensor:
    """An image at its own size as RGB pixels (3, H, W), float32 in [0,1]."""
    pixels: Tensor = to_tensor(image.convert("RGB"))
    return pixels


def check_device(device: str | torch.device) -> torch.device:
    """The torch device of that name, if this machine has it.

    Raises:
        ModelError: when torch cannot put a tensor there.
    """
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except Exception as error:  # unknown name, no driver, no such index: RuntimeError, AssertionError ...
        raise ModelError(f"--device {str(device)!r} cannot be used on this machine: try cpu.") from error
    return target


def _needs_hub(source: ModelSource) -> bool:
    """Whether weights, config, tokenizer or text tower come from the hub or its cache."""
    if source.kind in ("hub", "tag"):
        return True
    if source.kind == "tiny":
        return False
    if source.kind == "dir":
        config, _ = read_config(Path(source.name) / CONFIG_NAME)
        return bool(config["text_cfg"].get("hf_model_name"))
    import open_clip

    text = open_clip.get_model_config(source.name)["text_cfg"]
    return bool(text.get("hf_model_name") or text.get("hf_tokenizer_name")) or "siglip" in source.name.lower()


def _locate(source: ModelSource) -> Checkpoint:
    """Find (for hub and tag: fetch) the config and the weight file."""
    if source.kind == "hub":
        config, weights = fetch_repository(source.name)
        label = f"hf-hub:{source.name}@{weights.parent.name}/{weights.name}"
        return _folder_checkpoint(config.parent, weights, f"hf-hub:{source.name}", label)
    if source.kind in ("dir", "tiny"):
        folder = Path(source.name) if source.kind == "dir" else _tiny_folder()
        read_config(folder / CONFIG_NAME)  # its absence explains more than the absence of weights
        weights = find_weights(folder)
        label = weights.name if source.kind == "tiny" else str(weights)
        return _folder_checkpoint(folder, weights, f"local-dir:{folder}", label)
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    model_cfg = open_clip.get_model_config(source.name)
    if source.kind == "file":
        return Checkpoint(source.name, source.name, source.name, model_cfg, {}, Path(source.weights), source.weights)
    tag = get_pretrained_cfg(source.name, source.weights)
    weights = fetch_tag(source.spec, tag)
    label = f"{source.weights} ({tag.get('hf_hub') or tag.get('url')})"
    return Checkpoint(source.name, source.name, source.name, model_cfg, tag, weights, label, from_tag=True)


def _folder_checkpoint(folder: Path, weights: Path, tokenizer: str, label: str) -> Checkpoint:
    model_cfg, preprocess = read_config(folder / CONFIG_NAME)
    where = f"{CONFIG_NAME} of {tokenizer.removeprefix('local-dir:')}"
    return Checkpoint(where, f"local-dir:{folder}", tokenizer, model_cfg, preprocess, weights, label, from_folder=True)


def _tiny_folder() -> Path:
    folder = Path(str(importlib.resources.files("clipguard") / "assets" / "models" / "tiny"))
    if not folder.is_dir():
        raise ModelError("This installation lacks the embedded model 'tiny': reinstall clipguard.")
    return folder


def _preprocessing(model: nn.Module) -> Preprocessing:
    """The preprocessing open_clip attached to the model, spelled out."""
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
    )


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    return float(value[0]), float(value[1]), float(value[2])


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
        resize_mode=preprocessing.resize_mode,
        parameters=sum(p.numel() for p in model.parameters()),
        image_parameters=sum(p.numel() for p in visual.parameters()),
        logit_scale=float(model.logit_scale.detach().exp()),  # type: ignore[operator]
        logit_bias=None if bias is None else float(bias.detach()),
    )
