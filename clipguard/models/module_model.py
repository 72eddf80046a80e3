"""Any module from pixels to logits in the place of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipguard.models.classifier import Resolution
from clipguard.models.loading import LoadedModel, ModelInfo, hash_tensors
from clipguard.models.preprocessing import Preprocessing, to_native_pixels

FORMAT = "module"


class ModuleModel(LoadedModel):
    """A module that maps pixels (B, 3, H, W) in [0,1] to logits (B, classes). It has no text.

    Images come at their own size; what else they need belongs inside the module.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        """`name` stands for it in results."""
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        n = sum(p.numel() for p in module.parameters())
        self.info = ModelInfo(
            name=name,
            architecture=kind,
            weights="in memory",
            sha256=hash_tensors(module.state_dict()),
            activation="the module's own",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            image_size=(0, 0),
            interpolation="none",
            resize_mode="none",
            parameters=n,
            image_parameters=n,
            logit_scale=1.0,
            logit_bias=None,
            text="none",
            format=FORMAT,
        )
        self.model = module
        self.tokenizer = None  # type: ignore[assignment]
        self.preprocessing = Preprocessing((0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "shortest", 0)
        self.model_cfg: dict[str, Any] = {"module": kind, "sha256": self.info.sha256}
        self.text_map = None
        self._text = {}
        first = next((tensor for tensor in (*module.parameters(), *module.buffers())), None)
        self.device = first.device if first is not None else torch.device("cpu")

    def preprocess(self, resolution: Resolution = "model") -> Callable[[Image.Image], Tensor]:  # noqa: ARG002
        """Pixels (3, H, W) in [0,1] of the image as it is."""
        return to_native_pixels

    def classifier(  # type: ignore[override]
        self,
        class_names: Sequence[str],  # noqa: ARG002
        templates: Sequence[str],  # noqa: ARG002
        resolution: Resolution = "model",  # noqa: ARG002
        *,
        duplicates: bool = False,  # noqa: ARG002
    ) -> nn.Module:
        """The module itself."""
        return self.model

    def check_text(self, class_names: Sequence[str], templates: Sequence[str], *, duplicates: bool) -> None:
        """Nothing: there is no text."""

    def text_features(self, *_: Any, **__: Any) -> Tensor:
        """None of its own: (0, 0)."""
        return torch.empty(0, 0)
