"""Robust test-time prompt tuning (Sheng et al., CVPR 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import Backward, Classifier, Defense, Prompts, View
from clipguard.defenses.context import ContextEncoder
from clipguard.defenses.copies import outputs_of_copies
from clipguard.defenses.draws import RowDraws
from clipguard.defenses.options import above, at_least, between
from clipguard.defenses.resampling import linear, resampled

WORDS = "a photo of a"
AREA, ASPECT, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of torchvision's RandomResizedCrop
Crops = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # top, left, height, width, whether flipped; (B, N) each


@dataclass(frozen=True)
class RTPT(Defense):
    """Tunes the prompt for each image to be sure of views of it, and weights views by how much they agree (section 3).

    The image and `views` - 1 random crops of it, stretched to its size and mirrored at random, are encoded. One step of
    AdamW on the embeddings of the words "a photo of a" lowers the mean entropy of the predictions of the `selected`
    share of views that are surest. A view's reliability is the mean of its `neighbours` largest cosines with the other
    views; its weight the softmax of reliabilities over `temperature`; the output is the weighted sum of the views'
    logits under the tuned prompt.

    An attack can take the gradient through the views, with the tuned prompt, the selection and the weights as constants
    of the point at hand.

    Decided here: no AugMix, as in the authors' code for the ImageNet family of sets, while it applies AugMix to others;
    a view is not its own neighbour (they exclude cosines of 1 or more, which float rounding may miss); the prompt is
    always "a photo of a NAME.", as theirs, whatever the templates of the run. Views are encoded once: only the text
    changes. Passes of the text tower come on top of `cost`: of every class one backward and one forward for each image,
    and two forward for all images together.

    Attributes:
        views: of an image, itself among them.
        selected: the share of views that the prompt is tuned on.
        step_size: of AdamW, whose weight decay is torch's.
        neighbours: that a view's reliability is the mean of.
        temperature: of the weights.
    """

    name: ClassVar[str] = "r-tpt"
    summary: ClassVar[str] = "prompt tuned on views of each image (Sheng et al. 2025)"
    citation: ClassVar[str] = (
        "Sheng, Liang, Wang and He. R-TPT: Improving Adversarial Robustness of Vision-Language Models through "
        "Test-Time Prompt Tuning. CVPR 2025. arXiv:2504.11195"
    )
    random: ClassVar[bool] = True
    backwards: ClassVar[tuple[Backward, ...]] = ("surrogate",)
    embeds: ClassVar[bool] = True
    views: int = 64
    selected: float = 0.1
    step_size: float = 5e-3
    neighbours: int = 20
    temperature: float = 0.01

    def __post_init__(self) -> None:
        at_least(self, views=2, step_size=0, neighbours=1)
        between(self, selected=(0, 1))
        above(self, selected=0, temperature=0)

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        ContextEncoder(self._prompts(classifier), WORDS, self.name)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return self.views, 0

    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        prompts = self._prompts(classifier)
        features = self.features(classifier, x, view)
        with torch.autocast(x.device.type, enabled=False):
            text = self.tuned(ContextEncoder(prompts, WORDS, self.name), prompts.model, features.detach())
            weighted = [
                weights @ _logits(prompts.model, views, rows)
                for views, rows, weights in zip(features, text, map(self.weights, features.detach()), strict=True)
            ]
        return torch.stack(weighted)

    def features(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """(B, views, D), float32, of unit length; of the image itself first."""
        crops = random_crops(view.draws.rows(x), self.views - 1, x.shape[-2], x.shape[-1])

        def copy(images: Tensor, number: int) -> Tensor:
            return images if number == 0 else _cropped(images, crops, number - 1)

        outputs = outputs_of_copies(classifier.embed, x, view, self.views, copy, least_rows=classifier.least_rows)
        return torch.stack([out.float() for out in outputs], dim=1)

    def tuned(self, encoder: ContextEncoder, model: nn.Module, features: Tensor) -> list[Tensor]:
        """Class embeddings (C, D) for each image, after the step, from the features (B, views, D) of its views."""
        text = encoder.encode(encoder.context)
        context = nn.Parameter(encoder.context.repeat(len(features), 1, 1))
        context.grad = encoder.pulled_back(torch.stack([self._text_gradient(model, f, text) for f in features]))
        torch.optim.AdamW([context], lr=self.step_size).step()
        return [encoder.encode(one) for one in context.detach()]

    def weights(self, features: Tensor) -> Tensor:
        """(views,), of the views of one image, from their features (views, D)."""
        cosines = (features @ features.T).fill_diagonal_(-math.inf)
        nearest = cosines.topk(min(self.neighbours, self.views - 1), dim=1).values
        return (nearest.mean(dim=1) / self.temperature).softmax(dim=0)

    def _text_gradient(self, model: nn.Module, features: Tensor, text: Tensor) -> Tensor:
        """(C, D), of the mean entropy of the surest views of one image with respect to the class embeddings."""
        leaf = text.clone().requires_grad_()
        with torch.enable_grad():
            log_p = _logits(model, features, leaf).log_softmax(dim=1)
            entropies = -(log_p.exp() * log_p).sum(dim=1)
            surest = entropies.topk(max(1, int(self.views * self.selected)), largest=False).values
            return torch.autograd.grad(surest.mean(), leaf)[0]

    def _prompts(self, classifier: Classifier) -> Prompts:
        if classifier.prompts is None:
            raise DefenseError(f"Defence {self.name!r} tunes prompts, and this classifier has no text side to tune.")
        return classifier.prompts


def random_crops(draws: RowDraws, count: int, height: int, width: int) -> Crops:
    """Crops of images, and which are flipped, as torchvision's RandomResizedCrop and a flip draw them.

    A crop has a share of the area and an aspect ratio; the first of ten that lies inside the image counts, and if none
    does the whole image.
    """
    share, ratio = (draws.uniform(count, TRIES) for _ in range(2))
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * share)
    aspect = torch.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * ratio)
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = fits.long().cumsum(dim=2).eq(0).sum(dim=2).clamp_max(TRIES - 1)[..., None]
    none = ~fits.any(dim=2)
    w = w.gather(2, first).squeeze(2).masked_fill(none, width)
    h = h.gather(2, first).squeeze(2).masked_fill(none, height)
    down, right, flip = (draws.uniform(count) for _ in range(3))
    return (down * (height - h + 1)).long(), (right * (width - w + 1)).long(), h, w, flip < 0.5


def _cropped(images: Tensor, crops: Crops, number: int) -> Tensor:
    """One crop of each image, stretched to the image's size by linear interpolation."""
    top, left, h, w, flip = (part[:, number] for part in crops)
    height, width = images.shape[-2:]
    columns = linear(left, w, width, width)
    return resampled(images, linear(top, h, height, height), torch.where(flip[:, None, None], columns.flip(1), columns))


def _logits(model: nn.Module, features: Tensor, text: Tensor) -> Tensor:
    """(N, C) of features (N, D) and class embeddings (C, D), with the model's scale and bias."""
    scale, bias = model.logit_scale, getattr(model, "logit_bias", None)
    assert isinstance(scale, Tensor)
    logits = scale.detach().float().reshape(()).exp() * features @ text.T
    return logits if bias is None else logits + bias.detach().float().reshape(())
