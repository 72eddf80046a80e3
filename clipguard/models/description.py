"""What was detected about a model, in words."""

from __future__ import annotations

from clipguard.models.loading import LoadedModel
from clipguard.models.text.trained_prompts import describe_prompts


def describe_model(model: LoadedModel) -> list[str]:
    """What was detected about a model, for the log."""
    i = model.info
    if i.format == "module":
        return [
            f"{i.name}: {i.architecture}, {i.parameters / 1e6:.1f} M parameters, in memory, sha256 {i.sha256[:16]}…"
        ]
    return [
        f"{i.name}: {i.architecture}, {i.activation}, {i.image_size[0]}x{i.image_size[1]} px ({i.interpolation}, "
        f"{i.resize_mode}), {i.image_parameters / 1e6:.1f} M of {i.parameters / 1e6:.1f} M parameters see the image",
        f"{i.name}: weights {i.weights}, sha256 {i.sha256[:16]}…, mean {i.mean}, std {i.std}, "
        f"logit scale {i.logit_scale:.2f}"
        + (f", logit bias {i.logit_bias:.2f}" if i.logit_bias is not None else "")
        + f", text {i.text}"
        + (f", trained with {describe_prompts(i.trained_prompts)}" if i.trained_prompts else ""),
        *(f"{i.name}: {line}" for line in i.detected),
    ]
