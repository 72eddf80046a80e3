"""Fetch weights and configs from the Hugging Face hub through open_clip, or from its cache when there is no network."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipguard.errors import ModelError
from clipguard.models.config import CONFIG_NAME
from clipguard.models.quiet import first_line

CONNECT_SECONDS = 3.0


def hub_reachable() -> bool:
    """Whether the hub answers: a TCP connection, to it or to the proxy in the way, within about 3 seconds.

    False in the hub's offline mode (HF_HUB_OFFLINE=1). Behind a live proxy only a real request can tell, so True.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(constants.ENDPOINT)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    ports = {"http": 80, "https": 443}
    return _connects(url.hostname or "", url.port or ports.get(url.scheme, 1080))  # 1080: SOCKS


def _connects(host: str, port: int) -> bool:
    """One connection attempt, in a thread: resolving a name ignores socket timeouts and can hang far longer."""
    connected = threading.Event()

    def attempt() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            connected.set()
        except OSError:
            pass

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return connected.is_set()


@contextmanager
def hub_access() -> Iterator[bool]:
    """Check the connection once; without one, every hub call inside answers from the cache or fails at once.

    Yields whether the hub is reachable. open_clip's download functions take no `local_files_only`, so the hub
    library's own offline switch is set instead.
    """
    from huggingface_hub import constants

    online, before = hub_reachable(), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = not online
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE = before


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
    """The config and weight file of a hub repository in open_clip's layout; to be called inside `hub_access`.

    Raises:
        ModelError: when either is neither cached nor to be had; says which local folder to give instead.
    """
    from open_clip.pretrained import download_pretrained_from_hf

    spec = f"hf-hub:{repository}"
    local = f"local-dir:/path/to/folder with its {CONFIG_NAME} and weights"
    config = _fetch(lambda: download_pretrained_from_hf(repository, filename=CONFIG_NAME), spec, local)
    return config, _fetch(lambda: download_pretrained_from_hf(repository), spec, local)


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
