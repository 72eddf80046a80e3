"""What a bench run will do, checked before anything heavy starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from clipguard.core.eps import Eps, check_norm, eps_of_numbers
from clipguard.core.errors import ClipguardError, ResultError, did_you_mean, first_line
from clipguard.core.settings import check_settings, setting
from clipguard.data.classes.names import ClassNames
from clipguard.data.decoding import Decode
from clipguard.defenses import THREATS

DEFAULT_ATTACK = "autoattack-fast"
ThreatResolution = Literal["model", "native", "mixed"]
Resize = Literal["model", "crop256", "crop256-squash"]
OF_DEFENSE = ("defense", "threats", "votes", "draws", "transfer_from")  # settings that mean nothing without a defence


@dataclass(frozen=True)
class BenchPlan:
    """Everything that defines a run: models x data sets x attacks x eps. Names are as the user typed them.

    What a protocol sets, and what is not given, is filled in by `make_plan`.
    """

    models: tuple[str, ...] = setting(
        ("tiny",),
        "tiny, ARCH:TAG, FILE, ARCH:FILE, FILE@BASE, hf-hub:ORG/REPO, local-dir:FOLDER or a name of `list models`; "
        "repeatable.",
        flag="--model",
        letter="-m",
        complete="models",
    )
    datasets: tuple[str, ...] = setting(
        (),
        "A name or group of `list datasets`, a .parquet or .tar file, a folder, hf:ORG/NAME[@SPLIT], or a .toml file "
        "that describes a set; repeatable.",
        flag="--dataset",
        letter="-d",
        default_help="the protocol's, else all embedded sets",
        complete="datasets",
    )
    eps: tuple[Eps, ...] = setting(
        (),
        "1,4,8 in units of 1/255 for linf, 0.25,0.5,1 plain for l2.",
        default_help="1,4,8; for l2 0.25,0.5,1",
        is_eps=True,
    )
    attacks: tuple[str, ...] = setting(
        (DEFAULT_ATTACK,),
        "As `clipguard list attacks` shows, comma-separated, or a .toml or .yaml recipe file.",
        flag="--attack",
        letter="-a",
        many="calls",
        complete="attacks",
    )
    defense: str | None = setting(
        None,
        "A defence of `clipguard list defenses` around the model, as NAME(option=value); several joined by +, which an "
        "image meets in that order.",
        complete="defenses",
    )
    threats: tuple[str, ...] = setting(
        THREATS,
        "How a defended model is attacked: transfer (images made on the undefended model), adaptive (through the "
        "defence), black-box (by queries); comma-separated.",
        flag="--threat",
        many="comma",
    )
    votes: int = setting(5, "Runs of a random defence that decide by majority, an odd number.", low=1)
    draws: int = setting(8, "Runs of a random defence that each step of an adaptive attack averages over.", low=1)
    transfer_from: tuple[str, ...] = setting(
        (),
        "Further models whose adversarial images are tried on the defended one; repeatable.",
        many="repeat",
        free=True,
        default_help="none",
        complete="models",
    )
    norm: Literal["linf", "l2"] = setting("linf", "linf or l2.")
    n_samples: int | None = setting(
        200, "Images a data set: a seeded, class-stratified subset, or all.", letter="-n", low=1, none="all"
    )
    seed: int = setting(0, "Of the subset and of every attack.", low=0)
    part: tuple[int, int] | None = None  # of these images in a seeded random order: the first of them, and the end
    batch_size: int | None = setting(
        None, "Images in flight, or auto: what fits. Halved if memory runs out.", low=1, none="auto"
    )
    resolution: ThreatResolution = setting(
        "model",
        "model: perturb the resized image; native: perturb the original pixels, resize in the model; mixed: native for "
        "CIFAR and STL, model for others.",
    )
    resize: Resize = setting(
        "model",
        "model: as the model does; crop256: shorter edge to 256/224 of the model's size, bilinear, centre crop; "
        "crop256-squash: the same, but CIFAR and STL squashed.",
    )
    decode: Decode = setting(
        "upright",
        "upright: EXIF rotation applied, transparency over white, 16 bits scaled; plain: as PIL's "
        'convert("RGB"), like other code of the field.',
    )
    logit_scale: float | None = setting(
        None, "Factor on the cosines.", low=0, above=True, none="model", default_help="the model's own"
    )
    quantize: bool = setting(False, "Adversarial images must be 8-bit images.")
    eps_mode: Literal["ascending", "independent", "nested"] = setting(
        "ascending",
        "ascending: broken at a smaller eps is broken at a larger; independent: attack at each; nested: largest first, "
        "survivors only confirmed below (faster, labelled).",
    )
    engine: Literal["clipguard", "reference"] = setting(
        "clipguard", "clipguard, or reference: the same attacks through the AutoAttack library."
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = setting(
        "auto",
        "Of the search: float32, tf32, bfloat16, or auto: bfloat16 on CUDA, else float32. Every success is checked in "
        "float32.",
    )
    compile: bool = setting(False, "Search with torch.compile: a minute or so of start-up, then faster passes.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps.")
    workers: int | None = setting(
        None,
        "Processes that share the images, on Ray, or auto: one a GPU where there are several.",
        low=1,
        none="auto",
    )
    ray: str | None = setting(None, "Work on this Ray cluster: auto, HOST:PORT or ray://HOST:PORT.", metavar="ADDRESS")
    decoders: int | None = setting(
        None, "Processes that decode images ahead of time.", low=0, default_help="as many as pay"
    )
    templates: str = setting(
        "ensemble",
        "single, ensemble, a prompt with {} for the class, or a file with one such prompt a line.",
    )
    text: Literal["tuned", "original"] = setting(
        "tuned", "original: score models that clipguard tuned with the text they had before."
    )
    prompts: str | None = setting(
        None,
        "A file of learned prompts, as `finetune --method apt` writes, to score the models with in place of templates; "
        "of APT's own files, FILE#position=middle says where the class name stands.",
        metavar="FILE",
    )
    split: str | None = setting(None, "Of the data.", default_help="test, else validation, else the only one")
    classes: str | Path | None = setting(
        None,
        'Names between commas ("cat,dog"), or a file of them: one a line in label order, or a list or table that can '
        "mean one thing only.",
        default_help="the data's",
    )
    class_names: ClassNames = setting(
        "source", "source: as they come with the data; tecoa: as TeCoA's papers write them."
    )
    duplicate_names: bool = setting(
        False, "Allow two classes of one name, and keep those of published lists (ImageNet)."
    )
    image_column: str | None = setting(None, "If it cannot be told.")
    label_column: str | None = setting(None, "If it cannot be told.")
    data_root: Path | None = setting(
        None, "Folder with copies of named data sets, DIR/<name>.", default_help="$CLIPGUARD_DATA"
    )
    protocol: str | None = setting(
        None,
        "Settings of a family of papers (`list protocols`): attack, eps, images, prompts, names, resolution. Options "
        "beside it win, and the results say so.",
        complete="protocols",
    )
    overrides: Mapping[str, Any] = field(default_factory=dict)  # what differs from the protocol

    def __post_init__(self) -> None:
        if isinstance(self.classes, Path):  # one form, as in a plan that was stored
            object.__setattr__(self, "classes", str(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """`plan` in the result files: plain JSON types, eps as typed; no models, nor what changes nothing."""
        left_out = ("models", "workers", "ray", "decoders")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        values |= {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        lists = {"datasets": list(self.datasets), "attacks": list(self.attacks), "eps": [r.typed for r in self.eps]}
        lists |= {"part": list(self.part)} if self.part else {}
        values |= lists | {"overrides": dict(self.overrides)}
        if self.prompts is None:  # as before there could be any
            del values["prompts"]
        if self.defense is None:
            return {name: value for name, value in values.items() if name not in OF_DEFENSE}
        return values | {"threats": list(self.threats), "transfer_from": list(self.transfer_from)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], models: Sequence[str]) -> BenchPlan:
        """The plan that `to_dict` was called on, for other models; what an older clipguard did not have is as it was.

        Raises ResultError for the plan of a newer clipguard, and for a damaged one.
        """
        newer = sorted(values.keys() - {f.name for f in fields(cls)})
        if newer:
            raise ResultError(f"The run is of a newer clipguard: its plan has {', '.join(newer)}. Update clipguard.")
        try:
            lists = ("datasets", "attacks", "part", "threats", "transfer_from")
            read: dict[str, Any] = {n: tuple(values[n]) for n in lists if values.get(n)}
            read |= {"data_root": Path(values["data_root"])} if values.get("data_root") else {}
            norm = values.get("norm", "linf")
            check_norm(norm)
            read["eps"] = tuple(eps_of_numbers(values["eps"], norm))  # whatever it is, it was run so
            return cls(tuple(models), **{**values, **read})
        except (KeyError, TypeError, ValueError) as error:
            what = f"The plan of the run is damaged ({first_line(error)})"
            raise ResultError(f"{what}; bench the model again.") from error

    def shown(self, model: str) -> str:
        """What a model is called in tables and rows: one with learned prompts or a defence is not the same."""
        if self.prompts is not None:
            from clipguard.models.prompts.files import prompts_label

            model = f"{model} + prompts {prompts_label(self.prompts)}"
        return model if self.defense is None else f"{model} + {self.defense}"

    def check(self) -> None:
        """Raises ClipguardError for values that no run could use."""
        check_settings(self)
        if self.part is not None:
            whole = isinstance(self.part, tuple) and [type(end) for end in self.part] == [int, int]
            if not whole or not 0 <= self.part[0] < self.part[1]:
                raise ClipguardError(f"part must be two numbers from 0 on, the first below the second: {self.part!r}.")
        if self.resize != "model" and self.resolution == "native":
            raise ClipguardError("`resize` is for images that are attacked after it; leave out `resolution=native`.")
        if self.prompts is not None:
            from clipguard.models.prompts.files import read_prompts

            read_prompts(self.prompts)
        self._check_defense()

    def _check_defense(self) -> None:
        """Raises ClipguardError for a defence that does not exist, and what does not go with one or without."""
        if self.defense is None:
            given = [f.name for f in fields(self) if f.name in OF_DEFENSE and getattr(self, f.name) != f.default]
            if given:
                raise ClipguardError(f"`{given[0]}` is for defended models; add `defense`, or leave it out.")
            return
        from clipguard.defenses.registry import check_votes, parse_defenses

        parse_defenses(self.defense)
        unknown = [threat for threat in self.threats if threat not in THREATS]
        if unknown:
            hint = did_you_mean(unknown[0], THREATS)
            raise ClipguardError(f"`threats` {unknown[0]!r} is unknown.{hint} Use {', '.join(THREATS)}.")
        if self.transfer_from and "black-box" not in self.threats:
            raise ClipguardError("`transfer_from` is for the threat black-box; add it to `threats`, or leave it out.")
        check_votes(self.votes)
        refused = {"eps_mode": "nested", "engine": "reference", "compile": True}
        for name, value in refused.items():
            if getattr(self, name) == value:
                typed = name if value is True else f"{name}={value}"
                raise ClipguardError(f"A `defense` is not attacked with `{typed}`; leave it out.")
