"""The self-test at the start of a run: do an image's results depend on its batch here? Answers are kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.passes.batch_invariance import FILLS, SMALL_ROWS, Filling, find_fill
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.core.files.atomic_files import write_bytes
from clipguard.core.records.provenance import versions
from clipguard.core.records.run import BatchInvariance
from clipguard.models.classifier import ZeroShotClassifier
from clipguard.models.loading import LoadedModel
from clipguard.models.module_model import FORMAT

TEST = 3  # increase it when the self-test changes: answers of another one are not used
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm")
KERNEL_VARIABLES = ("ATEN_", "CUBLAS_", "CUDNN_", "DNNL_", "KMP_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "TORCH_")
log = logging.getLogger("clipguard")
_answers: dict[Path, Filling] = {}  # in this process: the cache may not be writable


def settle_fill(
    model: LoadedModel,
    classifier: ZeroShotClassifier,
    image: Tensor,
    options: EngineOptions,
    *,
    attacked: bool,
    tell: bool,
) -> tuple[EngineOptions, BatchInvariance]:
    """The options with the fill to use, whether cycles may be cut, and the answer for the record.

    It is looked up, or found by passes of a few batches and kept in the user's cache; of a module it is always found.

    Args:
        model: what is run.
        classifier: the same with its classes.
        image: (C, H, W), one of those of the run.
        options: without a fill that is known to be right.
        attacked: whether the run needs gradients.
        tell: say that the test is made, if it is.
    """
    batch_size = options.batch_size or Evaluator(classifier, 1).fitting_batch_size(image)
    key = {
        "test": TEST,
        "processor": _processor(),
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        "versions": {name: version for name, version in versions().items() if name in PACKAGES},
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(KERNEL_VARIABLES)},
        "threads": torch.get_num_threads(),
        "architecture": {name: value for name, value in model.model_cfg.items() if name != "text_cfg"},
        "shape": list(image.shape),
        "batch_size": batch_size,
        "precision": options.precision,
        "compile": options.compile,
        "attacked": attacked,
    }
    file = _folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.json"
    is_known = model.info.format != FORMAT  # a module's code, and what it keeps beside its weights, are in no key
    answer = (_answers.get(file) or _read(file)) if is_known else None
    if answer is None:
        if tell:
            log.info("Self-test: do the results of %s depend on the batch, on this processor?", model.info.name)
        answer = find_fill(
            classifier,
            tuple(image.shape),
            batch_size,
            precision=options.precision,
            compiled=options.compile,
            gradients=attacked,
        )
        if is_known:
            _keep(file, {"key": key, "answer": asdict(answer)})
    _answers[file] = answer
    if not answer.holds:
        log.warning("%s: %s", model.info.name, NO_PROMISE)
    options = replace(options, batch_size=batch_size, stop_cycles=answer.holds)
    options = replace(options, fill=answer.fill, small_rows=answer.small_rows)
    return options, {"holds": answer.holds, "fill": answer.fill}


NO_PROMISE = (
    "the last digits of margins, and images within rounding of the decision, may depend on the batch here "
    "(run.batch_invariant); every success is decided in float32 by the image alone."
)


def _processor() -> str:
    """What the kernels of libraries are chosen by: model and flags where Linux tells, and PyTorch's own choice."""
    lines = [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        first = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        names = ("model name", "cpu family", "model", "flags", "CPU part", "Features")
        lines += [line for line in first.splitlines() if line.partition("\t")[0].strip() in names]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "clipguard" / "batch-invariance"


def _read(file: Path) -> Filling | None:
    """An answer that was kept; None if there is none, or none that can be read: then the test is made again."""
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))["answer"]
        filling = Filling(answer["fill"], answer["holds"], answer["small_rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_right = isinstance(filling.holds, bool) and filling.fill in FILLS and filling.small_rows in (None, *SMALL_ROWS)
    return filling if is_right else None


def _keep(file: Path, content: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, json.dumps(content, indent=1).encode())
    except OSError as error:
        log.info("The answer cannot be kept in %s (%s): the next run tests again.", file.parent, error.strerror)
