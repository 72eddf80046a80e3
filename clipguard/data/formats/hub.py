"""Data sets of the Hugging Face hub, or of its cache when there is no network.

`hf:org/name[/config][@split]` is read by `datasets`; `wds:org/name` is a web dataset in CLIP_benchmark's layout.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipguard.core.environment.hub_access import hub_access
from clipguard.core.errors import DatasetError, SplitError, first_line
from clipguard.data.classes.lists import read_class_list
from clipguard.data.formats.library_cache import check_cache
from clipguard.data.formats.paths import locate
from clipguard.data.formats.raw_split import RawSplit, Request, choose_split
from clipguard.data.formats.tables import split_of_table
from clipguard.data.formats.webdataset import open_tars
from clipguard.data.templates import PHOTO, TemplateSets, read_templates

HUB_NAME = re.compile(r"hf:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
INSTEAD = (
    "give a local copy instead: a .parquet file, a folder of parquet files, a save_to_disk folder, an image folder or "
    "webdataset tars"
)


def open_hub(name: str, request: Request) -> RawSplit:
    """A split of a hub data set, through `datasets` and its cache.

    Raises:
        DatasetError: within seconds if neither the network nor the cache has it, or if it cannot be read.
    """
    match = HUB_NAME.fullmatch(name)
    if match is None:
        raise DatasetError("a hub dataset is written hf:org/name, hf:org/name@split or hf:org/name/config@split")
    repo, config, split = match["repo"], match["config"], match["split"]
    if split and request.split and split != request.split:
        raise DatasetError(f"the name asks for split {split!r} and `split` for {request.split!r}; keep one")
    if Path(repo).exists():
        raise DatasetError(
            f"the local path {repo!r} hides the hub's dataset; give ./{repo}, or run from another folder"
        )
    import datasets  # noqa: F401  # hub_access sets its offline switch, too, if it is there

    with hub_access() as online:
        splits, revision = _prepare(repo, config, online)
        chosen = choose_split(splits, split or request.split)
        raw = split_of_table(splits[chosen], f"{repo}@{revision}", chosen, request)
        if "__key__" in splits[chosen].features:  # a webdataset: CLIP_benchmark keeps names and templates beside tars
            names = _companion(repo, "classnames.txt")
            raw.listed_names = read_class_list(names, f"{repo}/classnames.txt") if names else None
            templates = _companion(repo, "zeroshot_classification_templates.txt")
            raw.templates = TemplateSets(PHOTO.single, tuple(read_templates(templates))) if templates else PHOTO
    return raw


def open_hub_tars(name: str, request: Request) -> RawSplit:
    """A split of `wds:org/name`: a web dataset of the hub in CLIP_benchmark's layout, of which one split is fetched.

    Raises:
        DatasetError: within seconds if neither the network nor the cache has it, or if it cannot be read.
    """
    repo, split = name.removeprefix("wds:"), request.split or "test"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
        raise DatasetError("a web dataset of the hub is written wds:org/name; its split is named with `split`")
    import huggingface_hub
    from huggingface_hub import constants

    with hub_access() as online:
        try:
            # `datasets` would fetch every split, and ImageNet's training images are 150 GB.
            folder = huggingface_hub.snapshot_download(
                repo, repo_type="dataset", allow_patterns=[f"{split}/*", "*.txt"]
            )
        except Exception as error:  # the hub client's errors share no base class
            check_cache(error)
            raise _not_there(repo, error, online, constants.HF_HUB_CACHE) from error
    if not any(Path(folder, split).glob("*.tar")):
        where = repo if online else f"{repo} as far as it is cached; {constants.ENDPOINT} cannot be reached"
        raise SplitError(f"no split {split!r} in {where}; choose one with `split`")
    raw = open_tars(locate(Path(folder)), replace(request, split=split))
    raw.source = f"{repo}@{Path(folder).name}"
    return raw


def _not_there(repo: str, error: Exception, online: bool, cache: object) -> DatasetError:
    from huggingface_hub import constants

    if online:
        return DatasetError(f"cannot load {repo!r} from the hub: {first_line(error)}; check the name, or {INSTEAD}")
    return DatasetError(f"{constants.ENDPOINT} cannot be reached and {repo!r} is not in the cache ({cache}); {INSTEAD}")


def _prepare(repo: str, config: str | None, online: bool) -> tuple[Any, str]:
    """All splits as a DatasetDict, and the revision (commit) they are of."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(repo, config)
        builder.download_and_prepare()
        return builder.as_dataset(), str(builder.hash)
    except Exception as error:  # the hub client, datasets and pyarrow share no base class
        check_cache(error)
        raise _not_there(repo, error, online, datasets.config.HF_DATASETS_CACHE) from error


def _companion(repo: str, filename: str) -> Path | None:
    """A small file of the dataset's repository, or None if there is none (or it is not cached, when offline)."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(repo, filename, repo_type="dataset"))
    except EntryNotFoundError:
        return None
    except Exception as error:
        check_cache(error)
        raise DatasetError(
            f"cannot load {filename} of {repo!r}: {first_line(error)}; try again, or {INSTEAD}"
        ) from error
