from __future__ import annotations

from functools import lru_cache

import open_clip
import pytest
import torch
from defended_models import LinearClip
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tvf

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import Prompts, View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.context import ContextEncoder
from clipguard.defenses.methods.r_tpt import RTPT, WORDS, random_crops
from clipguard.defenses.registry import parse_defenses

NAMES = ["cat", "sea lion", "dog", "green apple"]
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIEW = View()


class Clip(nn.Module):
    """What a run has: an open_clip model's image tower and the fixed text of its classes."""

    least_rows = 1

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        tokens = open_clip.get_tokenizer("ViT-B-32", context_length=12)([f"{WORDS} {name}." for name in NAMES])
        self.register_buffer("text", model.encode_text(tokens, normalize=True).detach().T)

    def embed(self, pixels: Tensor, *, normalize: bool = True) -> Tensor:
        return self.model.encode_image(pixels, normalize=normalize)

    def score(self, features: Tensor) -> Tensor:
        return self.model.logit_scale.exp() * features @ self.text

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.embed(pixels))


@lru_cache
def classifier(kind: type[nn.Module] = open_clip.CLIP, **text: object) -> Undefended:
    torch.manual_seed(0)
    model = kind(embed_dim=16, vision_cfg=VISION, text_cfg={**TEXT, **text}).eval().requires_grad_(False)
    with torch.no_grad():
        model.logit_scale.fill_(3)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=12)
    return Undefended(Clip(model), Prompts(model, tokenizer, NAMES, ["{}"]))


def pictures(n: int) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def encoder(of: Undefended) -> ContextEncoder:
    assert of.prompts is not None
    return ContextEncoder(of.prompts, WORDS, "r-tpt")


TOWERS: list[tuple[type[nn.Module], dict[str, object]]] = [
    (open_clip.CLIP, {}),
    (open_clip.CustomTextCLIP, {}),
    (open_clip.CustomTextCLIP, {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}),
    (open_clip.CustomTextCLIP, {"embed_cls": True}),
]


@pytest.mark.parametrize(("kind", "text"), TOWERS)
def test_a_prompt_with_the_embeddings_of_other_words_is_the_prompt_with_these_words(
    kind: type[nn.Module], text: dict[str, object]
) -> None:
    of = classifier(kind, **text)
    assert of.prompts is not None
    model, tokenizer = of.prompts.model, of.prompts.tokenizer
    own = encoder(of)
    torch.testing.assert_close(own.encode(own.context), of.text().T)
    embedding = getattr(model, "text", model).token_embedding
    words = "two drawings without any"
    context = embedding(tokenizer([words])[0, 1:5])
    wanted = model.encode_text(tokenizer([f"{words} {name}." for name in NAMES]), normalize=True)
    torch.testing.assert_close(own.encode(context), wanted)
    torch.testing.assert_close(own.encode(own.context), of.text().T)  # nothing is left behind


def test_gradients_are_pulled_back_to_the_context() -> None:
    own = encoder(classifier())
    directions = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(2))
    got = own.pulled_back(directions)
    step = torch.randn(own.context.shape, generator=torch.Generator().manual_seed(3))
    h = 1e-4
    change = (own.encode(own.context + h * step) - own.encode(own.context - h * step)) / (2 * h)
    slopes = [(one * step).sum() for one in got]
    torch.testing.assert_close(torch.stack(slopes), (directions * change).sum(dim=(1, 2)), rtol=2e-2, atol=2e-2)


def test_views_are_crops_of_torchvision() -> None:
    x, defense = pictures(2), RTPT(views=9)
    tops, lefts, heights, widths, flips = random_crops(VIEW.draws.rows(x), 8, 16, 16)
    assert 0 < flips.sum() < 16
    wanted = []
    for b, image in enumerate(x):
        views = [image]
        for top, left, h, w, flip in zip(tops[b], lefts[b], heights[b], widths[b], flips[b], strict=True):
            crop = tvf.resized_crop(image, int(top), int(left), int(h), int(w), [16, 16], antialias=False)
            views.append(crop.flip(2) if flip else crop)
        wanted.append(classifier().model.embed(torch.stack(views)))
    torch.testing.assert_close(defense.features(classifier(), x, VIEW), torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    *ours, flip = (part.flatten().float() for part in random_crops(VIEW.draws.rows(pictures(8)), 500, 200, 150))
    torch.manual_seed(0)
    image = torch.zeros(3, 200, 150)
    drawn = [RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    for mine, theirs in zip(ours, torch.tensor(drawn).float().T, strict=True):
        assert ks_2samp(mine.numpy(), theirs.numpy()).pvalue > 1e-3
    torch.testing.assert_close(flip.mean(), torch.tensor(0.5), rtol=0, atol=0.04)


def by_hand(features: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Tuned class embeddings (C, D) and weights (views,) of one image, through the text tower written out."""
    model, tokenizer = classifier().prompts.model, classifier().prompts.tokenizer
    tokens = tokenizer([f"{WORDS} {name}." for name in NAMES])
    context = nn.Parameter(model.token_embedding(tokens)[0, 1:5].clone())

    def encode() -> Tensor:
        embedded = model.token_embedding(tokens)
        embedded = torch.cat([embedded[:, :1], context.expand(4, -1, -1), embedded[:, 5:]], dim=1)
        out = model.ln_final(model.transformer(embedded + model.positional_embedding, attn_mask=model.attn_mask))
        return F.normalize(out[torch.arange(4), tokens.argmax(dim=1)] @ model.text_projection, dim=1)

    p = (model.logit_scale.exp() * features @ encode().T).softmax(dim=1)
    entropies = -(p * p.log()).sum(dim=1)
    optimizer = torch.optim.AdamW([context], lr=5e-3)
    entropies.sort().values[: views // 10].mean().backward()
    optimizer.step()
    reliabilities = []
    for i in range(views):
        others = sorted((float(features[i] @ features[j]) for j in range(views) if j != i), reverse=True)
        reliabilities.append(sum(others[:20]) / 20)
    return encode().detach(), (torch.tensor(reliabilities) / 0.01).softmax(dim=0)


def test_the_output_is_that_of_the_steps_written_out() -> None:
    x, defense = pictures(3), RTPT(views=30)
    scale = classifier().prompts.model.logit_scale.exp()
    wanted = []
    for features in defense.features(classifier(), x, VIEW):
        text, weights = by_hand(features, 30)
        wanted.append((weights[:, None] * (scale * features @ text.T)).sum(dim=0))
    got = defense.logits(classifier(), x, VIEW)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-4)
    assert (got - classifier().logits(x, VIEW)).abs().max() > 1e-2


def test_half_precision_of_the_search_is_of_the_image_tower_alone() -> None:
    """Reliabilities over 0.01 would not survive it."""
    x, defense = pictures(2), RTPT(views=30)
    features = [defense.features(classifier(), x, VIEW)]
    with torch.autocast("cpu", torch.bfloat16):
        got = defense.logits(classifier(), x, VIEW)
        features.append(defense.features(classifier(), x, VIEW))
    assert got.dtype == torch.float32
    wanted = []
    for of_image in features[1]:
        text, weights = by_hand(of_image, 30)
        wanted.append(weights @ (classifier().prompts.model.logit_scale.exp() * of_image @ text.T))
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-4)
    assert not torch.equal(*features)


def test_the_gradient_goes_through_the_views_and_takes_the_rest_as_constant() -> None:
    x, defense = pictures(1), RTPT(views=30)
    text, weights = by_hand(defense.features(classifier(), x, VIEW)[0], 30)
    crops = random_crops(VIEW.draws.rows(x), 29, 16, 16)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))

    def value(image: Tensor) -> Tensor:
        views = [image[0]]
        for top, left, h, w, flip in zip(*(part[0] for part in crops), strict=True):
            crop = tvf.resized_crop(image[0], int(top), int(left), int(h), int(w), [16, 16], antialias=False)
            views.append(crop.flip(2) if flip else crop)
        features = classifier().model.embed(torch.stack(views))
        return (weights @ (classifier().prompts.model.logit_scale.exp() * features @ text.T))[1]

    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(defense.logits(classifier(), leaf, VIEW)[0, 1], leaf)[0]
    wanted = (value(x + 1e-3 * direction) - value(x - 1e-3 * direction)) / 2e-3
    torch.testing.assert_close((gradient * direction).sum(), wanted, rtol=2e-2, atol=2e-3)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = pictures(5), defend(classifier().model, [RTPT(views=20)], classifier().prompts)
    torch.testing.assert_close(defended.logits(x[3:4], VIEW)[0], defended.logits(x, VIEW)[3], rtol=1e-4, atol=1e-4)


class NoTokens(nn.Module):
    """A text tower of another library."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(1, 1)


def letters(texts: list[str]) -> Tensor:
    """Padded on the left: the words are not where they are in the prompts."""
    return torch.tensor([[ord(c) for c in text.rjust(60)] for text in texts])


def test_it_cannot_stand_around_a_classifier_without_a_text_tower_of_open_clip() -> None:
    with pytest.raises(DefenseError, match="'r-tpt' tunes prompts, and this classifier has no text side to tune"):
        defend(LinearClip(), [RTPT()])
    with pytest.raises(DefenseError, match="this model's text tower is Linear, which has no token embeddings"):
        defend(LinearClip(), [RTPT()], Prompts(NoTokens(), letters, NAMES, ["{}"]))
    with pytest.raises(DefenseError, match="the words 'a photo of a' are not found among the tokens"):
        defend(LinearClip(), [RTPT()], Prompts(classifier().prompts.model, letters, NAMES, ["{}"]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("views=1", "views must be at least 2"),
        ("selected=0", "selected must be above 0"),
        ("selected=1.5", "selected must be from 0 to 1, not 1.5"),
        ("temperature=0", "temperature must be above 0"),
        ("neighbours=0", "neighbours must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(option: str, message: str) -> None:
    with pytest.raises(DefenseError, match=message):
        parse_defenses(f"r-tpt({option})")
