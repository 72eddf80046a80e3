"""Fetch weights and configs from the Hugging Face hub through open_clip, or from its cache when there is no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipguard.errors import ModelError, first_line
from clipguard.models.config import CONFIG_NAME
from clipguard.models.image_processor import PREPROCESSOR_NAME, PROCESSOR_NAME
from clipguard.models.text_map import ORIGINAL_FILE, TEXT_FILE
from clipguard.models.transformers_layout import CONFIG_NAME as TRANSFORMERS_CONFIG


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

    What clipguard's fine-tuning keeps about the text (see `text_map.py`) is fetched too, to lie beside the weights.

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
            raise
        return theirs, _fetch(lambda: _download_transformers(repository), spec, local)
    weights = _fetch(lambda: download_pretrained_from_hf(repository), spec, local)
    for name in (TEXT_FILE, ORIGINAL_FILE):
        _fetch_optional(repository, name)
    return config, weights


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


def _download_transformers(repository: str) -> str:
    """The weights of a `CLIPModel` repository; older ones have no safetensors."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return huggingface_hub.hf_hub_download(repository, "model.safetensors")
    except EntryNotFoundError:
        return huggingface_hub.hf_hub_download(repository, "pytorch_model.bin")


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
