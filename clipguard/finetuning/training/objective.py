"""From a batch of images to a method's loss terms: embeddings, training attack, terms; only what the method needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from clipguard.attacks.engine.passes.evaluator import frozen
from clipguard.attacks.threat import ThreatModel
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.captions.side import CaptionSide
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch
from clipguard.finetuning.data.training_data import TrainingData
from clipguard.finetuning.methods.base import CAPTION_NEEDS, Batch, Method, Need, TextMode
from clipguard.finetuning.training.training_attack import Noise, TrainingAttack
from clipguard.finetuning.tuned.class_text import ClassText
from clipguard.finetuning.tuned.image_tower import FrozenTower, ImageTower, checkpoint_gradients, choose_weights
from clipguard.finetuning.tuned.patch_tokens import give_patches
from clipguard.finetuning.tuned.prompt_text import PromptText
from clipguard.finetuning.tuned.tuned_model import TunedModel
from clipguard.models.loading import LoadedModel
from clipguard.models.text.encoding import class_rows

NOISE_OF_IMAGES = 4  # as a `use` of random numbers; 0 is the attack
PATCHES: frozenset[Need] = frozenset({"clean_patches", "adversarial_patches", "original_clean_patches"})
Autocast = Callable[[], AbstractContextManager[object]]


class Terms(NamedTuple):
    """What the objective gives for a batch.

    Attributes:
        losses: terms of the loss by name, scalars; the loss is their sum.
        batch: what the method computed them from, as far as it is this process's.
        attack: mean objective of the training attack, a scalar; None without one.
        images: the batch, with adversarial images if there are any.
    """

    losses: dict[str, Tensor]
    batch: Batch
    attack: Tensor | None
    images: ImageBatch


@dataclass(frozen=True)
class Objective:
    """A method's loss for a model in training, and the attack that makes its adversarial images.

    Attributes:
        method: says what is needed, what the attack maximises, and the terms of the loss.
        original: frozen copy of the image tower as it came, for methods that ask for it.
        attack: the training attack.
        logit_scale: of the model, exp already taken.
        autocast: gives the context of mixed precision.
        noise: standard deviation of the Gaussian noise on what the tuned tower sees (Cohen et al. 2019, section 3.3),
            clean and adversarial images alike. It is one draw an image and step, on top of the adversarial image, which
            stays inside [0,1] and is made through that noise (Salman et al. 2019, SmoothAdv with one sample); nothing
            is clamped after, as nothing is where smoothing is certified. The frozen original sees images without it.
        captions: embeds and edits captions, for methods that need them.
    """

    method: Method
    original: ImageTower | None
    attack: TrainingAttack
    logit_scale: float
    autocast: Autocast
    noise: float = 0.0
    captions: CaptionSide | None = None

    def __call__(
        self,
        model: TunedModel,
        images: ImageBatch,
        progress: float,
        forward: nn.Module,
        whole: Callable[[Batch], Batch] | None = None,
    ) -> Terms:
        """The terms of the loss for a batch.

        Args:
            model: what is trained, or scored.
            images: the batch, on the model's device and in [0,1]; where it has adversarial images, there is no attack.
            progress: of the run, from 0 to 1.
            forward: the model as accelerate wrapped it, through which gradients flow; or the model itself.
            whole: makes of this process's batch that of all, from which the loss is computed.
        """
        needs = self.method.needs(progress)
        x, noise = images.pixels, self._noise(images)
        batch = self._text(model, forward, needs, images.labels)
        if needs & {"clean", "clean_patches"}:  # before the attack, which may look at it; its graph is kept
            clean, patches = _embed(forward, _noisy(x, noise), patches="clean_patches" in needs)
            batch = replace(batch, clean=clean, clean_patches=patches)
        if needs & {"original_clean", "original_clean_patches"}:
            clean, patches = self._embed_originally(x, patches="original_clean_patches" in needs)
            batch = replace(batch, original_clean=clean, original_clean_patches=patches)
        if needs & {"start", "fixed_start"}:
            batch = replace(batch, start=self._embed_start(images, noise, needs, forward))
        attack = None
        if needs & CAPTION_NEEDS:
            assert self.captions is not None
            batch, attack = self.captions.embed(batch, model, images, forward, needs)
        if needs & {"adversarial", "adversarial_patches", "original_adversarial"}:
            x_adv = images.adversarial
            if x_adv is None:
                x_adv, attack = self.perturb(model, x, images.keys, batch, noise, whole)
                images = images._replace(adversarial=x_adv)
            if needs & {"adversarial", "adversarial_patches"}:
                adversarial, patches = _embed(forward, _noisy(x_adv, noise), patches="adversarial_patches" in needs)
                batch = replace(batch, adversarial=adversarial, adversarial_patches=patches)
            if "original_adversarial" in needs:
                batch = replace(batch, original_adversarial=self._embed_originally(x_adv)[0])
        return Terms(self.method.terms(whole(batch) if whole else batch, progress), batch, attack, images)

    def perturb(
        self,
        model: TunedModel,
        x: Tensor,
        keys: list[int],
        batch: Batch,
        noise: Tensor | None = None,
        whole: Callable[[Batch], Batch] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The training attack, on the image tower in eval mode; no weight gets a gradient.

        Args:
            model: what is attacked.
            x: clean images (B, 3, H, W) in [0,1].
            keys: of each row's random numbers.
            batch: what the method's attack objective may look at.
            noise: (B, 3, H, W), which the tower sees on top of them; None: none.
            whole: see `__call__`; for methods in whose attack images meet.

        Returns:
            Adversarial images (B, 3, H, W) and the mean objective, a scalar.
        """
        design = self.method.prompt_design()
        ascending = None
        if design is not None and design.ascent and isinstance(model.text, PromptText):
            ascending = model.text.ascending(design.ascent)
        tuned = {name: getattr(batch, name) for name in ("text", "class_prompts", "clean", "captions")}
        fixed = replace(batch, **{name: value.detach() for name, value in tuned.items() if value is not None})
        tower = model.image
        meet = whole if self.method.images_meet() else None
        if meet:
            fixed = meet(fixed)

        def objective(x_adv: Tensor) -> Tensor:
            with self.autocast():
                embeddings = tower(_noisy(x_adv, noise))
            if meet:  # of all: their sum has the gradient of each process's own images
                embeddings = meet(Batch(fixed.text, fixed.text, fixed.logit_scale, adversarial=embeddings)).adversarial
            if ascending is not None:
                return ascending(lambda text: self.method.attack_objective(embeddings, fixed.with_text(text)))
            return self.method.attack_objective(embeddings, fixed)

        training = tower.training
        tower.eval()
        # Frozen, so that no activations are kept for weight gradients.
        with record_function("clipguard: attack"), frozen(tower):
            x_adv, mean_objective = self.attack(objective, x, keys)
        tower.train(training)
        return x_adv, mean_objective

    def _noise(self, images: ImageBatch) -> Tensor | None:
        """(B, 3, H, W), of each image by its key: the same when the run goes on, and for any number of processes."""
        if self.noise == 0:
            return None
        rows = Noise(images.keys, images.pixels.device, NOISE_OF_IMAGES)
        return self.noise * rows.normal(*images.pixels.shape[1:])

    def _embed_start(
        self, images: ImageBatch, noise: Tensor | None, needs: frozenset[Need], forward: nn.Module
    ) -> Tensor:
        """(B, D) of where the attack begins."""
        with torch.set_grad_enabled("start" in needs and torch.is_grad_enabled()):
            embeddings: Tensor = forward(_noisy(self.attack.start(images.pixels, images.keys), noise))
        return embeddings

    def _text(self, model: TunedModel, forward: nn.Module, needs: frozenset[Need], labels: Tensor | None) -> Batch:
        """A batch with texts and labels alone."""
        prompts = forward(prompts=True) if "class_prompts" in needs else None
        return Batch(
            text=forward() if prompts is None else class_rows(prompts),
            original_text=model.original_text(),
            logit_scale=self.logit_scale,
            labels=labels,
            class_prompts=prompts,
            original_prompts=model.text.original_prompts if isinstance(model.text, ClassText) else None,
            negative_text=model.text.negative if isinstance(model.text, ClassText) else None,
        )

    def _embed_originally(self, x: Tensor, *, patches: bool = False) -> tuple[Tensor, Tensor | None]:
        assert self.original is not None
        with torch.no_grad(), self.autocast():
            return self.original.with_patches(x) if patches else (self.original(x), None)


def _embed(forward: nn.Module, x: Tensor, *, patches: bool) -> tuple[Tensor, Tensor | None]:
    """Embeddings, and patch tokens where they are asked for, from one pass."""
    out = forward(x, patches=True) if patches else (forward(x), None)
    embeddings, tokens = out
    return embeddings, tokens


def _noisy(x: Tensor, noise: Tensor | None) -> Tensor:
    return x if noise is None else x + noise


def make_objective(
    config: FinetuneConfig,
    method: Method,
    text_mode: TextMode,
    loaded: LoadedModel,
    data: TrainingData,
    autocast: Autocast,
) -> tuple[TunedModel, Objective]:
    """The model with its trained weights chosen, and what it is trained for.

    Raises:
        FinetuneError: where the architecture does not allow `train`, `lora` or `grad_checkpointing`, or has no patches
            for a method that compares them, the text is tuned already, or a regulariser finds no classes.
        ModelError: where it takes no learned prompts.
    """
    if config.regularizer and not data.class_names:
        raise FinetuneError(
            f"`regularizer={config.regularizer}` compares predictions, but {config.dataset} has no classes here: train"
            " on labelled images, or leave it out."
        )
    visual = loaded.model.visual
    assert isinstance(visual, nn.Module)
    design, needs = method.prompt_design(), method.all_needs()
    tower = (ImageTower if design is None else FrozenTower)(visual, loaded.preprocessing).to(loaded.device)
    if needs & PATCHES:
        give_patches(visual, method.name, loaded.info.name)
    keeps_original = needs & {"original_clean", "original_adversarial", "original_clean_patches"}
    original = copy.deepcopy(tower) if keeps_original else None  # frozen and in eval mode, as all that is loaded
    text: ClassText | PromptText | None = None
    if design is None:
        choose_weights(visual, config)
        if not method.sees_images():
            visual.requires_grad_(False)
        if data.class_names or (data.captions is not None and text_mode == "encoder"):
            text = ClassText(loaded, data.class_names, data.templates, text_mode, needs)
    else:  # the weights stay frozen, as all that is loaded
        text = PromptText(loaded, data.class_names, data.templates, design, method.name)
    if config.grad_checkpointing:
        checkpoint_gradients(visual)
    attack = TrainingAttack(
        ThreatModel(config.norm), config.eps_pixels, config.attack_steps, config.attack_step, config.random_start
    )
    captions = None if data.captions is None else CaptionSide.of_run(loaded, data.captions, method)
    scale = loaded.info.logit_scale
    return TunedModel(tower, text), Objective(method, original, attack, scale, autocast, config.noise, captions)


@torch.no_grad()
def batch_accuracy(batch: Batch, embeddings: Tensor | None) -> Tensor | None:
    """Share of a batch that the model gets right, a scalar; None without labels or embeddings."""
    if batch.labels is None or embeddings is None:
        return None
    return (batch.logits(embeddings).argmax(dim=1) == batch.labels).float().mean()
