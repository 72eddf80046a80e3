"""JPEG compression (Dziugaite et al. 2016; Guo et al., ICLR 2018)."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.eps import PIXEL
from clipguard.defenses.base import Backward, Classifier, Purifier, View
from clipguard.defenses.gradients import smooth_round
from clipguard.defenses.options import between

BLOCK = 8
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF 1.02


@dataclass(frozen=True)
class JPEG(Purifier):
    """Compresses the 8-bit image as JPEG and reads it back, with Pillow (Guo et al. 2018).

    Chroma is kept at half the width and height, as Pillow does by default. Blocks of 8 x 8 pixels are those of the
    images that the defence is given: of the model's size, or native ones.

    Decided here: values are rounded to 8 bits; the authors cut them off, which darkens images that are not 8-bit ones.

    Attributes:
        quality: of the JPEG, 1 to 100.
    """

    name: ClassVar[str] = "jpeg"
    summary: ClassVar[str] = "images compressed as JPEG (Guo et al. 2018)"
    citation: ClassVar[str] = (
        "Guo, Rana, Cisse and van der Maaten. Countering Adversarial Images using Input Transformations. ICLR 2018. "
        "arXiv:1711.00117"
    )
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "surrogate")
    quality: int = 75

    def __post_init__(self) -> None:
        between(self, quality=(1, 100))

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        images = (x.clamp(0, 1) * PIXEL).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        read = np.stack([np.asarray(Image.open(_compressed(Image.fromarray(i), self.quality))) for i in images])
        return (torch.from_numpy(read).to(x.device).permute(0, 3, 1, 2).float() / PIXEL).contiguous()

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        """The same steps in float, with smooth rounding of the coefficients (Shin and Song 2017)."""
        with torch.autocast(x.device.type, enabled=False):  # a search in half precision is of the classifier alone
            return _smooth(x, self.quality)


def _compressed(image: Image.Image, quality: int) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file


@lru_cache(maxsize=8)
def _tables(quality: int) -> tuple[list[list[int]], list[list[int]]]:
    """What Pillow divides the coefficients (8, 8) of luma and of chroma by."""
    read = Image.open(_compressed(Image.new("RGB", (BLOCK, BLOCK)), quality))
    assert isinstance(read, JpegImagePlugin.JpegImageFile)
    luma, chroma = (np.reshape(read.quantization[i], (BLOCK, BLOCK)).tolist() for i in (0, 1))
    return luma, chroma


def _smooth(x: Tensor, quality: int) -> Tensor:
    height, width = x.shape[-2:]
    matrix = torch.tensor(TO_YCBCR, dtype=x.dtype, device=x.device)
    whole = F.pad(x * PIXEL, (0, -width % (2 * BLOCK), 0, -height % (2 * BLOCK)), mode="replicate")
    ycbcr = torch.einsum("ij,bjhw->bihw", matrix, whole)
    tables = [torch.tensor(table, dtype=x.dtype, device=x.device) for table in _tables(quality)]
    luma = _quantised(ycbcr[:, :1] - 128, tables[0]) + 128
    chroma = _quantised(F.avg_pool2d(ycbcr[:, 1:], 2), tables[1])
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(matrix), torch.cat([luma, chroma], dim=1))
    return (rgb[:, :, :height, :width] / PIXEL).clamp(0, 1)


def _quantised(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (B, C, H, W) whose blocks have had their cosine coefficients rounded to multiples of a table's."""
    b, c, height, width = planes.shape
    blocks = planes.view(b, c, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
    k = torch.arange(BLOCK, dtype=planes.dtype, device=planes.device)
    cosines = torch.cos((2 * k + 1) * k[:, None] * math.pi / (2 * BLOCK)) / 2
    cosines[0] /= math.sqrt(2)
    coefficients = smooth_round(cosines @ blocks @ cosines.T / table) * table
    return (cosines.T @ coefficients @ cosines).transpose(3, 4).reshape(b, c, height, width)
