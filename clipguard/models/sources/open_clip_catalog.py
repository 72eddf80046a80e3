"""What open_clip knows by name: architectures, their weight tags, and the activation (GELU, QuickGELU) of either."""

from __future__ import annotations

from typing import Any

QUICK_SUFFIX = "-quickgelu"


def architectures() -> list[str]:
    """The architecture names open_clip can build, those registered with `open_clip.add_model_config` included."""
    import open_clip

    return list(open_clip.list_models())


def quick_gelu_twin(architecture: str) -> str | None:
    """The same architecture with the other activation (`ViT-B-32` <-> `ViT-B-32-quickgelu`), if open_clip has it."""
    base = architecture.removesuffix(QUICK_SUFFIX)
    twin = base if base != architecture else architecture + QUICK_SUFFIX
    return twin if twin in architectures() else None


def uses_quick_gelu(architecture: str) -> bool:
    """Whether open_clip builds this architecture with QuickGELU."""
    import open_clip

    config = open_clip.get_model_config(architecture)
    return bool(config and config.get("quick_gelu", False))


def tag_config(architecture: str, tag: str) -> dict[str, Any]:
    """open_clip's entry for a weight tag (url, hub repository, mean, std, quick_gelu ...), empty if there is none."""
    from open_clip.pretrained import get_pretrained_cfg

    return dict(get_pretrained_cfg(architecture, tag))


def tags(architecture: str) -> list[str]:
    """The architecture's weight tags that were trained with its activation."""
    import open_clip

    return [t for t in open_clip.list_pretrained_tags_by_model(architecture) if activation_agrees(architecture, t)]


def activation_agrees(architecture: str, tag: str) -> bool:
    """Whether the tag's weights were trained with the architecture's activation.

    An architecture without a twin (`roberta-ViT-B-32`) is taken at its word: there is nothing else to build.
    """
    same = bool(tag_config(architecture, tag).get("quick_gelu", False)) == uses_quick_gelu(architecture)
    return same or quick_gelu_twin(architecture) is None
