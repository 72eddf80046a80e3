"""What launchers (torchrun, accelerate launch, mpirun) say in environment variables: which process of how many this is.

Such variables also stay behind in shells and containers, so what does not fit is said, and what is not read too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

from clipguard.core.errors import FinetuneError
from clipguard.core.notices import notice

MPI = ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")
RANK = ("RANK", *(f"{name}_RANK" for name in MPI))
SIZE = ("WORLD_SIZE", *(f"{name}_SIZE" for name in MPI))
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
LOCAL_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
LAUNCH_VARIABLES = (*RANK, *SIZE, *LOCAL_RANK, *LOCAL_SIZE, *ADDRESS)
# What accelerate would take settings from, over ours.
ACCELERATE_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED")
NO_EFFECT = ("", "no", "none", "false", "0", "default")  # values of accelerate's variables


@dataclass(frozen=True)
class Launch:
    """What the environment says: which process of how many this is, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = ""
    port: int = 0

    def variables(self) -> dict[str, str]:
        """The same as torchrun writes it."""
        names = (RANK[0], SIZE[0], LOCAL_RANK[0], LOCAL_SIZE[0], *ADDRESS)
        return {name: str(value) for name, value in zip(names, astuple(self), strict=True)}


def read_launch() -> Launch:
    """What the environment says.

    Raises:
        FinetuneError: for what fits no launch.
    """
    size = _number(SIZE)
    if size is None or size <= 1:
        return Launch()
    rank, local_size = _number(RANK), _number(LOCAL_SIZE) or 1
    address = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if local_size == size else "")
    port = _number(("MASTER_PORT",)) or 29500
    missing = "RANK" if rank is None else "" if address else "MASTER_ADDR"
    if rank is None or missing:
        raise FinetuneError(f"{_first_set(SIZE)} says that {size} processes train, but {missing} is not set: {cure()}")
    if rank >= size:
        raise FinetuneError(f"{_first_set(RANK)} does not fit {_first_set(SIZE)}, which counts from 0: {cure()}")
    return Launch(rank, size, _number(LOCAL_RANK) or 0, local_size, address, port)


def is_supervised() -> bool:
    """Whether torchrun, or what is built on it, watches the processes: it says when one is lost, and may start anew."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_helper() -> bool:
    """Whether another process of the launch is the one that tells."""
    return os.environ.get("RANK", "0") not in ("", "0") and os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def variables_set() -> list[str]:
    """`NAME=VALUE` of each launch variable that is set."""
    return [f"{name}={os.environ[name]}" for name in LAUNCH_VARIABLES if name in os.environ]


def cure() -> str:
    """What to do about a launch that does not work, as the end of a message."""
    names = " ".join(name for name in LAUNCH_VARIABLES if name in os.environ)
    return f"start all with torchrun, or train with this process alone after `unset {names}`."


def tell_what_is_not_read(launch: Launch) -> None:
    """Say which variables would have changed the run, and do not."""
    unread = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("ACCELERATE_") and value.lower() not in NO_EFFECT
        if (name, value) != ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    ]
    if unread:
        what = ", ".join(unread)
        notice("skipped", f"{what}: not read. Options decide: --device, --precision, --accumulate, --grad-clip.")
    if launch.size == 1 and _number(SIZE) is None and (alone := [name for name in LOCAL_RANK if name in os.environ]):
        what = f"{alone[0]}={os.environ[alone[0]]}"
        notice("skipped", f"{what}: not read, since no WORLD_SIZE says how many processes train. This one does, alone.")


@contextmanager
def only(variables: dict[str, str]) -> Iterator[None]:
    """Of what accelerate reads from the environment, let it see these."""
    hidden = [name for name in os.environ if name in LAUNCH_VARIABLES or name.startswith(ACCELERATE_PREFIXES)]
    before = {name: os.environ.pop(name) for name in hidden}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


def _number(names: tuple[str, ...]) -> int | None:
    """The first of these variables that is set, as accelerate reads them."""
    for name in names:
        text = os.environ.get(name, "")
        if text and not text.lstrip("-").isdecimal():
            raise FinetuneError(f"{name}={text} is no number: {cure()}")
        if text and int(text) >= 0:
            return int(text)
    return None


def _first_set(names: tuple[str, ...]) -> str:
    return next(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
