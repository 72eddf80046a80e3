"""The captions of a batch in training: embedded by the text towers, and edited by the attack on characters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from clipguard.data.captions import Captions
from clipguard.finetuning.captions.character_attack import edit_captions
from clipguard.finetuning.captions.encoder import CaptionEncoder, token_ids, vocabulary
from clipguard.finetuning.data.batches import ImageBatch
from clipguard.finetuning.methods.base import Batch, Method, Need
from clipguard.finetuning.tuned.tuned_model import TunedModel
from clipguard.models.loading import LoadedModel


@dataclass(frozen=True)
class CaptionSide:
    """What an objective needs for captions.

    Attributes:
        method: says how captions are edited, and what the edits maximise.
        encoder: the tokenizer and the original text tower.
        vocabulary: words that edits must not make.
    """

    method: Method
    encoder: CaptionEncoder
    vocabulary: frozenset[str]

    @staticmethod
    def of_run(loaded: LoadedModel, captions: Captions, method: Method) -> CaptionSide:
        """For the captions of a run; says if they are longer than the model's context."""
        encoder, edits = CaptionEncoder(loaded), method.edits()
        encoder.say_cut(captions)
        return CaptionSide(method, encoder, vocabulary(captions) if edits and edits.constrain else frozenset())

    def embed(
        self, batch: Batch, model: TunedModel, images: ImageBatch, forward: nn.Module, needs: frozenset[Need]
    ) -> tuple[Batch, Tensor | None]:
        """The batch with its captions, and the mean objective of the attack on them, where there is one.

        Args:
            batch: to be completed.
            model: what is trained, or scored.
            images: with their captions.
            forward: the model as accelerate wrapped it, through which gradients flow; or the model itself.
            needs: which embeddings.
        """
        captions = images.captions
        assert captions is not None
        tokens = self.encoder.tokens(captions)
        here = tokens.to(images.pixels.device)
        trained = bool(model.text_parameters())
        original = None if trained and "original_captions" not in needs else self.encoder.original(here, captions)
        batch = replace(batch, original_captions=original, caption_ids=token_ids(tokens).to(here.device))
        if "captions" in needs:
            batch = replace(batch, captions=forward(tokens=here) if trained else original)
        if "edited_captions" not in needs:
            return batch, None
        edited, found = self._edit(batch, model, captions, images.keys, here.device)
        return replace(batch, edited_captions=forward(tokens=self.encoder.tokens(edited).to(here.device))), found

    @torch.no_grad()
    def _edit(
        self, batch: Batch, model: TunedModel, captions: list[str], keys: list[int], device: torch.device
    ) -> tuple[list[str], Tensor]:
        """The attack on captions, by the text tower in training."""
        edits = self.method.edits()
        assert edits is not None

        def score(rows: list[list[str]]) -> Tensor:
            # Many candidates have the tokens of another: the case of letters is none of them.
            tokens = self.encoder.tokens([text for row in rows for text in row])
            different, places = torch.unique(tokens, dim=0, return_inverse=True)
            embeddings = model(tokens=different.to(device))[places.to(device)]
            return self.method.edit_objective(embeddings.unflatten(0, (len(rows), -1)), batch)

        with record_function("clipguard: attack"):
            return edit_captions(captions, keys, edits, self.vocabulary, score)
