"""Whether this process was started by another one of clipguard, which tells how all of them end."""

from __future__ import annotations

import os

LAUNCHER = "CLIPGUARD_LAUNCHER"  # environment variable: its process id


def has_launcher() -> bool:
    """Whether such a process started this one, and lives."""
    return os.environ.get(LAUNCHER) == str(os.getppid())
