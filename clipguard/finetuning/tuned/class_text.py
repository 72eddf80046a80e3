"""Class texts in training: embeddings, tuned or not, and how they become part of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Set

import torch
from torch import Tensor, nn

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.captions.encoder import embed_texts
from clipguard.finetuning.methods.base import NEGATIVE_PROMPT, Need, TextMode
from clipguard.models.loading import LoadedModel
from clipguard.models.text.encoding import class_rows, encode_prompts, tokenize
from clipguard.models.text.tuned import ORIGINAL_FILE, TEXT_FILE, LaatMap, LinearMap, TableMap, TextMap


class ClassText(nn.Module):
    """Class embeddings of the training classes, as the exported checkpoint will compute them.

    Calling it gives (C, D) unit rows, with gradients to what is tuned. Tuned maps act on the embedding of every prompt,
    before the mean over templates, so that they hold for any class name and any templates. Modes:

    - "frozen": as the model came.
    - "head": `LinearMap`, a residual linear map, zero at first.
    - "encoder": a copy of the text tower; every prompt passes through it at every call.
    - "free": `TableMap`, one vector per training class, the original ones at first.
    - "laat": `LaatMap`, LAAT's closed-form expansion fitted to the training prompts; nothing is trained.

    It stays in eval mode, as in the exported checkpoint. Its state dict holds the map or the tower, and not what the
    model, the class names and the templates determine.

    Without class names it has no rows, and only its tower is of use.

    Raises:
        ModelError: for prompts that cannot be; see `tokenize`.
        FinetuneError: when the text of the model is mapped already and the mode is not "frozen".
    """

    original: Tensor
    prompts: Tensor | None  # as the text tower came, which a map takes further
    original_prompts: Tensor | None  # as the model came, map included; of methods that need each prompt
    tokens: Tensor | None
    negative: Tensor | None

    def __init__(
        self,
        loaded: LoadedModel,
        class_names: Sequence[str],
        templates: Sequence[str],
        mode: TextMode,
        needs: Set[Need] = frozenset(),
    ) -> None:
        """`needs`: of the method, which may ask for more than a row a class."""
        super().__init__()
        if loaded.text_map is not None and mode != "frozen":
            raise FinetuneError(
                f"The text of {loaded.info.name} is tuned already ({loaded.info.text}): choose text=frozen, or start"
                " from a model without such a map."
            )
        self.class_names = tuple(class_names)
        self.map: TextMap | None = loaded.text_map
        self.tower: nn.Module | None = None
        original = tokens = prompts = torch.empty(0, 0, device=loaded.device)
        if class_names:
            tokens = tokenize(loaded.tokenizer, class_names, templates).to(loaded.device)
            with torch.no_grad():
                prompts = encode_prompts(loaded.model, tokens, len(class_names))
            original = loaded.text_features(class_names, templates).T.contiguous()
        if mode == "encoder":
            self.tower = _copy_text_tower(loaded.model)
        elif mode != "frozen":
            self.map = _make_map(mode, prompts, original, self.class_names).to(loaded.device)
        self.register_buffer("original", original, persistent=False)
        keeps_prompts = self.map is not None or "class_prompts" in needs
        self.register_buffer("prompts", prompts if keeps_prompts else None, persistent=False)
        text_map = loaded.text_map
        with torch.no_grad():
            as_it_came = prompts if text_map is None or not class_names else text_map(prompts, self.class_names)
        self.register_buffer("original_prompts", as_it_came if "class_prompts" in needs else None, persistent=False)
        self.register_buffer("tokens", None if self.tower is None else tokens, persistent=False)
        negative = None
        if "negative_text" in needs:
            negative = loaded.text_features(class_names, [NEGATIVE_PROMPT]).T.contiguous()
        self.register_buffer("negative", negative, persistent=False)
        self.eval()

    def tuned_parameters(self) -> list[nn.Parameter]:
        """What is trained: none for "frozen" and "laat", whose embeddings are the same at every call."""
        return [p for p in self.parameters() if p.requires_grad]

    def train(self, mode: bool = True) -> ClassText:  # noqa: ARG002
        """Stay in eval mode."""
        return super().train(False)

    def forward(self) -> Tensor:
        """(C, D) unit rows, float32."""
        if (self.tower is None and self.map is None) or not self.class_names:
            return self.original
        return class_rows(self.class_prompts())

    def class_prompts(self) -> Tensor:
        """(C, T, D) unit rows, float32: those whose mean is a class; of frozen text only if they were asked for."""
        if self.tower is not None:
            assert self.tokens is not None
            return encode_prompts(self.tower, self.tokens, len(self.class_names))
        assert self.prompts is not None
        if self.map is None:
            return self.prompts
        mapped: Tensor = self.map(self.prompts, self.class_names)
        return mapped

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, D) of any texts by the tower in training, not normalised, from their tokens (B, L)."""
        assert self.tower is not None
        return embed_texts(self.tower, tokens)

    @torch.no_grad()
    def export(self, model: nn.Module) -> dict[str, bytes]:
        """Put the tuned text into an open_clip model, its text tower as it came; returns files to write beside it.

        A tuned head is folded into the last linear layer of the text tower and a tuned tower replaces the old one: the
        result is a plain open_clip checkpoint with tuned text for any class name, and the returned
        `original_text.safetensors` holds what changed, as it was. What cannot be folded (a head on a tower without
        such a layer, a table, LAAT's map) is returned as `clipguard_text.safetensors`, which clipguard's `load_model`
        applies and open_clip ignores. Frozen text leaves nothing to write.
        """
        from safetensors.torch import save

        before = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("visual.")}
        files = {}
        if self.tower is not None:
            tuned = {name: p for name, p in self.tower.named_parameters() if p.requires_grad}
            model.load_state_dict(tuned, strict=False)
        elif self.map is not None and not (isinstance(self.map, LinearMap) and fold(self.map.weight, model)):
            files[TEXT_FILE] = self.map.to_bytes()
        after = dict(model.named_parameters())
        changed = {name: p.cpu().contiguous() for name, p in before.items() if not torch.equal(p, after[name])}
        if changed:
            files[ORIGINAL_FILE] = save(changed)
        return files


def _make_map(mode: TextMode, prompts: Tensor, original: Tensor, class_names: Sequence[str]) -> TextMap:
    size = original.shape[1]
    if mode == "laat":
        return LaatMap(size).fit(prompts)
    if mode == "head":
        return LinearMap(size)
    table = TableMap(size, class_names)
    table.rows.data.copy_(original)
    return table


def _copy_text_tower(model: nn.Module) -> nn.Module:
    """An open_clip model of its own without image tower, whose text parameters can be trained."""
    tower = copy.deepcopy(model, {id(model.visual): nn.Identity()})
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(not name.startswith(("logit_", "text_decoder.")))  # CoCa's captions are no embeddings
    return tower


@torch.no_grad()
def fold(weight: Tensor, model: nn.Module) -> bool:
    """Multiply (I + W) into the last linear layer of a text tower; False, and nothing done, if it has none.

    norm(norm(x P) (I + W)) = norm(x P (I + W)), because a positive factor on x P changes neither side. Computed in
    float64, rounded once. open_clip has P as a parameter (width, D) that multiplies from the right, or as a linear
    layer, alone or at the end of an MLP.

    Args:
        weight: W (D, D), acting on rows from the right.
        model: an open_clip model, its text tower its own (`model.text`) or among its parts.
    """
    tower = getattr(model, "text", model)
    last = getattr(tower, "text_projection", getattr(tower, "proj", None))
    if isinstance(last, nn.Sequential):
        last = last[-1]
    factor = torch.eye(len(weight), dtype=torch.float64, device=weight.device) + weight.double()
    if isinstance(last, nn.Parameter):
        last.copy_(last.double() @ factor)
    elif isinstance(last, nn.Linear):
        last.weight.copy_(factor.T @ last.weight.double())
        if last.bias is not None:
            last.bias.copy_(last.bias.double() @ factor)
    else:
        return False
    return True
