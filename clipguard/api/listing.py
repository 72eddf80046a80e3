"""What can be named: models, data sets, attacks, methods and protocols, those of plug-ins among them."""

from __future__ import annotations


def list_models() -> list[str]:
    """Names that `load_model` knows: the embedded model, ARCH:TAG of open_clip, and what others published."""
    from clipguard.models.sources.published import published_models
    from clipguard.models.sources.spec import list_models as open_clip_models

    return [*open_clip_models(), *(published.name for published in published_models())]


def list_datasets() -> list[str]:
    """Names that `load_dataset` knows, embedded sets first, and the groups that `bench` takes."""
    from clipguard.data import list_datasets as embedded
    from clipguard.data.registry import groups, registry

    return [*(info.name for info in embedded()), *registry(), *groups()]


def list_attacks() -> list[str]:
    """Names of attacks and of suites of them; those with a number of steps take it as in pgd-10."""
    from clipguard.attacks.registry import ATTACKS, SUITES

    return [*SUITES, *ATTACKS]


def list_defenses() -> list[str]:
    """Names of defences at test time."""
    from clipguard.defenses.registry import DEFENSES

    return list(DEFENSES)


def list_methods() -> list[str]:
    """Names of fine-tuning methods."""
    from clipguard.finetuning.methods.registry import METHODS

    return list(METHODS)


def list_protocols() -> list[str]:
    """Names of protocols."""
    from clipguard.benchmark.protocols import PROTOCOLS

    return list(PROTOCOLS)
