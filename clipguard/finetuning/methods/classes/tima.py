"""TIMA: text that knows the images, and an image tower that knows the text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, TextMode, cross_entropy, kl_divergence
from clipguard.finetuning.methods.classes.pmg_aft import PMGAFT

MarginMode = Literal["distance", "similarity", "constant", "none"]
MHEForm = Literal["bounded", "inverse"]
CLOSEST = 1e-6  # squared distance; smaller ones count as this, since 1/d^2 of two equal texts is infinite


@dataclass(frozen=True)
class TIMA(Method):
    """Text-image mutual awareness (Ma et al. 2024).

    An implementation of the published idea, not a reproduction: there is no official code, and of the equations only
    MHE's form was available to us. The others are reconstructed from the abstracts.

    L = L_TAM + lam_takd L_TAKD + lam_iat (lam_mhe L_MHE + lam_iakd L_IAKD)

    The text gets the gradient of `mhe` and `iakd` only, the image tower that of `tam` and `takd` only. In their
    equations z' are embeddings of adversarial images, z0 of clean images under the frozen original tower, t the tuned
    and t0 the original texts, all of unit length; s is CLIP's logit scale, sg = stop-gradient. With margin 0, both KD
    weights 0 and frozen text it is TeCoA.

    Args:
        text: what is tuned (which of them the paper tunes is not known to us): "head" (a residual linear map, zero at
            start), "encoder" (the text tower), "free" (one vector per training class; scores no other), or nothing:
            "frozen", "laat" (LAAT's closed-form expansion instead of MHE and IAKD).
        text_lr: peak learning rate of the text side; by default 1e-3, and 1e-6 for "encoder".
        margin_mode: of TAM. "distance": larger margins between more distant texts; "similarity": between more similar
            ones; "constant"; "none". The paper's choice is not known to us; its name, "text-distance based", suggests
            the first.
        margin: of TAM: mean margin, in cosines.
        alpha, mhe_form: of MHE; see `hyperspherical_energy`.
        lam_mhe, lam_iakd, lam_iat, lam_takd: weights, at least 0; a term without weight is not computed.
        kd_scale, kd_temperature: s_kd and T of IAKD and TAKD; by default the model's logit scale, which is 100 for
            CLIP, and 1.
        takd_student: the images that TAKD holds: "adversarial" (z') or "clean".
        takd_kind: "logits", or "feature" for the cosine of embeddings.
        schedule: "joint": one step on the whole loss; "iat_first": text only for the first `iat_share` of the steps,
            then it is frozen and the image tower trained.
        iat_share: above 0 and below 1.
        attack_loss: "ce": the attack sees no margin; "margin": it maximises L_TAM.

    Presets: TIMA's own settings are not known to us. "pmg-aft" are those of the closest method it is compared with,
    "pmg-aft-eps4" the same with FARE's stronger attack, since large eps are what TIMA is for.
    """

    text: TextMode = "head"
    text_lr: float | None = None
    margin_mode: MarginMode = "distance"
    margin: float = 0.02
    alpha: float = 2.0
    mhe_form: MHEForm = "bounded"
    lam_mhe: float = 1.0
    lam_iakd: float = 1.0
    lam_iat: float = 1.0
    lam_takd: float = 1.0
    kd_scale: float | None = None
    kd_temperature: float = 1.0
    takd_student: Literal["adversarial", "clean"] = "adversarial"
    takd_kind: Literal["logits", "feature"] = "logits"
    schedule: Literal["joint", "iat_first"] = "joint"
    iat_share: float = 0.2
    attack_loss: Literal["ce", "margin"] = "ce"

    name: ClassVar[str] = "tima"
    summary: ClassVar[str] = "spread texts, adaptive margins, distillation both ways (Ma et al. 2024; reconstructed)"
    citation: ClassVar[str] = (
        "Ma et al., TIMA: Text-Image Mutual Awareness for Balancing Zero-Shot Adversarial Robustness and "
        "Generalization Ability, AAAI 2026, doi 10.1609/aaai.v40i29.39603, arXiv 2405.17678"
    )
    presets: ClassVar[Presets] = {
        "pmg-aft": PMGAFT.presets["paper"],
        "pmg-aft-eps4": {**PMGAFT.presets["paper"], "eps": 4.0, "attack_steps": 10},
    }

    def __post_init__(self) -> None:
        """Raises FinetuneError for options that contradict each other."""
        for option in ("alpha", "kd_scale", "kd_temperature"):
            value = getattr(self, option)
            if value is not None and value <= 0:
                raise FinetuneError(f"tima: {option} must be above 0.")
        if not 0 < self.iat_share < 1:
            raise FinetuneError(f"tima: iat_share is a share of the steps, above 0 and below 1, not {self.iat_share}.")
        if self.schedule == "iat_first" and not self._text_weights():
            raise FinetuneError(
                "tima(schedule=iat_first) needs a text to tune first: text=head, encoder or free, and weights above 0."
            )

    def text_mode(self) -> TextMode:
        """`text`."""
        return self.text

    def text_learning_rate(self) -> float:
        """`text_lr`, or the default of the mode."""
        return super().text_learning_rate() if self.text_lr is None else self.text_lr

    def weights(self, progress: float) -> dict[str, float]:
        """Weights of the terms that are computed at this point: those of the text, of the image tower or of both."""
        text, images = self._text_weights(), {"tam": 1.0} | ({"takd": self.lam_takd} if self.lam_takd else {})
        if self.schedule == "joint":
            return text | images
        return text if progress < self.iat_share else images

    def _text_weights(self) -> dict[str, float]:
        """Those of MHE and IAKD, as far as they are above 0; none for a text that is not tuned."""
        weights = {"mhe": self.lam_iat * self.lam_mhe, "iakd": self.lam_iat * self.lam_iakd}
        return {name: w for name, w in weights.items() if w and self.text in ("head", "encoder", "free")}

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:
        """For TAM labels and adversarial images, for either distillation original clean embeddings."""
        needs_of: dict[str, set[Need]] = {
            "mhe": set(),
            "iakd": {"original_clean"},
            "tam": {"labels", "adversarial"},
            "takd": {"original_clean", self.takd_student},
        }
        return frozenset().union(*(needs_of[name] for name in self.weights(progress)))

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) cross-entropy without or with margins, by `attack_loss`."""
        return self._margin_loss(adversarial, batch, 0.0 if self.attack_loss == "ce" else self.margin)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """`mhe` and `iakd` while the text is trained, `tam` and `takd` while the image tower is; none of weight 0."""
        compute = {"mhe": self.mhe, "iakd": self.iakd, "tam": self.tam, "takd": self.takd}
        return {name: weight * compute[name](batch) for name, weight in self.weights(progress).items()}

    def mhe(self, batch: Batch) -> Tensor:
        """Minimum hyperspherical energy, which spreads the texts.

        L_MHE = mean over j != k of 1 / (1 + ||t_j - t_k||^alpha), or of 1 / ||t_j - t_k||^alpha, by `mhe_form`. With
        IAKD it is what the AAAI version calls SC-MHE.
        """
        return hyperspherical_energy(batch.text, self.alpha, self.mhe_form)

    def iakd(self, batch: Batch) -> Tensor:
        """Image-aware distillation, which keeps what texts mean to images.

        L_IAKD = mean_i T^2 KL(softmax(s_kd cos(z0_i, t0) / T) || softmax(s_kd cos(z0_i, t) / T)).
        """
        z0 = _unit(batch.original_clean)
        return self._distil(batch, z0, batch.text)

    def tam(self, batch: Batch) -> Tensor:
        """Text-aware margins, called ASAM by the AAAI version.

        L_TAM = mean_i CE(s (cos(z'_i, sg t_k) + m_{y_i k}), y_i), m = `margins`.
        """
        assert batch.adversarial is not None
        return self._margin_loss(batch.adversarial, batch, self.margin).mean()

    def takd(self, batch: Batch) -> Tensor:
        """Text-aware distillation, which keeps what images mean to texts.

        L_TAKD = mean_i T^2 KL(softmax(s_kd cos(z0_i, t0) / T) || softmax(s_kd cos(z'_i, t0) / T)), or for
        `takd_kind=feature` mean_i (1 - cos(z'_i, z0_i)); `takd_student` says which images z' are.
        """
        student = _unit(batch.adversarial if self.takd_student == "adversarial" else batch.clean)
        if self.takd_kind == "feature":
            return (1 - (student * _unit(batch.original_clean)).sum(dim=1)).mean()
        return self._distil(batch, student, batch.original_text)

    def _margin_loss(self, embeddings: Tensor, batch: Batch, margin: float) -> Tensor:
        """(B,) TAM, which is plain cross-entropy without margins; no gradient to the text."""
        fixed = replace(batch, text=batch.text.detach())
        logits = fixed.logits(embeddings)
        if margin and self.margin_mode != "none":
            assert batch.labels is not None
            logits = logits + batch.logit_scale * margins(fixed.text, self.margin_mode, margin)[batch.labels]
        return cross_entropy(logits, batch.labels)

    def _distil(self, batch: Batch, images: Tensor, text: Tensor) -> Tensor:
        """What clean images are under the original model, into images and text, unit rows."""
        scale = batch.logit_scale if self.kd_scale is None else self.kd_scale
        teacher = _unit(batch.original_clean)
        return distillation(teacher, batch.original_text, images, text, scale, self.kd_temperature)


def hyperspherical_energy(text: Tensor, alpha: float = 2.0, form: MHEForm = "bounded") -> Tensor:
    """Minimum hyperspherical energy of class texts (C, D), unit rows: mean of e(||t_j - t_k||) over pairs j != k.

    "bounded": e(d) = 1 / (1 + d^alpha), which a review of TIMA quotes with alpha = 2; then in [1/5, 1], because
    d^2 = 2 - 2 cos is in [0, 4]. "inverse": e(d) = 1 / d^alpha, the Riesz energy of Liu et al. (NeurIPS 2018, arXiv
    1805.09298), with d no less than 1e-3.
    """
    squared = off_diagonal(2 - 2 * text @ text.T).clamp(min=CLOSEST)
    power = squared.pow(alpha / 2)
    return (1 / (1 + power) if form == "bounded" else 1 / power).mean()


def distillation(
    teacher_images: Tensor, teacher_text: Tensor, images: Tensor, text: Tensor, scale: float, temperature: float
) -> Tensor:
    """mean_i T^2 KL(softmax(scale z_i t / T) || softmax(scale z'_i t' / T)) (Hinton et al. 2015), teacher first.

    Images (B, D) and texts (C, D) enter as they are. Both of TIMA's distillations have this form by inference: the
    paper says what distils into what, and no more.
    """
    teacher = scale / temperature * teacher_images @ teacher_text.T
    student = scale / temperature * images @ text.T
    return temperature**2 * kl_divergence(teacher, student).mean()


def margins(text: Tensor, mode: MarginMode, mean: float) -> Tensor:
    """Margin of every wrong class (C, C), in cosines: zero on the diagonal, `mean` on average off it.

    m_yk = mean * w_yk / (mean of w off the diagonal), with w = ||t_y - t_k|| for "distance", 1 + cos(t_y, t_k) for
    "similarity" and 1 for "constant". Ours: the paper's formula is not known to us.
    """
    cosines = text @ text.T
    if mode == "distance":
        weights = (2 - 2 * cosines).clamp(min=0).sqrt()
    else:
        weights = 1 + cosines if mode == "similarity" else torch.ones_like(cosines)
    return (mean * weights / off_diagonal(weights).mean()).fill_diagonal_(0)


def off_diagonal(matrix: Tensor) -> Tensor:
    """(C * (C - 1),) entries of a square matrix off its diagonal, row by row.

    By their places, which are known; to choose them by a mask, a GPU would be waited for.
    """
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()


def _unit(embeddings: Tensor | None) -> Tensor:
    assert embeddings is not None
    return F.normalize(embeddings, dim=-1)
