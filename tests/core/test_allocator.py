"""Freed buffers are reused, not fetched from the kernel anew; and whoever has set the allocator is left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clipguard.core.environment.allocator import VARIABLES, keep_memory

FAULTS = """
import resource
import torch
from clipguard.core.environment.device import choose_device
{call}
x = torch.ones(8 * 2**20)
def work():
    for _ in range(4):
        (x * 2).sum()
for _ in range(6):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="of glibc")


def faults(call: str) -> int:
    """Page faults of products of 32 MiB each."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], check=True, capture_output=True, text=True)
    return int(done.stdout)


@linux
def test_a_run_on_a_cpu_reuses_its_buffers() -> None:
    assert faults('choose_device("cpu")') < faults("") / 20


@linux
@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not keep_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_memory()
