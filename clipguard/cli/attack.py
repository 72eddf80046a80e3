"""`clipguard attack`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipguard.benchmark.plan import BenchPlan
from clipguard.cli.console.terminal import echo_data
from clipguard.cli.options import FILES_OF_MODELS, add_to_models, only_one, pop_settings, takes
from clipguard.core.errors import ClipguardError
from clipguard.core.settings import setting, settings_of

if TYPE_CHECKING:
    from clipguard.adversarial.image_files import ImageFiles
    from clipguard.adversarial.result import AdversarialResult
    from clipguard.core.files.output import OutputFolder

EXAMPLES = """
**Examples**

`clipguard attack` — the embedded model on 16 embedded images

`clipguard attack --model ViT-B-32-quickgelu:openai --dataset photos/ --eps 2 --n-samples 32 --out look`

`clipguard attack photo.jpg --classes "cat,dog,bird" --quantize` — one image, and an attack that survives as a PNG

`clipguard attack --defense ttc --dataset emoji-food` — through a defence, by an attacker who knows it

`clipguard attack a.jpg b.jpg --classes names.txt --label "tabby cat" --attack pgd-50 --norm l2 --eps 0.5`

**Files**

`adversarial.safetensors` (x_adv and clean in float32, indices, labels), `png/` (rounded to 8 bits), `samples.parquet`
(a row an image), `grid.png` (the picture to look at) and `run.json` (everything said here, and where it came from).
"""
EPS = {"linf": "4", "l2": "0.5"}
log = logging.getLogger("clipguard")


@dataclass(frozen=True)
class Delivery:
    """The images' classes, and where the result goes."""

    label: tuple[str, ...] = setting(
        (), "Class of the image files: one for all, or one each.", default_help="what the model says", free=True
    )
    out: Path | None = setting(None, "New folder for the files.", letter="-o", default_help="runs/TIME-attack-NAME")
    name: str | None = setting(None, "Name in the default folder.", default_help="the model's")
    format: Literal["table", "json"] = setting("table", "What stdout gets.", letter="-f")


NOT_OF_ATTACK = ("eps_mode", "engine", "text", "threats", "transfer_from")
PLAN = {name: declared for name, declared in settings_of(BenchPlan).items() if name not in NOT_OF_ATTACK}
PLAN |= {
    "models": PLAN["models"].but(help=PLAN["models"].help.replace("; repeatable", "")),
    "datasets": PLAN["datasets"].but(
        help="A name of `list datasets`, a .parquet or .tar file, a folder, hf:ORG/NAME[@SPLIT], or a .toml file.",
        default=("emoji-animals",),
        default_help=None,
    ),
    "eps": PLAN["eps"].but(
        help="In units of 1/255 for linf, plain for l2.", default_help="the protocol's largest, else 4, or 0.5 for l2"
    ),
    "attacks": PLAN["attacks"].but(
        help="As `clipguard list attacks` shows, or a recipe file.",
        default_help=f"the protocol's last, else {PLAN['attacks'].default[0]}",
    ),
    "defense": PLAN["defense"].but(help=f"{PLAN['defense'].help.removesuffix('.')}; it is attacked through."),
    "n_samples": PLAN["n_samples"].but(help="A seeded, class-stratified subset of so many, or all.", default=16),
}
SETTINGS = PLAN | FILES_OF_MODELS | settings_of(Delivery)
OF_DATA_SETS = ("datasets", "n_samples", "split", "data_root", "image_column", "label_column", "class_names")


@takes(SETTINGS)
def attack(
    given: dict[str, Any],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, instead of --dataset; they need --classes.")
    ] = None,
) -> None:
    """Make adversarial images and show them: what changed, what the model says before and after, what broke it."""
    from clipguard.benchmark.protocols import make_plan

    how = pop_settings(given, settings_of(Delivery))
    files = _image_files(images, given, how["label"])
    add_to_models(given)
    if files:
        del given["classes"]
        given["datasets"] = (files.name,)
    _one_attack(given)
    for name in ("models", "datasets", "attacks"):
        only_one("attack", PLAN[name], given)
    given.setdefault("n_samples", PLAN["n_samples"].default)
    plan = make_plan(**given)
    if len(plan.datasets) > 1:
        raise ClipguardError(
            f"`datasets` names a group ({', '.join(plan.datasets)}); `clipguard attack` takes one of it."
        )
    from clipguard.core.files.output import OutputFolder

    if plan.defense is not None:
        plan = replace(plan, threats=("adaptive",))
    plan.check()
    named, out = how["name"] or plan.models[0], how["out"]
    with OutputFolder(out, whole=True) if out else OutputFolder.by_default(named, "attack-", whole=True) as folder:
        result = _run(plan, files, folder)
    if how["format"] == "json":
        echo_data(result.to_json())
    else:
        from clipguard.cli.console.render import print_images

        print_images(result)
    log.info("Written to %s in %.0f s; look at %s", folder.path, result.run["wall_seconds"], folder.path / "grid.png")


def _run(plan: BenchPlan, files: ImageFiles | None, folder: OutputFolder) -> AdversarialResult:
    from clipguard.adversarial.generate import attack_images
    from clipguard.cli.console.progress import RichProgress

    with RichProgress() as progress:
        result = attack_images(plan, files, progress)
    folder.write_files(result.files(_grid(result, plan)))
    return result


def _one_attack(given: dict[str, Any]) -> None:
    """Fill in the attack and eps: those given, else the last attack and the largest eps of the protocol."""
    from clipguard.benchmark.protocols import find_protocol
    from clipguard.core.eps import read_eps

    norm, protocol = given.get("norm", "linf"), given.get("protocol")
    PLAN["norm"].check(norm)
    eps = EPS[norm]
    if protocol is not None:
        family = find_protocol(protocol)
        given.setdefault("attacks", (family.attacks[-1],))
        eps = f"{max(family.eps):g}" if norm == family.norm else eps
    given["eps"] = tuple(read_eps(list(given.get("eps") or [eps]), norm))
    if len(given["eps"]) != 1:
        typed = ", ".join(f"{e.typed:g}" for e in given["eps"])
        raise ClipguardError(f"`eps` names {len(given['eps'])} of them ({typed}); `clipguard attack` takes one.")


def _image_files(images: Sequence[Path] | None, given: Mapping[str, Any], labels: tuple[str, ...]) -> ImageFiles | None:
    """The files named as arguments, if any. Raises ClipguardError for settings that contradict them."""
    if not images:
        if labels:
            raise ClipguardError("`label` is for image files; a data set has labels of its own. Leave one of them out.")
        return None
    for name in OF_DATA_SETS:
        if given.get(name):
            raise ClipguardError(f"`{name}` is for data sets, and image files are given. Leave one of them out.")
    if given.get("classes") is None:
        raise ClipguardError(f'{images[0]} needs the names to choose from: add --classes "cat,dog,bird", or a file.')
    from clipguard.adversarial.image_files import ImageFiles

    return ImageFiles(tuple(images), given["classes"], labels)


def _grid(result: AdversarialResult, plan: BenchPlan) -> bytes:
    from clipguard.core.eps import show_eps
    from clipguard.figures.grid import MOST, Triple, draw_grid

    names = result.class_names

    def triple(number: int) -> Triple:
        image = result.images[number]
        clean, x_adv = (x.permute(1, 2, 0).numpy() for x in (image.clean, image.x_adv))
        title = f"#{image.index}  {names[image.label]}"
        return Triple(title, clean, x_adv, image.before, image.after, image.row["broken_by"])

    if len(result.images) > MOST:
        log.info("grid.png shows the first %d of %d images; all are in png/", MOST, len(result.images))
    eps = f"{plan.norm} eps {show_eps(plan.eps[0].typed, plan.norm)}"
    bits = ", 8-bit" if plan.quantize else ""
    what = f"{plan.shown(plan.models[0])} on {plan.datasets[0]}: {plan.attacks[0]}, {eps}{bits}"
    counts = result.summary()
    title = f"{what}; of {counts['n']}, {counts['clean_correct']} right when clean, {counts['robust']} when attacked"
    return draw_grid([triple(i) for i in range(min(MOST, len(result.images)))], title)
