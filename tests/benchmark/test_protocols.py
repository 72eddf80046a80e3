"""Protocols: what each sets, that options beside it win and are told, and what reaches the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import clipguard
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import bilinear_resize, prepare
from clipguard.benchmark.protocols import PROTOCOLS, Protocol, make_plan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.results.table import caption, to_markdown
from clipguard.core.eps import read_eps
from clipguard.core.errors import ClipguardError
from clipguard.data import load_dataset
from clipguard.models import load_model

DOCS = Path(__file__).parents[2] / "docs" / "protocols.md"


def documented() -> dict[str, dict[str, str]]:
    """The table of settings in docs/protocols.md: protocol -> setting -> value as text."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOCS.read_text().partition("<!-- settings -->")[2].partition("<!-- end -->")[0].strip().splitlines()
    ]
    header, _, *body = rows
    return {name: {row[0].strip("`"): row[i] for row in body} for i, name in enumerate(header) if i}


def shown(value: object) -> str:
    """A setting as the documentation writes it."""
    if isinstance(value, tuple):
        return ", ".join(shown(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (int, float)) else f"`{value}`"


def test_the_documentation_shows_every_setting_of_every_protocol() -> None:
    table = documented()
    assert set(table) == set(PROTOCOLS)
    for name, protocol in PROTOCOLS.items():
        settings = {"datasets": protocol.datasets} | protocol.settings()
        for key, value in settings.items():
            text = {"n_samples": "all", "logit_scale": "the model's"}.get(key, "") if value is None else shown(value)
            assert table[name][key] == text, (name, key)
        assert set(table[name]) == set(settings)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_a_plan_that_can_run(name: str) -> None:
    plan = make_plan(["tiny"], protocol=name)
    plan.check()
    protocol = PROTOCOLS[name]
    for attack in plan.attacks:
        assert open_recipe(attack).stages
    assert tuple(r.typed for r in plan.eps) == protocol.eps
    assert (plan.protocol, plan.overrides) == (name, {})
    for key, value in protocol.settings().items():
        if key != "eps":
            assert getattr(plan, key) == value


def test_without_a_protocol_nothing_changes() -> None:
    plan = make_plan(["tiny"])
    names = ("emoji-animals", "emoji-food", "emoji-objects", "emoji-travel")
    assert plan == BenchPlan(("tiny",), names, tuple(read_eps(["1,4,8"], "linf")))
    assert (plan.attacks, plan.n_samples, plan.precision, plan.protocol) == (("autoattack-fast",), 200, "auto", None)


def test_options_win_and_are_recorded() -> None:
    plan = make_plan(["tiny"], ["cifar10"], protocol="fare", eps=["1"], n_samples=None, attacks=("pgd-10",), seed=3)
    assert plan.overrides == {"eps": (1.0,), "n_samples": None, "attacks": ("pgd-10",)}
    assert (plan.datasets, plan.seed, plan.logit_scale) == (("cifar10",), 3, 100)
    assert make_plan(["tiny"], protocol="fare", eps=["4,2"], templates="ensemble").overrides == {}
    beside = make_plan(["tiny"], protocol="fare", quantize=True, classes=Path("names.txt"), split=None)
    assert beside.overrides == {"quantize": "True", "classes": "names.txt"}
    l2 = make_plan(["tiny"], protocol="clipguard", norm="l2")
    assert l2.overrides == {"norm": "l2", "eps": (0.25, 0.5, 1.0)}  # linf radii would mean nothing


def test_unknown_protocols_and_settings() -> None:
    with pytest.raises(ClipguardError, match=r"'fair' is unknown. Did you mean 'fare'.*Use clipguard, fare"):
        make_plan(["tiny"], protocol="fair")
    for options, message in (
        ({"resize": "big"}, "`resize` 'big'"),
        ({"class_names": "mine"}, "`class_names` 'mine'"),
        ({"logit_scale": 0.0}, "`logit_scale`"),
        ({"resize": "crop256", "resolution": "native"}, "leave out `resolution=native`"),
    ):
        with pytest.raises(ClipguardError, match=message):
            make_plan(["tiny"], **options).check()


def test_the_result_says_protocol_and_changes() -> None:
    small = {"n_samples": 4, "attacks": ["apgd-ce(iterations=3)+pgd-2"], "eps": ["8"]}
    result = clipguard.bench(datasets=["emoji-food"], protocol="fare", **small)  # type: ignore[arg-type]
    assert json.loads(result.to_json())["run"]["protocol"] == {
        "name": "fare",
        "overrides": {"attacks": ["apgd-ce(iterations=3)+pgd-2"], "eps": [8.0], "n_samples": 4},
    }
    line = "protocol fare CHANGED: attacks apgd-ce(iterations=3)+pgd-2, eps 8, n_samples 4"
    assert line in caption(result)
    assert line in to_markdown(result)
    assert result.run["logit_scale"] == 100
    stages = result.run["attacks"]["apgd-ce(iterations=3)+pgd-2"]["stages"]
    assert [s["attack"] for s in stages] == ["apgd-ce", "pgd-2"]
    plain = clipguard.bench(datasets=["emoji-food"], attacks=["none"], n_samples=4)
    assert plain.run["protocol"] is None
    assert "protocol" not in caption(plain)


@pytest.fixture
def small_sets(tmp_path: Path) -> Path:
    """CIFAR-10 and EuroSAT as class folders, images 30 x 40."""
    for name in ("cifar10", "eurosat"):
        for label in range(10):
            folder = tmp_path / name / str(label)
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(label).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / "0.png")
        (tmp_path / name / "classnames.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    return tmp_path


@pytest.mark.parametrize(
    ("protocol", "native", "resized"),
    [("fare", True, "model"), ("tecoa", True, "crop"), ("tga", False, "crop"), ("ttc", False, "crop")],
)
def test_resolution_and_resize_reach_the_pixels(small_sets: Path, protocol: str, native: bool, resized: str) -> None:
    model = load_model("tiny")
    plan = make_plan(["tiny"], ["cifar10", "eurosat"], protocol=protocol, data_root=small_sets)
    pixels = {}
    for name in plan.datasets:
        dataset = load_dataset(name, data_root=small_sets)
        classifier, preprocess = prepare(plan, model, dataset)
        pixels[name] = preprocess(dataset.image(0))
        assert classifier(pixels[name][None]).shape == (1, 10)
        scale = 100 if protocol == "fare" else model.info.logit_scale
        assert float(classifier.logit_scale) == pytest.approx(scale)
    assert pixels["cifar10"].shape[1:] == ((30, 40) if native else model.preprocessing.image_size)
    image = load_dataset("eurosat", data_root=small_sets).image(0)
    crop = bilinear_resize(model.preprocessing.image_size)
    expected = model.preprocess()(image) if resized == "model" else crop(image)
    assert torch.equal(pixels["eurosat"], expected)
    if protocol == "tga":
        assert torch.equal(pixels["cifar10"], bilinear_resize(model.preprocessing.image_size, squash=True)(image))
    if protocol == "ttc":
        assert torch.equal(pixels["cifar10"], crop(image))


def test_crop256_keeps_the_centre() -> None:
    image = PIL.Image.new("RGB", (512, 256))
    image.paste((255, 255, 255), (144, 16, 368, 240))  # the centre 224 x 224
    cropped = bilinear_resize((224, 224))(image)
    assert cropped.shape == (3, 224, 224)
    assert cropped.min() == 1
    assert bilinear_resize((224, 224), squash=True)(image).min() == 0


def test_summaries_and_defaults() -> None:
    assert Protocol("x").settings().keys() <= set(BenchPlan.__dataclass_fields__)
    assert len({p.summary for p in PROTOCOLS.values()}) == len(PROTOCOLS)
    published = DOCS.read_text()
    assert all(re.search(rf"^#+ .*`{name}`", published, re.MULTILINE) for name in PROTOCOLS)
