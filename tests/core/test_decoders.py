"""Ctrl-C while worker processes start."""

from __future__ import annotations

import signal

import pytest

from clipguard.core.environment.decoders import signals_held


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="of POSIX")
def test_an_interruption_while_processes_start_comes_afterwards() -> None:
    reached = []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs that ignore it

    def start() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)  # to this thread: others may not hold it
            reached.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert reached
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
