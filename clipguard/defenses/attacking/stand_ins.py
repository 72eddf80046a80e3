"""A defended classifier as modules from pixels to logits: one that decides, and one that attacks search on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.defenses.base import Backward, Classifier, View
from clipguard.defenses.classifiers import Defended
from clipguard.defenses.draws import Draws, Stream, content


class StandIn(nn.Module):
    """A module of pixels (B, 3, H, W) in [0,1] with the parameters of a model, which the engine looks at.

    Args:
        classifier: with its defences.
        model: what is inside of them all.
    """

    def __init__(self, classifier: Classifier, model: nn.Module) -> None:
        super().__init__()
        self.classifier, self.model = classifier, model
        self.least_rows = classifier.least_rows
        self.train(model.training)


class Judge(StandIn):
    """What a defended classifier takes images for.

    Of a deterministic one its logits; of a random one the shares of `votes` runs that say each class: the largest
    decides. Equal shares count for the class with the lower number.

    Args:
        classifier: with its defences.
        model: what is inside of them all.
        draws: whose random numbers; run k has those with number k.
        votes: runs of a random one; 0 for a deterministic one.
    """

    def __init__(self, classifier: Classifier, model: nn.Module, draws: Draws, votes: int) -> None:
        super().__init__(classifier, model)
        self.draws, self.votes = draws, votes
        self._originals: dict[int, int] = {}

    def tell(self, x: Tensor, originals: Tensor) -> None:
        """From now on images x (B, C, H, W) are judged with the draws of those that they were made of."""
        self._originals = dict(zip(content(x).tolist(), content(originals).tolist(), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        if not self.votes:
            return self.classifier.logits(x, View(self.draws))
        own = content(x).tolist()
        keys = torch.tensor([self._originals.get(key, key) for key in own], device=x.device)
        shares: list[Tensor] = []
        for number in range(self.votes):
            logits = self.classifier.logits(x, View(replace(self.draws, number=number, keys=keys)))
            vote = F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits)
            shares.append(vote + 0 * logits.sum(dim=1, keepdim=True))  # NaN stays NaN
        return torch.stack(shares).mean(dim=0)


@dataclass(frozen=True)
class Relaxed:
    """One of the further objectives of a defence in a chain: see `Defense.relaxations`."""

    defended: Defended
    name: str

    def logits(self, x: Tensor, view: View) -> Tensor:
        """(B, classes) of what the objective looks at."""
        defense = self.defended.defense
        return defense.relaxed(self.name, self.defended.classifier, x, view.of(defense, x))


class Search(StandIn):
    """What attacks search on: a defended classifier, or an objective in its place.

    Of a random one the logarithm of the mean softmax of `draws` runs (expectation over transformations; Athalye et al.
    2018), which is what a vote of many decides by. Every point has draws of its own, which are none of a judge's.

    Args:
        classifier: with its defences.
        model: what is inside of them all.
        seed: of the run.
        backward: what its gradient is.
        draws: runs of a random one; 0 for a deterministic one.
        relaxed: an objective in place of the logits.
        own: see `View`.
    """

    def __init__(
        self,
        classifier: Classifier,
        model: nn.Module,
        seed: int,
        backward: Backward = "identity",
        draws: int = 0,
        relaxed: Relaxed | None = None,
        *,
        own: bool = False,
    ) -> None:
        super().__init__(classifier, model)
        self.seed, self.draws, self.relaxed = seed, draws, relaxed
        self.view = View(backward=backward, own=own)

    def forward(self, x: Tensor) -> Tensor:
        target = self.relaxed or self.classifier
        stream: Stream = "search"
        views = (replace(self.view, draws=Draws(self.seed, stream, number)) for number in range(self.draws or 1))
        logits = [target.logits(x, view) for view in views]
        if not self.draws:
            return logits[0]
        return torch.stack([one.log_softmax(dim=1) for one in logits]).logsumexp(dim=0)


def layers(classifier: Classifier) -> list[Defended]:
    """The defended classifiers inside each other, the outermost first."""
    found: list[Defended] = []
    while isinstance(classifier, Defended):
        found.append(classifier)
        classifier = classifier.classifier
    return found
