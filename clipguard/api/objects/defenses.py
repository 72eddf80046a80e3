"""Defences around a model from Python."""

from __future__ import annotations

from collections.abc import Sequence

from clipguard.api.objects.examples import Examples
from clipguard.api.objects.models import as_prompts, require_class_names
from clipguard.attacks.engine.options import EpsMode
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.defended import prompts_of
from clipguard.benchmark.plan import BenchPlan
from clipguard.core.checking import check_type
from clipguard.core.errors import AttackError, DefenseError, did_you_mean
from clipguard.core.spec import spell_call
from clipguard.defenses import THREATS, Threat
from clipguard.defenses.attacking.threats import DefendedModel, split_by_threat
from clipguard.defenses.base import Defense
from clipguard.defenses.classifiers import defend
from clipguard.defenses.registry import check_votes, parse_defenses

DefenseLike = str | Defense | Sequence[str | Defense]
VOTES, DRAWS = BenchPlan.votes, BenchPlan.draws


def defend_examples(
    given: Examples, defense: DefenseLike | None, *, seed: int, votes: int, draws: int, threat: Threat = "adaptive"
) -> DefendedModel | None:
    """The model that was given, with defences around it; None where there is none.

    Args:
        given: the model and its images.
        defense: as `--defense` takes it, a defence such as `TTC(steps=4)`, or a list of either, which an image meets in
            order.
        seed: of the run.
        votes: runs of a random defence that decide by majority.
        draws: runs of a random defence that each step of an adaptive attack averages over.
        threat: under which it is attacked.

    Raises:
        DefenseError: for what is no defence, or cannot stand around this model, and for settings without a defence.
        AttackError: for votes or draws that no run could use.
    """
    if defense is None:
        _refuse_undefended(threat, votes, draws)
        return None
    for name, value in (("`votes`", votes), ("`draws`", draws)):
        check_type(name, value, int, AttackError)
        if value < 1:
            raise AttackError(f"{name} must be at least 1, not {value}.")
    check_votes(votes)
    text, prompts = given.text, None
    if given.loaded is not None:
        prompts = prompts_of(given.loaded, require_class_names(text.class_names), as_prompts(text.templates))
    defended = defend(given.model, as_defenses(defense), prompts)
    return DefendedModel(given.model, defended, seed, votes, draws)


def as_defenses(defense: DefenseLike) -> tuple[Defense, ...]:
    """Defences, in the order in which an image meets them. Raises DefenseError for what is none."""
    several = [defense] if isinstance(defense, (str, Defense)) else defense
    is_list = isinstance(several, Sequence) and bool(several)
    if not is_list or not all(isinstance(one, (str, Defense)) for one in several):
        raise DefenseError(
            f"`defense` must be a name such as 'ttc', a defence such as TTC(), or a list of them, not {defense!r}."
        )
    return tuple(one for part in several for one in (parse_defenses(part) if isinstance(part, str) else (part,)))


def _refuse_undefended(threat: Threat, votes: int, draws: int) -> None:
    """Raises DefenseError for settings of defended models, where there is no defence."""
    given = {"threat": threat != "adaptive", "votes": votes != VOTES, "draws": draws != DRAWS}
    for name, is_given in given.items():
        if is_given:
            raise DefenseError(f"`{name}` is for defended models; add `defense`, or leave it out.")


def spell_defenses(defense: DefenseLike) -> str:
    """How they are written on the command line: `jpeg(quality=50)+ttc`, without options at their defaults."""
    several = [defense] if isinstance(defense, (str, Defense)) else defense
    return "+".join(
        one if isinstance(one, str) else spell_call(one.name, one.options(), type(one)().options()) for one in several
    )


def of_threat(recipe: Recipe, threat: str, eps_mode: EpsMode) -> Recipe:
    """A recipe as one threat uses it. Raises DefenseError for an unknown threat, or one that cannot use it."""
    if threat not in THREATS:
        hint = did_you_mean(str(threat), THREATS)
        raise DefenseError(f"`threat` {threat!r} is unknown.{hint} Use {', '.join(THREATS)}.")
    if eps_mode == "nested":
        raise DefenseError("A `defense` is not attacked with `eps_mode=nested`; leave it out.")
    return split_by_threat(recipe, [threat])[0]
