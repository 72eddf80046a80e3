"""Ray itself: started for a run on this machine, or joined where it runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import torch

from clipguard.core.environment.device import processors
from clipguard.core.errors import ClipguardError, first_line

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 3.0
MOST_A_PROCESSOR = 4  # workers, on this machine
CLIENT_PORT, PORT = 10001, 6379
# In a process of its own, since what waits in there cannot be interrupted.
ASK = """
import sys
address = sys.argv[1]
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient
print(flush=True)
try:
    if address.startswith("ray://"):
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType
        from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub
        ping = ClusterInfoRequest(type=ClusterInfoType.PING)
        driver = RayletDriverStub(init_grpc_channel(address[6:], options=None))
        driver.ClusterInfo(ping, metadata=[("client_id", "ask")], wait_for_ready=True)
    else:
        found = canonicalize_bootstrap_address(address)
        if found is None:
            raise ConnectionError("none runs on this machine")
        GcsClient(address=found)
    print("yes")
except BaseException as error:
    why = " ".join(str(error).split())[:300]
    print("token" if "uthentication" in why else "no", why)
"""
log = logging.getLogger("clipguard")


@contextmanager
def connected(address: str | None, workers: int | None, device: str) -> Iterator[None]:
    """Join the Ray cluster at an address (None: start one of this machine), and leave it with the block.

    A session that the program has already is used, and stays.

    Raises:
        ClipguardError: where there is none.
    """
    if address not in (None, "auto"):
        _reach(address)
    if ray.is_initialized():
        yield
        return
    if address is not None:
        ask(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    _keep_stdout_clean()
    try:
        if address is None:
            _start(workers or 1, device, quiet)
        else:
            _join(address, quiet)
        for number, handler in handlers.items():  # Ray has set its own
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()


def _keep_stdout_clean() -> None:
    """Ray prints there what it thinks of workers that die; that they do is said by who waits for them."""
    ray._private.worker.print_to_stdstream = lambda *_args, **_options: None


def _start(workers: int, device: str, quiet: dict[str, Any]) -> None:
    """A cluster of this machine, which ends with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cpus = max(min(workers, MOST_A_PROCESSOR * processors()), processors())
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    try:
        ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, **quiet)
    except Exception as error:  # ports, sockets, memory: of many types
        raise ClipguardError(f"Ray does not start here ({first_line(error)}); leave out `workers`.") from error


def _join(address: str, quiet: dict[str, Any]) -> None:
    """A cluster that runs."""
    logging.getLogger("ray.util.client_builder").setLevel(logging.ERROR)  # prints what it passes on
    try:
        ray.init(address, **({} if address.startswith("ray://") else quiet))
    except Exception as error:  # nothing there, another version of Ray or Python: of many types
        raise ClipguardError(f"The Ray cluster at `ray={address}` cannot be joined ({_in_a_line(error)}).") from error


def _reach(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        host, port = port, str(CLIENT_PORT if address.startswith("ray://") else PORT)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClipguardError(
            f"No Ray cluster answers at `ray={address}` ({first_line(error)}); `ray status` on its head node shows the "
            "address."
        ) from error


def ask(address: str) -> None:
    """Whether it is Ray that answers there, and whether it lets us in: `ray.init` would hold this process for minutes.

    Raises:
        ClipguardError: where not, within seconds.
    """
    child = subprocess.Popen([sys.executable, "-c", ASK, address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines: list[str] = []
    assert child.stdout is not None
    try:
        child.stdout.readline()  # Ray is imported, which may take its time
        with suppress(subprocess.TimeoutExpired):
            lines = child.communicate(timeout=ANSWER_SECONDS)[0].decode().splitlines()
    finally:
        child.kill()
        child.wait()
    if lines and lines[0] == "yes":
        return
    if not lines:
        raise ClipguardError(
            f"What answers at `ray={address}` is no Ray cluster; `ray status` on its head node shows the address."
        )
    kind, _, why = lines[0].partition(" ")
    if kind == "token":
        raise ClipguardError(
            f"The Ray cluster at `ray={address}` wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or "
            "RAY_AUTH_TOKEN to what its head node has (docs/cluster.md)."
        )
    raise ClipguardError(f"No Ray cluster at `ray={address}` ({why}); start one with `ray start --head`.")


def _in_a_line(error: Exception) -> str:
    """All that an error says, but for the frames of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("Traceback" in line for line in lines):
        lines = lines[-1:]
    text = " ".join(lines).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def nodes() -> list[dict[str, float]]:
    """What each node of the cluster has, as Ray names it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
