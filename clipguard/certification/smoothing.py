"""What is asked of randomised smoothing, and what counts of hits prove (Cohen, Rosenfeld, Kolter 2019)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from clipguard.core.errors import AttackError
from clipguard.core.settings import check_settings, setting


@dataclass(frozen=True)
class Smoothing:
    """The settings of a certification beside models and data."""

    sigma: tuple[float, ...] = setting(
        (0.25,),
        "Standard deviation of the noise, in pixels of [0,1]; several between commas are certified one by one.",
        many="comma",
        low=0,
        above=True,
        metavar="NUMBERS",
    )
    samples: int = setting(
        1000, "Noisy copies of each image that are counted: 100,000 in papers. More prove larger radii.", low=1
    )
    selection_samples: int = setting(
        100, "Noisy copies before those, whose most frequent class is the one to certify.", low=1
    )
    confidence: float = setting(
        0.999,
        "Of each image's certificate: 1 minus the chance that it is wrong (alpha).",
        low=0.5,
        high=1,
        above=True,
        below=True,
    )
    radius: tuple[float, ...] = setting(
        (0.0, 0.25, 0.5, 1.0),
        "l2 radii of the table's columns, comma-separated.",
        many="comma",
        low=0,
        metavar="NUMBERS",
    )

    def check(self) -> None:
        """Raises ClipguardError for values that no run could use, and for samples that can prove nothing."""
        check_settings(self)
        needed = fewest_samples(self.alpha)
        if self.samples < needed:
            raise AttackError(
                f"`samples={self.samples}` can certify nothing at `confidence={self.confidence}`: even if all hit, "
                f"at least {needed} are needed."
            )

    @property
    def alpha(self) -> float:
        """The chance that a certificate is wrong, at most."""
        return float(f"{1 - self.confidence:.6g}")  # 0.001, not 0.0010000000000000009

    def tests(self) -> list[SmoothingTest]:
        """One for each sigma."""
        return [SmoothingTest(sigma, self.samples, self.selection_samples, self.alpha) for sigma in self.sigma]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def fewest_samples(alpha: float) -> int:
    """The fewest samples that can certify anything: n > ln(alpha) / ln(1/2), where all of them hit."""
    n = max(1, math.floor(math.log(alpha) / math.log(0.5)))
    return n if 0.5**n < alpha else n + 1


@dataclass(frozen=True)
class SmoothingTest:
    """How many of `samples` noisy copies were taken for the selected class, and what that proves.

    The smoothed classifier g(x) is the class that f(x + noise) most probably is, noise ~ N(0, sigma^2 I). With a lower
    limit pA of that probability above 1/2, g is constant within sigma * Phi^-1(pA) of x in l2 (Cohen et al. 2019,
    theorem 1 with pB = 1 - pA; their algorithm CERTIFY).

    Counting ends where even if all copies that are left hit, the test would abstain. That changes no answer, and is
    the only kind of early end that the bound allows.

    Attributes:
        sigma: of the noise, in pixels of [0,1].
        samples: copies that are counted.
        selection: copies before those, which select the class.
        alpha: the chance that the radius is too large, at most.
    """

    sigma: float
    samples: int
    selection: int
    alpha: float

    @property
    def name(self) -> str:
        """What it is called in the store: `certify(sigma=0.25,samples=1000,selection_samples=100,alpha=0.001)`."""
        return (
            f"certify(sigma={self.sigma:g},samples={self.samples},selection_samples={self.selection},"
            f"alpha={self.alpha:g})"
        )

    @cached_property
    def fewest_hits(self) -> int:
        """From so many hits on there is a certificate."""
        from clipguard.statistics.intervals import fewest_of_majority  # SciPy is not for a look at the settings alone

        return fewest_of_majority(self.samples, self.alpha)

    @property
    def hopeless_misses(self) -> int:
        """From so many misses on there can be none, whatever the copies that are left would be."""
        return self.samples - self.fewest_hits + 1

    def certifies(self, hits: int) -> bool:
        """Whether so many hits are enough; else the test abstains."""
        return hits >= self.fewest_hits

    def samples_used(self, hits: int) -> int:
        """Copies that were counted: all, or until there was no hope."""
        return self.samples if self.certifies(hits) else hits + self.hopeless_misses

    def lower_bound(self, hits: int) -> float:
        """pA: the probability of a hit is above it, but for a chance of alpha; 0 where the test abstains."""
        from clipguard.statistics.intervals import lower_bound

        return lower_bound(hits, self.samples, self.alpha) if self.certifies(hits) else 0.0

    def radius(self, hits: int) -> float:
        """The certified l2 radius, in pixels of [0,1]; 0 where the test abstains."""
        from scipy.stats import norm

        return max(0.0, self.sigma * float(norm.ppf(self.lower_bound(hits)))) if self.certifies(hits) else 0.0

    @property
    def largest_radius(self) -> float:
        """Where all samples hit: sigma * Phi^-1(alpha^(1 / samples))."""
        return self.radius(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """Everything that can change an image's outcome, as plain JSON types."""
        return asdict(self)
