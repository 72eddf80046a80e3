"""Can the registered data sets be opened here? Answered from file names and the hub's index, without a download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipguard.core.environment.hub_access import hub_access
from clipguard.core.errors import DatasetError, first_line
from clipguard.data.formats.paths import locate
from clipguard.data.registry import DatasetEntry, registry


@dataclass(frozen=True)
class Availability:
    """Whether a data set can be opened, and from where, or what is missing."""

    name: str
    available: bool
    where: str


def check_registry(data_root: Path | None = None) -> Iterator[Availability]:
    """Every registered data set, in order. Without a network this takes seconds: the connection is tried once.

    Raises:
        DatasetError: if `data_root` is no folder.
    """
    import datasets  # noqa: F401  # hub_access sets its offline switch, too, if it is there

    with hub_access() as online:
        for entry in registry().values():
            try:
                yield Availability(entry.name, True, _find(entry, data_root, online))
            except DatasetError as error:
                yield Availability(entry.name, False, str(error))


def _find(entry: DatasetEntry, data_root: Path | None, online: bool) -> str:
    """Where the data set is. Raises DatasetError, with the cure, if it is nowhere."""
    source = entry.locate(data_root)
    if source != entry.source:
        return f"{source} ({locate(Path(source)).kind} files)"
    repo = source.partition(":")[2]
    if not online:
        if not _cached(source):
            raise DatasetError(f"the hub cannot be reached and {repo} is not in its cache; {entry.cure(data_root)}")
        return f"{repo}, in the cache"
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(repo, timeout=10)
    except Exception as error:  # the hub client's errors share no base class
        raise DatasetError(f"the hub has no {repo} for you: {first_line(error)}; {entry.cure(data_root)}") from error
    return f"{repo}, on the hub"


def _cached(source: str) -> bool:
    """Whether the hub's cache (for `hf:`, that of `datasets`) holds it. An interrupted download may count, too."""
    kind, _, repo = source.partition(":")
    if kind == "wds":
        import huggingface_hub

        cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        return any((cache / f"datasets--{repo.replace('/', '--')}").glob("snapshots/*/*/*.tar"))
    import datasets

    # `datasets` writes org/TwoWords-here as org___two_words-here
    folder = datasets.naming.camelcase_to_snakecase(repo.rpartition("/")[2])
    return (Path(datasets.config.HF_DATASETS_CACHE) / f"{repo.partition('/')[0]}___{folder}").is_dir()
