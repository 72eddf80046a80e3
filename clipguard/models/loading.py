"""`load_model`: from what the user typed to a model that is frozen, checked and described."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipguard.core.checking import check_type
from clipguard.core.environment.device import check_device
from clipguard.core.environment.hub_access import hub_access
from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.errors import ModelError
from clipguard.models.adapters.merge import Adapter, merge_adapter
from clipguard.models.build import Checkpoint, PlacedWeights, build, load_tokenizer, load_tower, load_weights, with_file
from clipguard.models.checkpoint.reader import WeightFile
from clipguard.models.classifier import Resolution, ZeroShotClassifier
from clipguard.models.preprocessing import (
    Preprocessing,
    describe_resize,
    pixels_of_model_size,
    preprocessing_of,
    to_native_pixels,
)
from clipguard.models.prompts.learned import LearnedPrompts
from clipguard.models.sources.detect import Detected, detect
from clipguard.models.sources.locate import locate, locate_base, needs_hub
from clipguard.models.sources.spec import ModelSource, parse_source
from clipguard.models.text.encoding import Tokenizer, encode_classes, tokenize
from clipguard.models.text.trained_prompts import trained_prompts
from clipguard.models.text.tuned import AppliedText, TextChoice, TextMap, apply_text

RELATED_COSINE = 0.5  # of an image tower's weights and its base's: below, a warning; fine-tuning moves them little
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
    trained_prompts: tuple[str, ...] = ()  # with which clipguard fine-tuned it, as the run beside the weights says

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types; without prompts where there are none, as before they were known."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return values if self.trained_prompts else {k: v for k, v in values.items() if k != "trained_prompts"}


class LoadedModel:
    """A checkpoint in memory: float32, eval mode, every parameter frozen.

    Attributes:
        info: where it came from and what it is.
        model: the open_clip model itself (`encode_image`, `encode_text`, `visual`, `logit_scale`).
        tokenizer: open_clip's tokenizer for it.
        preprocessing: its normalisation, size and resize mode.
        text_map: tuned text that the text tower does not hold, if any; applied by `classifier` and `text_features`.
        model_cfg: open_clip's config of the architecture.
        prompts: learned ones that it is scored with in place of templates, if any; see `with_prompts`.
        device: where it lives.
    """

    prompts: LearnedPrompts | None = None

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
        return hash_tensors(self.model.visual.state_dict())  # type: ignore[union-attr]

    def preprocess(self, resolution: Resolution = "model") -> Callable[[Image.Image], Tensor]:
        """A picklable function from a PIL image to pixels (3, H, W), float32 in [0,1].

        "model" is open_clip's own evaluation transform without its normalisation; "native" keeps the image's size.
        """
        if resolution == "native":
            return to_native_pixels
        return pixels_of_model_size(self.preprocessing)

    def classifier(
        self,
        class_names: Sequence[str],
        templates: Sequence[str],
        resolution: Resolution = "model",
        *,
        duplicates: bool = False,
    ) -> ZeroShotClassifier:
        """A classifier over `class_names`; see `ZeroShotClassifier`. Text is encoded once per (names, templates).

        Args:
            class_names: C names.
            templates: prompts with `{}` for the name, which are averaged.
            resolution: "model" for pixels of the model's size, "native" for those of any.
            duplicates: allow names that differ and have the same tokens.

        Raises:
            ModelError: when there are no names or templates, a template has no `{}`, two different names have the same
                tokens, or the model's tuned text is a table without one of the names.
        """
        text = self.text_features(class_names, templates, duplicates=duplicates)
        return ZeroShotClassifier(self.model, text, self.preprocessing, resolution)

    def check_text(self, class_names: Sequence[str], templates: Sequence[str], *, duplicates: bool) -> None:
        """Raises ModelError for names and templates that `classifier` would refuse; nothing is encoded."""
        if self.prompts is not None:
            self.prompts.tokens(self.tokenizer, class_names, duplicates=duplicates)
        else:
            tokenize(self.tokenizer, class_names, templates, duplicates=duplicates)

    def text_features(
        self, class_names: Sequence[str], templates: Sequence[str], *, duplicates: bool = False
    ) -> Tensor:
        """The class-text matrix (D, C), float32, columns of unit length; cached on this object."""
        key = (tuple(class_names), tuple(templates))
        if key not in self._text and self.prompts is not None:
            self._text[key] = self.prompts.encode(self.model, self.tokenizer, class_names, duplicates=duplicates)
        elif key not in self._text:
            self._text[key] = encode_classes(
                self.model, self.tokenizer, class_names, templates, self.device, self.text_map, duplicates=duplicates
            )
        return self._text[key]

    def take_prompts(self, prompts: LearnedPrompts) -> None:
        """Be scored with learned prompts from now on; those of the image tower are in it already."""
        self.prompts = prompts
        self.info = replace(self.info, text=prompts.describe(), text_sha256=prompts.sha256)
        self._text = {}
        self.__dict__.pop("tower_sha256", None)  # of the tower without them

    def copy(self, name: str | None = None) -> LoadedModel:
        """The same with weights of its own, on the same device, frozen; under another name if one is given."""
        info = self.info if name is None else replace(self.info, name=name)
        model, text_map = deepcopy((self.model, self.text_map))
        made = LoadedModel(info, model, self.tokenizer, self.preprocessing, self.model_cfg, text_map)
        made.prompts = self.prompts
        return made.to(self.device)

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


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in memory: their names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_model(spec: str | Path, *, device: str | torch.device = "cpu", text: TextChoice = "tuned") -> LoadedModel:
    """Load a model named as on the command line.

    Args:
        spec: `tiny`, `ARCH:TAG`, `path/to/weights.pt`, `ARCH:path/to/weights.pt`, `hf-hub:org/repo`, `local-dir:path`
            or the short name of a published model; `FILE@BASE` for an image tower and the model it was tuned from,
            `FOLDER@BASE` for an adapter (LoRA) and the model it was trained on;
            `#normalization=...` and `#entry=...` at the end. See docs/checkpoints.md.
        device: a torch device.
        text: "original" scores a model whose text clipguard tuned with the text it had before; see `text/tuned.py`.

    Returns:
        The model on `device`, float32, frozen and described.

    Raises:
        ModelError: one line that says what is wrong with the name, the files or the weights, and the cure.
    """
    check_type("A model's name", spec, str | Path, ModelError)
    check_type("`text`", text, TextChoice, ModelError)
    target = check_device(device)
    detected = detect(parse_source(str(spec)))
    with hub_access() if needs_hub(detected.source) else nullcontext():
        checkpoint = _locate_whole(detected)
        with quiet_libraries():
            model = build(checkpoint)
            tokenizer = load_tokenizer(checkpoint)
        checkpoint = with_file(checkpoint)  # out here, where its warnings are heard
        with quiet_libraries():
            weights = load_weights(model, checkpoint)
            cosine = None if detected.tower is None else load_tower(model, detected.tower, checkpoint)
            if detected.adapter is not None and detected.source.base is not None:
                merge_adapter(model, detected.adapter, detected.source.base.spec)
    if cosine is not None and cosine < RELATED_COSINE:
        _warn_unrelated(detected.source, cosine)
    preprocessing = preprocessing_of(model, checkpoint.preprocess_cfg)
    applied = apply_text(model, checkpoint.folder, checkpoint.model_cfg["embed_dim"], text, detected.source.spec)
    info = _describe(detected, checkpoint, weights, model, preprocessing, applied)
    if detected.tower is not None and cosine is not None:
        info = _describe_tower(info, detected.source, detected.tower, cosine)
    if detected.adapter is not None:
        info = _describe_adapter(info, detected.source, detected.adapter)
    return LoadedModel(info, model, tokenizer, preprocessing, checkpoint.model_cfg, applied.text_map).to(target)


def _locate_whole(detected: Detected) -> Checkpoint:
    """Config and weights of the model to build: the source's own or, for an image tower, those of its base."""
    source, file = detected.source, detected.file
    if detected.adapter is not None and source.base is not None:
        checkpoint = locate_base(source.base, detected.adapter.file.path)
    elif source.base is not None and file is not None:
        checkpoint = locate_base(source.base, file.path)
    else:
        checkpoint = locate(source, file)
    if source.normalization is None:
        return checkpoint
    return replace(checkpoint, preprocess_cfg={**checkpoint.preprocess_cfg, **source.normalization._asdict()})


def _warn_unrelated(source: ModelSource, cosine: float) -> None:
    assert source.base is not None
    log.warning(
        "%s: its image tower has little in common with that of %s (cosine of the weights %.2f): was it tuned from"
        " another model? If so, name that with `base`",
        source.spec,
        source.base.spec,
        cosine,
    )


def _describe(
    detected: Detected,
    checkpoint: Checkpoint,
    weights: PlacedWeights,
    model: nn.Module,
    preprocessing: Preprocessing,
    text: AppliedText,
) -> ModelInfo:
    """What is known of the whole model that was built; for an image tower, of its base."""
    visual, bias = model.visual, getattr(model, "logit_bias", None)
    assert isinstance(visual, nn.Module)
    folder_format = "open_clip checkpoint" if checkpoint.tokenizer_name else "Hugging Face CLIPModel"
    return ModelInfo(
        name=detected.source.spec,
        architecture=checkpoint.architecture,
        weights=checkpoint.label,
        sha256=weights.sha256,
        activation=checkpoint.activation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        image_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        resize_mode=describe_resize(preprocessing),
        parameters=sum(p.numel() for p in model.parameters()),
        image_parameters=sum(p.numel() for p in visual.parameters()),
        logit_scale=float(model.logit_scale.detach().exp()),  # type: ignore[operator]
        logit_bias=None if bias is None else float(bias.detach()),
        text=text.description,
        text_sha256=text.sha256,
        format=folder_format if detected.file is None else detected.file.contents.format,
        detected=detected.notes + checkpoint.notes + weights.left_out,
        trained_prompts=trained_prompts(checkpoint.weights, weights.sha256),
    )


def _describe_tower(info: ModelInfo, source: ModelSource, tower: WeightFile, cosine: float) -> ModelInfo:
    """The same with the image tower that took the place of the base's."""
    assert source.base is not None
    return replace(
        info,
        weights=f"{tower.path} (image tower), {info.weights} (the rest)",
        sha256=tower.sha256,
        base=source.base.spec,
        base_sha256=info.sha256,
        base_cosine=round(cosine, 4),
        detected=info.detected + tower.contents.notes,
        trained_prompts=trained_prompts(tower.path, tower.sha256),
    )


def _describe_adapter(info: ModelInfo, source: ModelSource, adapter: Adapter) -> ModelInfo:
    """The same with the adapter that was merged into it."""
    assert source.base is not None
    return replace(
        info,
        weights=f"{adapter.file.path} (adapter), {info.weights} (its base)",
        sha256=adapter.sha256,
        format=adapter.file.contents.format,
        base=source.base.spec,
        base_sha256=info.sha256,
        detected=info.detected + adapter.notes,
    )
