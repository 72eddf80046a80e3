"""Accelerate, set up for one run: device, precision, and the tracker that gets the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from clipguard.finetuning.config import FinetuneConfig


@contextmanager
def accelerated(config: FinetuneConfig, device: str, out: Path) -> Iterator[Accelerator]:
    """An accelerator for one run: accelerate's settings are global, and a second run may want others.

    Args:
        config: gives precision, accumulation and tracker.
        device: as of torch.
        out: where a tracker writes.
    """
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    half = config.precision == "bfloat16" or (
        config.precision == "auto" and device.startswith("cuda") and torch.cuda.is_bf16_supported()
    )
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if half else "no",
        gradient_accumulation_steps=config.accumulate,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=out,
    )
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


def start_tracker(config: FinetuneConfig, accelerator: Accelerator) -> None:
    """Begin to log to the tracker that the settings name, if any; it writes into the folder."""
    if config.tracker != "none":
        settings = {name: value for name, value in config.to_dict().items() if value is not None}
        accelerator.init_trackers("tracker", config=settings)
