"""LEAF: a text tower that keeps its embeddings when characters of a text are edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, TextMode
from clipguard.finetuning.methods.captions.edits import CharacterEdits


@dataclass(frozen=True)
class LEAF(Method):
    """Robust text encoder (LEAF, Abad Rocamora et al. 2025): FARE's idea for texts.

    L = mean_i ||t(s'_i) - t0(s_i)||^2, t of the text tower in training, t0 of the original one, not normalised; s' is
    the caption s with up to k characters inserted, replaced or deleted. Only the text tower is trained, by the run's
    optimiser, learning rate and weight decay. Images are not looked at: the settings of the attack on them are refused.

    The attack (LEAF's, after Charmer) maximises the same distance. For each edit it tries a space at `rho` random
    places (where one stands, to delete it), and at the best of them `rho` random symbols. Where the published code
    evaluates the last batch short of its last candidate (in evaluation), nothing is left out here; the unedited
    sentence is a candidate, too, so that an edit that does not help is not made. The vocabulary of `constrain`, NLTK's
    list of English words in the code, is here the whole words of CLIP's tokenizer with those of the run's own captions.

    Args:
        k: edits of a caption.
        rho: places tried for each edit, and symbols.
        constrain: whether an edit must leave fewer different words of the vocabulary (see `CharacterEdits`).

    Preset "paper": the authors' script for ViT-L/14 from `hf-hub:chs20/fare2-clip`, on captions of DataComp.
    """

    k: int = 1
    rho: int = 50
    constrain: bool = True

    name: ClassVar[str] = "leaf"
    summary: ClassVar[str] = (
        "text tower robust to edits of characters; captions or class prompts (Abad Rocamora et al. 2025)"
    )
    citation: ClassVar[str] = (
        "Abad Rocamora et al., Robustness in Both Domains: CLIP Needs a Robust Text Encoder, 2025, arXiv 2506.03355"
    )
    presets: ClassVar[Presets] = {
        "paper": {
            "optimizer": "adamw",
            "lr": 1e-5,
            "weight_decay": 1e-4,
            "warmup_steps": 1400,
            "steps": 18_750,
            "batch_size": 128,
        }
    }

    def __post_init__(self) -> None:
        for option in ("k", "rho"):
            value = getattr(self, option)
            if value != int(value) or value < 1:
                raise FinetuneError(f"leaf: {option} must be a whole number of at least 1, not {value:g}.")

    def text_mode(self) -> TextMode:
        """The text tower is trained."""
        return "encoder"

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Captions as they are, under the original tower, and edited."""
        return frozenset({"original_captions", "edited_captions"})

    def divisible(self) -> bool:
        """Yes."""
        return True

    def takes_prompts(self) -> bool:
        """Yes."""
        return True

    def edits(self) -> CharacterEdits:
        """The options."""
        return CharacterEdits(int(self.k), int(self.rho), self.constrain)

    def edit_objective(self, edited: Tensor, batch: Batch) -> Tensor:
        """(B, R) squared distance from the original embedding."""
        assert batch.original_captions is not None
        return (edited - batch.original_captions[:, None]).square().sum(dim=-1)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`distance`: squared, of the edited caption from the original embedding."""
        assert batch.edited_captions is not None
        assert batch.original_captions is not None
        return {"distance": (batch.edited_captions - batch.original_captions).square().sum(dim=-1).mean()}
