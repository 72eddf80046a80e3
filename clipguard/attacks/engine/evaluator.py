"""Passes through the model: counted, split when memory runs out, and never silent about NaN."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice

import torch
from torch import Tensor, nn

from clipguard.attacks.base import Attack
from clipguard.attacks.engine.outcome import Example, Fill
from clipguard.attacks.state import AttackState
from clipguard.core.errors import AttackError, NoGradientError, NonFiniteError, first_line

log = logging.getLogger("clipguard")
CPU_BATCH, LARGEST_BATCH = 64, 1024
PROBE_ROWS = 8  # rows of the pass whose memory is measured
STATE_TENSORS_PER_ROW = 24  # image-sized tensors an attack holds for a row at most, its temporaries included
Objective = Callable[[Tensor, int, int], Tensor]  # logits of rows [start, stop) -> (stop - start,) values


@dataclass
class Cost:
    """Passes are counted in images: one forward pass of a batch of 64 is 64."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0


@dataclass
class Evaluator:
    """A model under attack. Only the image ever gets a gradient.

    `precision` and `compile` are those of the search; `verify` is always float32 and the model as it is. `eot`
    averages logits and gradients over that many passes, for randomised models. `fill`: up to how many rows a pass is
    filled with black images (which are not counted): the model's `least_rows`, a multiple of them, or the batch size;
    "alone": none, but `verify` passes every image by itself.
    """

    model: nn.Module
    batch_size: int
    precision: str = "float32"
    eot: int = 1
    compile: bool = False
    fill: Fill = "least"
    costs: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))

    def __post_init__(self) -> None:
        self.searched: nn.Module = torch.compile(self.model) if self.compile else self.model  # type: ignore[assignment]

    def predict(self, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Clean images (B, C, H, W), labels (B,) and logits (B, classes) of examples of one shape.

        Raises AttackError for images outside [0,1], labels that are no class, and NaN.
        """
        x = torch.stack([e.image for e in examples]).float()
        labels = torch.tensor([e.label for e in examples], device=x.device)
        valid = ((x >= 0) & (x <= 1)).flatten(1).all(dim=1).tolist()
        if not all(valid):
            index = examples[valid.index(False)].index
            message = f"Images must lie in [0,1] (image {index}); normalisation belongs inside the model."
            raise AttackError(message)
        with self.charged({"clean": len(x)}, {}):
            logits = self.verify(x)
        require_finite(logits, lambda i: examples[i].index, "on the clean image")
        for e in examples:
            if not 0 <= e.label < logits.shape[1]:
                classes = f"0 ... {logits.shape[1] - 1}, the classes the model knows"
                raise AttackError(f"Labels must lie in {classes}; image {e.index} has {e.label}.")
        return x, labels, logits

    def fit_batches(self, stream: Iterator[Example]) -> Iterator[Example]:
        """Choose the batch size by the first image of a stream, and give the stream back whole."""
        examples = list(islice(stream, 1))
        if examples:
            self.batch_size = self.fitting_batch_size(examples[0].image)
        return chain(examples, stream)

    def fitting_batch_size(self, image: Tensor) -> int:
        """64 on the CPU, where more gains nothing; on CUDA as many rows as fit in 80 % of the free memory."""
        if image.device.type != "cuda":
            return CPU_BATCH
        self.batch_size = PROBE_ROWS
        x = image.float().expand(PROBE_ROWS, *image.shape).contiguous()
        before = torch.cuda.memory_allocated(image.device)
        torch.cuda.reset_peak_memory_stats(image.device)
        self.gradient(x, lambda logits, _start, _stop: logits[:, 0])
        peak = torch.cuda.max_memory_allocated(image.device) - before
        row = peak / PROBE_ROWS + STATE_TENSORS_PER_ROW * 4 * image.numel()
        rows = int(0.8 * torch.cuda.mem_get_info(image.device)[0] / row)
        return min(LARGEST_BATCH, 1 << max(0, rows.bit_length() - 1))  # a power of two

    def evaluate(
        self, stages: Sequence[Attack], groups: Sequence[AttackState], points: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(logits, loss, gradient) of each attack's rows: one pass over all that want a gradient, one over the rest.

        The gradient of a row that wants none is zero.
        """
        x, label, target = _join(points), _join([g["label"] for g in groups]), _join([g["target"] for g in groups])
        wants = [stage.wants_gradient(rows) for stage, rows in zip(stages, groups, strict=True)]
        wanted, sizes = _join(wants), [rows.n for rows in groups]
        with_gradient = [int(w.sum()) for w in wants]
        without = [size - n for size, n in zip(sizes, with_gradient, strict=True)]

        def run(index: Tensor | None, counts: list[int], gradient: bool) -> tuple[Tensor, ...]:
            at = [t if index is None else t[index] for t in (x, label, target)]
            bounds = [0, *accumulate(counts)]

            def objective(logits: Tensor, start: int, stop: int) -> Tensor:
                values = []
                for stage, first, last in zip(stages, bounds, bounds[1:], strict=False):
                    a, b = max(first, start), min(last, stop)
                    if a < b:
                        values.append(stage.loss(logits[a - start : b - start], at[1][a:b], at[2][a:b]))
                return _join(values)

            names = {s.full_name: n for s, n in zip(stages, counts, strict=True) if n}
            with self.charged(names, names if gradient else {}):
                if gradient:
                    return self.gradient(at[0], objective)
                logits = self.logits(at[0])
                return logits, objective(logits, 0, len(logits)), torch.zeros_like(at[0])

        if sum(without) == 0:
            out = run(None, with_gradient, True)
        elif sum(with_gradient) == 0:
            out = run(None, without, False)
        else:
            first, rest = wanted.nonzero().squeeze(1), (~wanted).nonzero().squeeze(1)
            order = torch.cat([first, rest]).argsort()
            pairs = zip(run(first, with_gradient, True), run(rest, without, False), strict=True)
            out = tuple(torch.cat(pair)[order] for pair in pairs)
        return list(zip(*(torch.split(column, sizes) for column in out), strict=True))

    def verify(self, x: Tensor) -> Tensor:
        """(B, C) logits in float32, of the model as it is: these decide what an image is taken for."""

        def one(chunk: Tensor, _start: int, _stop: int) -> tuple[Tensor, ...]:
            return (self._forward(self.model, chunk, "float32"),)

        if self.fill != "alone":
            return self._in_chunks(x, one)[0]
        # A copy: where in memory a row begins may matter, too.
        return torch.cat([self._in_chunks(row.clone(), one)[0] for row in torch.split(x, 1)])

    def logits(self, x: Tensor) -> Tensor:
        """(B, C) logits at search precision."""

        def one(chunk: Tensor, _start: int, _stop: int) -> tuple[Tensor, ...]:
            return (self._search(chunk),)

        return self._in_chunks(x, one)[0]

    def gradient(self, x: Tensor, objective: Objective) -> tuple[Tensor, ...]:
        """Logits (B, C), objective (B,) and its gradient (B, C, H, W) with respect to each row."""

        def one(chunk: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
            leaf = chunk.detach().requires_grad_()
            with torch.enable_grad(), tf32(leaf.device, self.precision != "float32"):
                logits = self._search(leaf)
                values = objective(logits, start, stop)
                grad = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if logits.requires_grad else None
            if grad is None:
                raise NoGradientError("The model passes no gradient to its input: it cannot be attacked by gradients.")
            # contiguous: the gradient of a sum is one number seen many times, and attacks write in place
            return logits.detach(), values.detach(), grad.contiguous()

        return self._in_chunks(x, one)

    def _search(self, x: Tensor) -> Tensor:
        """Logits at search precision, by the compiled model if there is one and it works."""
        if self.searched is not self.model and len(x) > 1:  # a batch of one would be compiled anew
            torch._dynamo.mark_dynamic(x, 0)
            try:
                return self._forward(self.searched, x, self.precision)
            except torch._dynamo.exc.TorchDynamoException as error:
                log.warning("This model cannot be compiled here; going on without --compile (%s).", first_line(error))
                self.searched = self.model
        return self._forward(self.model, x, self.precision)

    def _forward(self, model: nn.Module, x: Tensor, precision: str) -> Tensor:
        n, x = len(x), x if model is not self.model else self._filled(x)
        autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with tf32(x.device, precision != "float32"), autocast:
            logits: Tensor = model(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise AttackError(
                f"The model must map {tuple(x.shape)} pixels to (batch, classes >= 2) logits, not {what}."
            )
        return logits[:n].float()

    def _filled(self, x: Tensor) -> Tensor:
        """With black images below, as `fill` says. A compiled model, which is compiled anew for a shape, gets none."""
        least = min(getattr(self.model, "least_rows", 1), self.batch_size)
        rows = {"least": least, "multiple": -(-len(x) // least) * least, "full": self.batch_size, "alone": 0}[self.fill]
        missing = rows - len(x)
        if missing <= 0 or (self.fill == "least" and x.device.type != "cpu"):
            return x
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])])

    def _in_chunks(self, x: Tensor, one: Callable[[Tensor, int, int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Apply to at most `batch_size` rows at a time, `eot` times; halve it for good when memory does not suffice."""
        outputs: list[tuple[Tensor, ...]] = []
        start = 0
        while start < len(x):
            stop = min(start + self.batch_size, len(x))
            try:
                with torch.no_grad():
                    passes = [one(x[start:stop], start, stop) for _ in range(self.eot)]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                passes = []  # not here: the error's traceback still holds the memory
            if passes:
                outputs.append(passes[0] if self.eot == 1 else tuple(map(_mean, zip(*passes, strict=True))))
                start = stop
            else:
                self._shrink(stop - start)
        return tuple(_join(column) for column in zip(*outputs, strict=True))

    def _shrink(self, tried: int) -> None:
        if tried == 1:
            raise AttackError("Out of memory at batch size 1; use a smaller model or image, or another --device.")
        self.batch_size = tried // 2
        torch.cuda.empty_cache()
        log.warning("Out of memory at batch size %d; going on with --batch-size %d.", tried, self.batch_size)

    @contextmanager
    def charged(self, forward: dict[str, int], backward: dict[str, int]) -> Iterator[None]:
        """Charge a pass to the attacks whose images it carries; its time is shared by their number of images."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # the caller looks at the results next, so this waits for nothing more
        seconds = time.perf_counter() - started
        total = sum(forward.values())
        for name, n in forward.items():
            self.costs[name].forward += n * self.eot
            self.costs[name].seconds += seconds * n / total
        for name, n in backward.items():
            self.costs[name].backward += n * self.eot


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(dim=0)


def require_finite(values: Tensor, index: Callable[[int], int], where: str) -> None:
    """Raise NonFiniteError with the image's index, a function of its row, if a value is NaN or infinite."""
    if torch.isfinite(values.sum()):  # cheap: one pass; a sum may also overflow, so look again
        return
    bad = (~torch.isfinite(values.flatten(1))).any(dim=1)
    if bad.any():
        raise NonFiniteError(
            f"The model gives NaN or infinite values {where} (image {index(int(bad.nonzero()[0]))}); its numbers "
            "cannot be trusted. Check the weights, and use float32."
        )


@contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Whether CUDA may round the inputs of float32 products to TF32; left alone, PyTorch's convolutions do."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's error, Python's, and the RuntimeError that PyTorch's CPU allocator raises."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return any(sign in str(error) for sign in signs)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients (no activations are kept for them), restored afterwards."""
    if any(m.training for m in model.modules()):
        raise AttackError("The model is in train mode; call model.eval() before attacking it.")
    wanted = [p for p in model.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
