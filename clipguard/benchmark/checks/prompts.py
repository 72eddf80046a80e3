"""Models that were trained with other prompts than they are scored with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from clipguard.models.loading import ModelInfo
from clipguard.models.text.trained_prompts import describe_prompts

log = logging.getLogger("clipguard")


def warn_of_prompts(models: Iterable[ModelInfo], templates: Mapping[str, Sequence[str]]) -> None:
    """Say which fine-tuned models see prompts that they were not trained with; a line each.

    Args:
        models: those of a run.
        templates: prompts by data set.
    """
    for model in models:
        trained = set(model.trained_prompts)
        others = [name for name, prompts in templates.items() if trained and set(prompts) != trained]
        if others:
            log.warning(
                "%s was trained with %s and is scored with others on %s: a model may come to expect its prompts, and "
                "lose 40 points of clean accuracy with others (docs/methods.md). `templates` sets them",
                model.name,
                describe_prompts(model.trained_prompts),
                ", ".join(others),
            )
