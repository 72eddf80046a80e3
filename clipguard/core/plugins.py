"""Plug-ins: what other installed packages add to a registry through entry points (docs/extending.md)."""

from __future__ import annotations

import logging
from collections import UserDict
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from clipguard.core.errors import first_line

T = TypeVar("T")
log = logging.getLogger("clipguard")


def load_plugins(group: str, add: Callable[[str, Any], None]) -> None:
    """Load what packages give under a group, such as `clipguard.attacks`, in the order of names.

    A plug-in that cannot be used is one warning, and the others are there.

    Args:
        group: of the entry points.
        add: takes a name and what it stands for; whatever it raises is the plug-in's fault.
    """
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            add(point.name, point.load())
        except (Exception, SystemExit) as error:  # a package of somebody else: anything can be wrong with it
            log.warning("The plug-in %s cannot be used (%s); going on without it.", _describe(point), first_line(error))


def _describe(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an unknown package"
    return f"{point.name!r} of {package} ({point.group})"


class Registry(UserDict[str, T]):
    """Names and what they stand for: our own, and those of plug-ins, which are loaded when it is first looked at."""

    def __init__(self, entries: Mapping[str, T], group: str, add: Callable[[str, Any], None]) -> None:
        """`entries` are our own; `group` and `add` are those of `load_plugins`."""
        self._entries = dict(entries)
        self._group, self._add = group, add
        self._loaded = False

    @property
    def data(self) -> dict[str, T]:  # type: ignore[override]
        """Where `UserDict` keeps everything."""
        if not self._loaded:
            self._loaded = True  # first: adding looks here, too
            load_plugins(self._group, self._add)
        return self._entries
