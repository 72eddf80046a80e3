"""Every check of the doctor: quiet on honest models, loud on the defence that it is there for."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_models import Linear, Wrapped, small_conv, uniform
from PIL import Image
from torch import Tensor, nn

import clipguard
from clipguard.api.doctor import doctor
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.attacks.recipes import parse_recipe
from clipguard.core.errors import AttackError
from clipguard.sanity.checks import CHECKS, Finding, counted, judge, worst
from clipguard.sanity.examination import Examination, doubled
from clipguard.sanity.probes import probe
from clipguard.sanity.subject import Subject

N, EPS = 8, 8 / 255
SHORT = parse_recipe("apgd-ce(iterations=8)")
CHEAP = tuple(CHECKS)[tuple(CHECKS).index("train-mode") : tuple(CHECKS).index("eps-order")]
Change = Callable[[Tensor, Tensor, int], Tensor]


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    data = clipguard.load_dataset("emoji-animals")
    return clipguard.load_model("tiny").classifier(data.class_names, data.templates)


@pytest.fixture(scope="module")
def batch(tiny: nn.Module) -> tuple[Tensor, Tensor]:
    """Images that tiny gets right, and their labels."""
    data, preprocess = clipguard.load_dataset("emoji-animals"), clipguard.load_model("tiny").preprocess()
    indices = data.subset(30, 0)
    x, y = torch.stack([preprocess(data.image(int(i))) for i in indices]), torch.from_numpy(data.labels[indices])
    with torch.no_grad():
        right = (tiny(x).argmax(dim=1) == y).nonzero().squeeze(1)[:N]
    assert len(right) == N
    return x[right], y[right]


def subject(model: nn.Module, batch: tuple[Tensor, Tensor], eps: float = EPS, **given: object) -> Subject:
    return Subject(Evaluator(model, 64), *batch, range(len(batch[0])), "linf", eps, **given)  # type: ignore[arg-type]


def cheap(model: nn.Module, batch: tuple[Tensor, Tensor], attack: str = SHORT.name) -> dict[str, Finding]:
    found = {finding.id: finding for finding in probe(subject(model, batch), parse_recipe(attack))}
    assert tuple(found) == CHEAP
    return found


def deep(
    check: str,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    attack: str = SHORT.name,
    eps: float = EPS,
    transfer_from: nn.Module | None = None,
) -> Finding:
    return Examination.begin(subject(model, batch, eps), parse_recipe(attack), transfer_from).finding(check)


def verdicts(found: dict[str, Finding]) -> set[str]:
    return {finding.verdict for finding in found.values()}


class Before(nn.Module):
    """A model behind something done to the images."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.change(x))
        return logits


def quantise(x: Tensor) -> Tensor:
    """Four bits, and no straight-through gradient."""
    return (x * 15).round() / 15


def jpeg(x: Tensor) -> Tensor:
    """Through PIL and back."""
    out = []
    for image in x.detach():
        file = io.BytesIO()
        Image.fromarray((255 * image).permute(1, 2, 0).round().byte().numpy()).save(file, "JPEG", quality=75)
        out.append(torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255)
    return torch.stack(out)


def resize_and_pad(x: Tensor) -> Tensor:
    """As in Xie et al. 2018: smaller by a random amount, at a random place."""
    size = x.shape[-1]
    small = int(torch.randint(size - 8, size, ()))
    left, top = (int(torch.randint(0, size - small + 1, ())) for _ in range(2))
    resized = F.interpolate(x, (small, small), mode="bilinear")
    return F.pad(resized, (left, size - small - left, top, size - small - top))


class Leak(nn.Module):
    """Remembers the images: adds a lot to the label of the nearest one, by a thumbnail that noise leaves alone."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels, self.thumbnails = model, labels, self.thumbnail(images)

    @staticmethod
    def thumbnail(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 8).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        nearest = torch.cdist(self.thumbnail(x.detach()), self.thumbnails).argmin(dim=1)
        return logits + 1000 * F.one_hot(self.labels[nearest], logits.shape[1])


# Honest models -------------------------------------------------------------------------------------------------------


def test_all_checks_are_quiet_on_tiny(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    other = Before(tiny, lambda x: (x + 0.1).clamp(0, 1)).eval()
    found = {f.id: f for f in doctor(tiny, *batch, eps=EPS, attack=SHORT.name, transfer_from=other)}
    assert tuple(found) == tuple(CHECKS)
    assert verdicts(found) == {"ok"}, found


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("model", [small_conv(), Linear(uniform(10, 3 * 64) - 0.5).eval()], ids=["conv", "linear"])
def test_all_checks_are_quiet_on_a_model_in_either_norm(model: nn.Module, norm: str) -> None:
    x = uniform(12, 3, 8, 8)
    with torch.no_grad():
        labels = model(x).argmax(dim=1)
    eps = 0.05 if norm == "linf" else 0.5
    found = doctor(model, x, labels, eps=eps, attack="apgd-ce+apgd-dlr", norm=norm)  # type: ignore[arg-type]
    assert {f.verdict for f in found if f.id != "transfer"} == {"ok"}, found


def test_an_examination_changes_nothing_and_repeats(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    before = torch.random.get_rng_state()
    first, second = (cheap(Before(tiny, resize_and_pad).eval(), batch) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


# Planted defences, by the check that must see them -------------------------------------------------------------------


@pytest.mark.parametrize("change", [quantise, jpeg], ids=["quantised", "jpeg"])
def test_inputs_without_gradient(
    change: Callable[[Tensor], Tensor], tiny: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    model = Before(tiny, change).eval()
    found = cheap(model, batch)
    assert found["gradients"].verdict == "failure"
    assert found["randomised"].verdict == found["finite"].verdict == "ok"
    assert deep("noise", model, batch).verdict == "failure"


def test_gradients_that_are_made_up(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    weight = uniform(tiny.num_classes, 3 * 48 * 48) - 0.5  # type: ignore[arg-type]

    def change(logits: Tensor, x: Tensor, _: int) -> Tensor:
        fake = x.flatten(1) @ weight.T
        return logits.detach() + fake - fake.detach()

    assert cheap(Wrapped(tiny, change).eval(), batch)["gradients"].verdict == "failure"


def test_gradients_that_point_the_wrong_way(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model = Wrapped(tiny, lambda logits, _x, _n: 2 * logits.detach() - logits).eval()
    found = cheap(model, batch)
    assert found["loss-increase"].verdict == "failure"
    assert found["gradients"].verdict == "ok"  # they are neither zero nor constant
    assert deep("noise", model, batch, eps=2 / 255).verdict == "failure"


@pytest.mark.parametrize(
    ("attack", "verdict"), [("apgd-ce", "failure"), ("autoattack-fast", "warning"), ("cw-10", "warning")]
)
def test_a_logit_scale_that_blinds_cross_entropy(
    attack: str, verdict: str, tiny: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    model = Wrapped(tiny, lambda logits, _x, _n: 1e4 * logits).eval()
    found = cheap(model, batch, attack)
    assert found["saturation"].verdict == verdict
    assert "8 lead by more than 16.6" in found["saturation"].evidence
    assert found["gradients"].verdict == found["loss-increase"].verdict == "ok"


def test_probabilities(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    found = cheap(Wrapped(tiny, lambda logits, _x, _n: logits.softmax(dim=1)).eval(), batch)
    assert found["probabilities"].verdict == "failure"
    rounded = Wrapped(tiny, lambda logits, _x, _n: (100 * logits.softmax(dim=1)).round() / 100).eval()
    found = cheap(rounded, batch)
    assert found["probabilities"].verdict == found["gradients"].verdict == "failure"
    assert found["duplicate-classes"].verdict in ("ok", "warning", "not checked")


def test_a_random_resize(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    found = cheap(Before(tiny, resize_and_pad).eval(), batch)
    assert found["randomised"].verdict == "failure"
    assert found["randomised"].numbers["again"] == N


def test_logits_that_depend_on_the_batch(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model = Before(tiny, lambda x: (x - x.mean(dim=0, keepdim=True) + 0.5).clamp(0, 1)).eval()
    found = cheap(model, batch)["randomised"]
    assert (found.verdict, found.numbers["again"], found.numbers["alone"]) == ("failure", 0, N)


def test_train_mode_is_found_and_the_model_not_run(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.2), tiny)
    model[1].eval()
    found = {f.id: f for f in doctor(model, *batch, eps=EPS, attack=SHORT.name)}
    assert found["train-mode"].verdict == "failure"
    assert "BatchNorm2d" in found["train-mode"].evidence
    assert {f.verdict for f in found.values() if f.id != "train-mode"} == {"not checked"}
    assert int(model[0].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_dropout_in_train_mode(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(tiny, nn.Dropout(0.2)).eval()
    assert cheap(model, batch)["train-mode"].verdict == "ok"
    model[1].train()
    assert cheap(model, batch)["train-mode"].verdict == "failure"


@pytest.mark.parametrize("where", ["everywhere", "off the clean images"])
def test_nan(where: str, tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    def change(logits: Tensor, x: Tensor, _: int) -> Tensor:
        known = (x.detach()[:, None] == batch[0]).flatten(2).all(dim=2).any(dim=1)
        bad = ~known if where != "everywhere" else torch.ones_like(known)
        return torch.where(bad[:, None], torch.nan, logits)

    found = {f.id: f for f in doctor(Wrapped(tiny, change).eval(), *batch, eps=EPS, attack=SHORT.name)}
    assert found["finite"].verdict == "failure"
    assert {f.verdict for f in found.values() if f.id not in ("finite", "train-mode")} == {"not checked"}


def test_nan_that_only_an_attack_finds(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    def change(logits: Tensor, _x: Tensor, _: int) -> Tensor:
        return torch.where(logits.argmax(dim=1, keepdim=True) != logits.new_tensor(right), torch.nan, logits)

    image, label = batch[0][:1].repeat(2, 1, 1, 1), batch[1][:1].repeat(2)
    right = int(label[0])
    model = Wrapped(tiny, change).eval()
    found = {f.id: f for f in doctor(model, image, label, eps=0.5, attack=SHORT.name)}
    assert found["finite"].verdict == "failure"
    assert found["black-box"].verdict == "not checked"


def test_two_classes_of_one_text(batch: tuple[Tensor, Tensor]) -> None:
    data = clipguard.load_dataset("emoji-animals")
    names = [*data.class_names[:-1], data.class_names[2]]
    model = clipguard.load_model("tiny").classifier(names, data.templates)
    found = {f.id: f for f in probe(subject(model, batch, class_names=names), SHORT)}["duplicate-classes"]
    assert found.verdict == "warning"
    assert f"{names[2]} = {names[2]}" in found.evidence


@pytest.mark.parametrize("rounding", [0.0, 1e-6])
def test_a_model_whose_classes_are_all_equal_is_not_called_randomised(
    batch: tuple[Tensor, Tensor], rounding: float
) -> None:
    class Constant(nn.Module):
        """Equal logits but for rounding, which differs from pass to pass as between kernels."""

        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            noise = torch.randn((len(x), 9), generator=torch.Generator().manual_seed(self.passes))
            return x.mean(dim=(1, 2, 3))[:, None] + 20 + 20 * rounding * noise

    found = {f.id: f for f in probe(subject(Constant().eval(), batch), SHORT)}
    assert found["randomised"].verdict == "ok"
    assert found["duplicate-classes"].verdict == ("not checked" if not rounding else "ok")


def test_a_step_that_changes_the_prediction_at_eps_0(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """A pipeline in which a stored image is not the one that was seen: here, a model that a look at it changes."""
    seen = {"backward": 0}

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
            seen["backward"] += 1
            return grad

    def change(logits: Tensor, _x: Tensor, _n: int) -> Tensor:
        logits = Count.apply(logits)
        return logits.roll(1, dims=1) if seen["backward"] == 7 else logits  # all, but for this check

    assert cheap(Wrapped(tiny, change).eval(), batch)["eps-zero"].verdict == "failure"


def test_square_and_transfer_break_what_masked_gradients_miss(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    masked = Before(tiny, quantise).eval()
    for check in ("black-box", "transfer"):
        found = deep(check, masked, batch, eps=16 / 255, transfer_from=tiny)
        assert found.verdict == "failure", found
    honest = deep("transfer", tiny, batch, transfer_from=tiny)
    assert honest.verdict == "ok"
    assert deep("transfer", tiny, batch).verdict == "not checked"


def test_a_memory_of_the_images_survives_where_anything_is_allowed(
    tiny: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    model = Leak(tiny, *batch).eval()
    found = deep("large-eps", model, batch)
    assert found.verdict == "failure", found
    assert found.numbers["grey"] > 0


def test_an_attack_that_loses_its_way_at_larger_eps(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """A detector of large perturbations, which answers with what it remembers."""
    clean = batch[0]

    def change(logits: Tensor, x: Tensor, _: int) -> Tensor:
        distance = (x.detach()[:, None] - clean).abs().flatten(2).amax(dim=2)
        nearest = distance.argmin(dim=1)
        known = F.one_hot(batch[1][nearest], logits.shape[1]).float()
        return torch.where((distance.amin(dim=1) > 1.2 * EPS)[:, None], 30 * known + 0 * logits, logits)

    found = deep("eps-order", Wrapped(tiny, change).eval(), batch)
    assert found.verdict == "failure", found


def test_an_attack_with_too_few_iterations() -> None:
    """z_0 - z_1 = 2 sum(x - 1/2) + 3: eps 0.1 over 64 pixels takes 12.8 off at most, steps of eps / 4 need two."""
    weight = torch.stack([torch.ones(64), -torch.ones(64)])
    model = Linear(weight, torch.tensor([-32 + 1.5, 32 - 1.5])).eval()
    batch = (torch.full((N, 1, 8, 8), 0.5), torch.zeros(N, dtype=torch.int64))
    attack = "pgd(iterations={},step_size=0.25,random_start=false)"
    one, two = (deep("iterations", model, batch, attack.format(steps), eps=0.05) for steps in (1, 4))
    assert one.verdict == "failure"
    assert two.verdict == "ok"
    assert deep("iterations", model, batch, "fgsm", eps=0.05).verdict == "not checked"


def test_a_success_that_does_not_last(tiny: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """A defence with a memory: an image it sees for the third time is answered by a blocklist."""
    seen: dict[bytes, int] = {}

    def change(logits: Tensor, x: Tensor, _: int) -> Tensor:
        rows = []
        for row, image in zip(logits, x.detach(), strict=True):
            key = image.numpy().tobytes()
            seen[key] = seen.get(key, 0) + 1
            nearest = (batch[0] - image).abs().flatten(1).amax(dim=1).argmin()
            blocked = 50 * F.one_hot(batch[1][nearest], len(row)).float()
            rows.append(blocked + 0 * row if seen[key] > 2 else row)
        return torch.stack(rows)

    assert deep("silent-success", Wrapped(tiny, change).eval(), batch).verdict == "failure"


# Rules ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "n", "verdict"),
    [
        (0, 1, "ok"),
        (2, 32, "ok"),
        (3, 32, "warning"),
        (8, 32, "warning"),
        (9, 32, "failure"),
        (6, 200, "ok"),
        (7, 200, "warning"),
        (30, 200, "warning"),
        (31, 200, "failure"),
    ],
)
def test_verdicts_are_beyond_chance(bad: int, n: int, verdict: str) -> None:
    assert judge(bad, n) == verdict
    assert counted("noise", bad, n, "images").verdict == verdict


def test_the_worst_verdict_and_what_to_do() -> None:
    fine, warning = Finding("noise", "ok", ""), Finding("gradients", "warning", "")
    assert worst([fine]) == "ok"
    assert worst([fine, Finding("transfer", "not checked", ""), warning]) == "warning"
    assert fine.advice == ""
    assert warning.advice == warning.to_dict()["advice"] != ""


def test_a_recipe_is_doubled_where_it_can_be() -> None:
    longer = doubled(parse_recipe("pgd-10+fgsm+square(queries=50)"))
    assert longer is not None
    assert [stage["attack"] for stage in longer.parameters()["stages"]] == ["pgd-20", "fgsm", "square"]
    assert longer.parameters()["stages"][2]["queries"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "`eps` must be"),
        ({"norm": "l1"}, "Unknown norm"),
        ({"attack": "none"}, "perturbs nothing"),
        ({"labels": torch.tensor([99])}, "Labels must lie"),
        ({"labels": torch.tensor([0, 1])}, "as many of both"),
        ({"images": torch.full((1, 3, 8, 8), 2.0)}, r"\[0,1\]"),
    ],
)
def test_what_cannot_be_examined(change: dict[str, object], message: str) -> None:
    given = {"images": uniform(1, 3, 8, 8), "labels": torch.tensor([0]), "eps": 0.1} | change
    with pytest.raises(AttackError, match=message):
        doctor(small_conv(), **given)  # type: ignore[arg-type]
