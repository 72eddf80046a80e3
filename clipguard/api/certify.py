"""`clipguard.certify`: randomised smoothing from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Unpack

from clipguard.api.bench import open_store
from clipguard.api.objects.kinds import Data, Model
from clipguard.api.objects.named import Named
from clipguard.api.options import CertifyOptions
from clipguard.certification.result import CertifyResult
from clipguard.certification.run import CertifyRun
from clipguard.certification.settings import make_certification


def certify(
    models: Model | Sequence[Model] = "tiny",
    datasets: Data | Sequence[Data] = (),
    *,
    sigma: float | Sequence[float] = 0.25,
    samples: int = 1000,
    store: str | Path | None = None,
    **options: Unpack[CertifyOptions],
) -> CertifyResult:
    """The l2 radius around each image in which the smoothed model's class is certain (docs/certify.md).

    Args:
        models, datasets: as of `bench`.
        sigma: of the noise, in pixels of [0,1]; several are certified one by one.
        samples: noisy copies of each image that are counted.
        store: as of `bench`.
        options: the other settings, by name.

    Raises:
        ClipguardError: for anything that cannot be run, and samples that are too few for the confidence.
    """
    named = Named(models, datasets, (), options)
    given = {"models": named.models, "datasets": named.datasets, "sigma": sigma, "samples": samples, **options}
    plan, smoothing = make_certification({name: value for name, value in given.items() if value not in ([], ())})
    return CertifyRun(plan, smoothing, store=open_store(store, named.objects), objects=named.objects).execute()
