"""The noise of an image's copies: of its own, whatever the batch, the order or the model."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from clipguard.attacks.random import PerImageRandom

NAME = "certify"


class CopyNoise:
    """Standard normal numbers that depend on (seed, image, sigma) and the number of the copy alone.

    On a CPU they are drawn as those of the attacks. Elsewhere they are drawn on the device, copy by copy, since there
    a CPU would be slower than the model; another kind of device draws others.

    Args:
        seed: of the run.
        image: index in the data set.
        sigma: of the run; each has noise of its own.
        device: where the numbers are needed.
    """

    def __init__(self, seed: int, image: int, sigma: float, device: torch.device) -> None:
        self._device, self._generator = device, None
        name = f"{NAME}/{sigma!r}"
        if device.type == "cpu":
            self._rows = PerImageRandom(seed, name, [image], [0], device)
        else:
            key = hashlib.sha256(f"{seed}/{image}/{name}".encode()).digest()
            self._generator = torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big") >> 2)

    def normal(self, n: int, shape: tuple[int, ...]) -> Tensor:
        """(n, *shape) float32: the next n copies' noise, the same in one call or in several."""
        if self._generator is None:
            return self._rows.normal(n, *shape)[0]
        copies = torch.empty(n, *shape, device=self._device)
        for copy in copies:
            copy.normal_(generator=self._generator)
        return copies
