"""Adversarial images for a report: which rows to show, and pictures as a page holds them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from clipguard.adversarial.replay import Replay, ReplayRequest
from clipguard.adversarial.result import AdversarialImage, PredictionRecord
from clipguard.benchmark.results.table import eps_text
from clipguard.core.errors import ResultError, first_line
from clipguard.core.records.prediction import Prediction
from clipguard.figures.grid import Pixels, amplification, fit_image
from clipguard.reporting.board import CLEAN, Board, Images
from clipguard.reporting.classes import class_table, pairs

MOST_PICTURES = 16  # so that the page stays below 10 MB, whatever is on the images
EDGE = 192  # pixels of an embedded image's longer edge, at most
TENSORS = "adversarial.safetensors"
ReplayRun = Callable[[int, Sequence[ReplayRequest]], Sequence[Replay]]  # images of the run of a number


@dataclass(frozen=True)
class Picture:
    """One image before and after, and what is known about it, as a page shows it."""

    model: str
    dataset: str
    index: int
    label: str
    attack: str
    eps: str
    why: str  # of its class, or where it is from
    clean: str  # these three as data URIs
    perturbation: str
    adversarial: str
    factor: str  # by which the perturbation is amplified
    largest: str  # change of a pixel
    before: Prediction
    after: Prediction


@dataclass(frozen=True)
class Choice:
    """A row to show, the number of its run, its model's label, and how robust its class is."""

    run: int
    request: ReplayRequest
    model: str
    why: str


def choose(board: Board, n: int) -> list[Choice]:
    """At most `n` images that an attack broke, each at the smallest eps that did it.

    In turns over models and data sets, and in each over its least and its most robust classes, an image a class.
    """
    queues = [_candidates(board, *pair) for pair in pairs(board)]
    in_turns = (item for items in zip_longest(*queues) for item in items if item is not None)
    return list(islice(in_turns, n))


def _candidates(board: Board, model: str, dataset: str) -> Iterator[Choice]:
    s = board.samples
    rows = s[(s["model"] == model) & (s["dataset"] == dataset)]
    order = list(class_table(rows).index)
    broken = rows[(rows["attack"] != CLEAN) & ~rows["robust"] & (rows["broken_by"] != "clean")]
    first = broken.sort_values(["eps", "index"], kind="stable").groupby("label", sort=False).head(1).set_index("label")
    ends = zip(order, reversed(order), strict=True)
    turns = dict.fromkeys(chain.from_iterable(ends))  # least robust, most robust, second least ...
    for label in (label for label in turns if label in first.index):
        row = first.loc[label]
        rank = order.index(label)
        end = "least" if rank < len(order) / 2 else "most"
        place = rank + 1 if end == "least" else len(order) - rank
        ordinal = "" if place == 1 else f"no. {place} of the "
        why = f"{ordinal}{end} robust {'class' if place == 1 else 'classes'}"
        request = ReplayRequest(
            row["typed"], dataset, row["attack"], float(row["eps"]), int(row["index"]), int(row["adv_pred"])
        )
        yield Choice(int(row["run"]), request, model, why)


def replayed_pictures(board: Board, n: int, replay: ReplayRun) -> tuple[list[Picture], list[str]]:
    """Pictures of chosen rows, attacked again by `replay`, and notes on those that could not be had."""
    chosen = choose(board, n)
    images: dict[tuple[int, ReplayRequest], AdversarialImage] = {}
    problems: Counter[str] = Counter()
    for run in dict.fromkeys(choice.run for choice in chosen):
        for result in replay(run, [choice.request for choice in chosen if choice.run == run]):
            if result.image is None:
                problems[result.problem.rstrip(".")] += 1
            else:
                images[run, result.request] = result.image
    notes = [f"{k} of {len(chosen)} images could not be attacked again: {text}." for text, k in problems.items()]
    pictures = [_picture(board, c, images[c.run, c.request]) for c in chosen if (c.run, c.request) in images]
    return pictures, notes


def _picture(board: Board, choice: Choice, image: AdversarialImage) -> Picture:
    row, names = choice.request, board.class_names[choice.model, choice.request.dataset]
    clean, x_adv = (x.permute(1, 2, 0).numpy() for x in (image.clean, image.x_adv))
    where = (choice.model, row.dataset, row.index, names[image.label])
    what = (row.attack, board.eps_text(row.eps), choice.why)
    return Picture(*where, *what, *_uris(clean, x_adv), image.before, image.after)


def _uris(clean: Pixels, x_adv: Pixels) -> tuple[str, str, str, str, str]:
    """Clean, amplified perturbation and adversarial image, the factor, and the largest change, as texts."""
    delta = x_adv - clean
    largest = float(np.abs(delta).max())
    factor = amplification(largest)
    shown = [data_uri(clean), data_uri(0.5 + factor * delta, smooth=False), data_uri(x_adv)]
    return shown[0], shown[1], shown[2], f"×{factor:g}", f"{255 * largest:.3g}/255"


def data_uri(pixels: Pixels, smooth: bool = True) -> str:
    """A PNG of pixels (H, W, 3) in [0,1], reduced to `EDGE` if larger; small ones are left to the page to enlarge."""
    edge = min(EDGE, max(pixels.shape[:2]))
    content = io.BytesIO()
    Image.fromarray(fit_image(pixels, edge, smooth)).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def stored_pictures(images: Images, n: int) -> list[Picture]:
    """The first `n` broken images that a folder of `clipguard attack` keeps.

    Raises:
        ResultError: for a damaged one.
    """
    norm = images.content["run"]["norm"]
    cell = images.content["cells"][1]
    broken = [i for i in images.content["images"] if i["broken_by"] not in (None, "clean")][:n]
    about = (cell["model"], cell["dataset"])
    try:
        with safe_open(images.path / TENSORS, "np") as file:
            return [
                Picture(
                    *about,
                    i["index"],
                    i["label"],
                    cell["attack"],
                    eps_text(cell["eps"], norm),
                    f"of run {images.number}",
                    *_uris(*_pair(file, i["index"])),
                    _prediction(i["clean"], i["label"]),
                    _prediction(i["adversarial"], i["label"]),
                )
                for i in broken
            ]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        what = f"{images.path / TENSORS} cannot be read ({first_line(error)})"
        raise ResultError(f"{what}; attack the images again.") from error


def _prediction(stored: PredictionRecord, label: str) -> Prediction:
    return Prediction(stored["class"], stored["confidence"], stored["class"] == label)


def _pair(file: Any, index: int) -> tuple[Pixels, Pixels]:
    """An image before and after, (H, W, 3), from a file with one tensor for all images, or one for each."""
    if f"clean.{index}" in file.keys():  # noqa: SIM118 - safetensors has no __contains__
        pair = [file.get_tensor(f"{name}.{index}") for name in ("clean", "x_adv")]
    else:
        row = file.get_tensor("indices").tolist().index(index)
        pair = [file.get_slice(name)[row] for name in ("clean", "x_adv")]
    clean, x_adv = (np.moveaxis(image, 0, 2) for image in pair)
    return clean, x_adv
