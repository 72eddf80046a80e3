"""Fetch weights and configs from the Hugging Face hub through open_clip, or from its cache when there is no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipguard.core.errors import ModelError, first_line
from clipguard.models.adapters.config import ADAPTER_CONFIG, read_adapter_config
from clipguard.models.adapters.config import WEIGHT_NAMES as ADAPTER_WEIGHTS
from clipguard.models.checkpoint.config import CONFIG_NAME, WEIGHT_NAMES, read_config
from clipguard.models.checkpoint.image_processor import PREPROCESSOR_NAME, PROCESSOR_NAME
from clipguard.models.checkpoint.shards import INDEX_SUFFIX, is_index, read_index_names
from clipguard.models.checkpoint.transformers import CONFIG_NAME as TRANSFORMERS_CONFIG
from clipguard.models.text.tuned import ORIGINAL_FILE, TEXT_FILE
from clipguard.models.text.wordpiece import VOCABULARY_NAME, uses_vocabulary, vocabulary_name


def fetch_tag(spec: str, config: dict[str, Any]) -> Path:
    """The weight file of an open_clip tag, downloaded or from the cache; to be called inside `hub_access`.

    Raises:
        ModelError: when it is neither cached nor to be had; says which local file to give instead.
    """
    from open_clip.pretrained import download_pretrained

    architecture = spec.partition(":")[0]
    local = f"{architecture}:/path/to/weights.pt or local-dir:/path/to/folder"
    return _fetch(lambda: download_pretrained(config), spec, local)


def fetch_repository(repository: str) -> tuple[Path, Path]:
    """The config and weight file of a hub repository, in open_clip's layout or in transformers'.

    To be called inside `hub_access`.

    What clipguard's fine-tuning keeps about the text (see `text/tuned.py`) is fetched too, to lie beside the weights.

    Raises:
        ModelError: when either is neither cached nor to be had; says which local folder to give instead.
    """
    from open_clip.pretrained import download_pretrained_from_hf

    spec = f"hf-hub:{repository}"
    local = f"local-dir:/path/to/folder with its {CONFIG_NAME} and weights"
    try:
        config = _fetch(lambda: download_pretrained_from_hf(repository, filename=CONFIG_NAME), spec, local)
    except ModelError:
        theirs = _fetch_transformers_config(repository)
        if theirs is None:
            _refuse_adapter(repository)
            raise
        return theirs, _fetch(lambda: _download_transformers(repository), spec, local)
    weights = _fetch(lambda: _download_open_clip(repository), spec, local)
    for name in (TEXT_FILE, ORIGINAL_FILE, *_vocabulary_names(config)):
        _fetch_optional(repository, name)
    return config, weights


def _vocabulary_names(config: Path) -> tuple[str, ...]:
    """Under which names the vocabulary may be that a config asks for, if it does; see `text/wordpiece.py`."""
    text = read_config(config)[0]["text_cfg"]
    return (vocabulary_name(text), VOCABULARY_NAME) if uses_vocabulary(text) else ()


def fetch_file(place: str) -> Path:
    """A weight file of a hub repository, `hf-hub:ORG/REPO/FILE`, with what it names if it is an index.

    Raises:
        ModelError: when it is neither cached nor to be had; says which local file to give instead.
    """
    import huggingface_hub

    organisation, repository, *names = place.removeprefix("hf-hub:").split("/")
    repository, name = f"{organisation}/{repository}", "/".join(names)
    local = f"/path/to/{names[-1]}"
    path = _fetch(lambda: huggingface_hub.hf_hub_download(repository, name), place, local)
    for shard in read_index_names(path) if is_index(path) else []:
        within = "/".join([*names[:-1], shard])
        _fetch(lambda within=within: huggingface_hub.hf_hub_download(repository, within), place, local)  # type: ignore[misc]
    return path


def fetch_adapter(place: str) -> Path:
    """The folder of an adapter that is a hub repository, `hf-hub:ORG/REPO`.

    Raises:
        ModelError: when its config or weights are neither cached nor to be had.
    """
    import huggingface_hub

    repository = place.removeprefix("hf-hub:")
    local = "/path/to/folder with its adapter_config.json"
    config = _fetch(lambda: huggingface_hub.hf_hub_download(repository, ADAPTER_CONFIG), place, local)
    _fetch(lambda: _download_first(repository, ADAPTER_WEIGHTS), place, local)
    return config.parent


def _fetch_transformers_config(repository: str) -> Path | None:
    """The config of a `CLIPModel` repository, with its preprocessing beside it; None if it is not to be had."""
    import huggingface_hub

    try:
        path = Path(huggingface_hub.hf_hub_download(repository, TRANSFORMERS_CONFIG))
    except Exception:  # the hub raises a dozen unrelated types; the caller reports what was wanted first
        return None
    for name in (PROCESSOR_NAME, PREPROCESSOR_NAME):
        _fetch_optional(repository, name)
    return path


def _refuse_adapter(repository: str) -> None:
    """Raise ModelError if the repository holds an adapter of peft and not a model."""
    import huggingface_hub

    try:
        config = Path(huggingface_hub.hf_hub_download(repository, ADAPTER_CONFIG))
    except Exception:  # the caller reports what was wanted first
        return
    base = read_adapter_config(config).base
    example = f"hf-hub:{base}" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else "BASE"
    raise ModelError(
        f"hf-hub:{repository} is an adapter (LoRA, peft), not a model: name what it was trained on, as in"
        f" hf-hub:{repository}@{example}."
    )


def _download_open_clip(repository: str) -> str:
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        path: str = download_pretrained_from_hf(repository)
    except Exception as error:  # it names many types; the first one says what was wanted
        try:
            return _download_first(repository, [f"{name}{INDEX_SUFFIX}" for name in WEIGHT_NAMES])
        except Exception:
            raise error from None
    return path


def _download_transformers(repository: str) -> str:
    """The weights of a `CLIPModel` repository; older ones have no safetensors, large ones several and an index."""
    whole = ("model.safetensors", "pytorch_model.bin")
    return _download_first(repository, [name + end for name in whole for end in ("", INDEX_SUFFIX)])


def _download_first(repository: str, names: Sequence[str]) -> str:
    """The first of these files that the repository has, with what it names if it is an index."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    for number, name in enumerate(names):
        try:
            path = huggingface_hub.hf_hub_download(repository, name)
        except EntryNotFoundError:
            if number == len(names) - 1:
                raise
            continue
        break
    if is_index(Path(path)):
        for shard in read_index_names(Path(path)):
            huggingface_hub.hf_hub_download(repository, shard)
    return path


def _fetch_optional(repository: str, name: str) -> None:
    """Bring a file into the cache if the repository has it; without a network, what the cache has is all there is."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    try:
        huggingface_hub.hf_hub_download(repository, name)
    except EntryNotFoundError:
        return
    except Exception as error:
        raise ModelError(f"Could not fetch {name} of hf-hub:{repository} ({first_line(error)}): try again.") from error


def _fetch(download: Callable[[], str], spec: str, local: str) -> Path:
    from huggingface_hub import constants

    try:
        path = Path(download())
    except Exception as error:  # the hub raises a dozen unrelated types; all mean "not to be had"
        if constants.HF_HUB_OFFLINE:
            host = urlsplit(constants.ENDPOINT).hostname
            raise ModelError(
                f"{spec} is not in the local cache ({constants.HF_HUB_CACHE}) and {host} cannot be reached (or"
                f" HF_HUB_OFFLINE is set): connect once to fetch it, or give {local}."
            ) from error
        raise ModelError(
            f"Could not fetch {spec} from the hub ({first_line(error)}): check the name and your access, or give"
            f" {local}."
        ) from error
    return path
