"""Nothing waits: a step of the engine reads two tables, attacks ask nothing, and a model sees three batch sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attack_models import engine, labelled, small_conv, uniform
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from clipguard.attacks.engine import cycles, rows, verification
from clipguard.attacks.engine import engine as engine_module
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import Fill
from clipguard.attacks.engine.passes.batching import filled, fixed_sizes
from clipguard.attacks.methods import fab
from clipguard.core.eps import Norm

ASKS = ("_local_scalar_dense", "nonzero", "equal", "item", "unique")  # what makes a GPU's caller wait for an answer
EPS: dict[Norm, list[float]] = {"linf": [0.004, 0.02], "l2": [0.1, 0.4]}
ATTACKS = (
    "pgd-6",
    "cw-6",
    "apgd-ce(iterations=8)",
    "apgd-dlr(iterations=8)",
    "apgd-t(iterations=5,targets=2)",
    "fab-t(iterations=4,targets=2,restarts=2)",
    "square(queries=12)",
)


class Asked(TorchDispatchMode):
    """Counts what asks for numbers while it is on; `read` is counted by the tests, since a CPU copies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKS or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAB and the search for cycles ask on a CPU, where that is free."""
    for module in (fab, cycles):
        monkeypatch.setattr(module, "asking_is_free", lambda _x: False)


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_step_reads_two_tables_and_asks_nothing_else(
    attack: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attack.startswith("square") and norm == "l2":
        pytest.skip("its squares have one size in a pass, which it has to ask for")
    reads: Counter[str] = Counter()

    def counting(module: Any) -> Any:
        def read(tables: Any) -> Any:
            reads[module.__name__] += 1
            return rows.read(tables)

        return read

    for module in (engine_module, verification):
        monkeypatch.setattr(module, "read", counting(module))
    steps: list[Counter[str]] = []
    step = Engine._step

    def watched(self: Engine, shape: torch.Size) -> None:
        with Asked() as mode:
            step(self, shape)
        steps.append(mode.asked)

    monkeypatch.setattr(Engine, "_step", watched)
    images = uniform(9, 3, 12, 12, seed=5)
    subject = engine(small_conv(), attack, EPS[norm], norm, batch_size=5, stop_cycles=True)
    assert len(list(subject.run(labelled(small_conv(), images)))) == 9
    assert len(steps) > 8
    asking = [asked for asked in steps if asked]
    assert len(asking) <= 1, asking  # the first rows of an attack: whether they want a gradient
    assert set(reads.values()) == {len(steps)}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_steps_of_fab_are_the_same_without_asking(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[Any]:
        subject = engine(small_conv(), "fab-t(iterations=8,targets=3)", EPS[norm], norm)
        outcomes = sorted(subject.run(labelled(small_conv(), uniform(9, 3, 12, 12, seed=5))), key=lambda o: o.index)
        return [(o.index, o.eps_outcomes) for o in outcomes]

    asking = found()
    monkeypatch.setattr(fab, "asking_is_free", lambda _x: False)
    assert found() == asking


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_newton_needs_no_more_steps_than_are_made_unasked(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of planes that clip most coordinates, where most steps are needed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 300, generator=generator) ** 3
    w = torch.randn(400, 300, generator=generator) * torch.rand(400, 300, generator=generator) ** 6
    reach = (w.abs() * torch.where(w > 0, x, 1 - x)).sum(dim=1)
    offset = reach * torch.linspace(0.0, 1.0, 400)
    exact = fab.project_on_hyperplane(x, w, offset, norm)
    monkeypatch.setattr(fab, "asking_is_free", lambda _x: False)
    assert torch.equal(fab.project_on_hyperplane(x, w, offset, norm), exact)


@pytest.fixture
def counted_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    counter = CompileCounter()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, dynamic, **_: compile_(model, backend=counter, dynamic=dynamic))
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


def test_a_compiled_model_is_compiled_for_three_sizes(counted_compiler: CompileCounter) -> None:
    """With and without a gradient; whatever the images do."""
    attack = "apgd-ce(iterations=12)+fab-t(iterations=3,targets=2)"
    subject = engine(small_conv(), attack, EPS["linf"], compile=True, batch_size=90)
    assert len(list(subject.run(labelled(small_conv(), uniform(130, 3, 8, 8))))) == 130
    assert 1 < counted_compiler.frame_count <= 2 * len(fixed_sizes(90)) == 6


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1]), (20, [10, 20]), (64, [32, 64]), (90, [32, 45, 90])])
def test_rows_are_filled_up_to_few_sizes(batch_size: int, sizes: list[int]) -> None:
    assert fixed_sizes(batch_size) == sizes
    x = uniform(batch_size, 1, 2, 2)
    for n in range(1, batch_size + 1):
        rows = filled(x[:n], "least", 1, batch_size, fixed=True)
        assert len(rows) == min(size for size in sizes if size >= n)
        assert torch.equal(rows[:n], x[:n])
        assert not rows[n:].any()


@pytest.mark.parametrize("fill", ["least", "multiple"])
@pytest.mark.parametrize("batch_size", [64, 14, 3])
def test_few_rows_are_filled_up_to_a_multiple_of_those_that_round_alike(fill: Fill, batch_size: int) -> None:
    x = uniform(batch_size, 1, 2, 2)
    least = min(16, batch_size)
    for n in range(1, batch_size + 1):
        sizes = [min(4 * k, least) for k in range(1, 5)] if n <= least else [n if fill == "least" else -(-n // 16) * 16]
        rows = filled(x[:n], fill, 16, batch_size, small=4)
        assert len(rows) == min(size for size in sizes if size >= n)
        assert torch.equal(rows[:n], x[:n])
        assert not rows[n:].any()
        assert len(filled(x[:n], "full", 16, batch_size, small=4)) == batch_size
