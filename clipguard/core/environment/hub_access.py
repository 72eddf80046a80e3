"""Whether the Hugging Face hub can be reached: asked once and fast; without it, the libraries use their caches."""

from __future__ import annotations

import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 3.0  # after which the hub counts as not there


def hub_reachable() -> bool:
    """Whether a TCP connection to the hub, or to the proxy in the way, is made within `CONNECT_SECONDS`.

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
    """Check the connection once; without one, every call of the hub's libraries inside uses the cache or fails at once.

    Left to themselves the libraries try again for minutes. They read HF_HUB_OFFLINE once, at import, so it is their
    settings that must change, not the environment.

    Yields:
        Whether the hub is reachable.
    """
    from huggingface_hub import constants

    settings: list[Any] = [constants]
    if "datasets" in sys.modules:
        settings.append(sys.modules["datasets"].config)
    before = [module.HF_HUB_OFFLINE for module in settings]
    online = hub_reachable()
    try:
        for module in settings:
            module.HF_HUB_OFFLINE = not online
        yield online
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value
