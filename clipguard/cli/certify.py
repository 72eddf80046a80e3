"""`clipguard certify`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipguard.certification.settings import PLAN, SMOOTHING, make_certification, settings_record
from clipguard.cli.console.terminal import echo_data
from clipguard.cli.options import FILES_OF_MODELS, STORED, add_to_models, pop_settings, takes
from clipguard.core.settings import setting, settings_of

if TYPE_CHECKING:
    from clipguard.certification.folder import CertifyFolder
    from clipguard.certification.run import CertifyRun

EXAMPLES = """
**Examples**

`clipguard certify` — the embedded model on the embedded data sets

`clipguard certify -m local-dir:runs/noisy -d photos/ --sigma 0.25,0.5 --samples 10000 --radius 0,0.5,1`

`clipguard certify -d emoji-food -n 20 --sigma 0.1 --format md`

It adds noise to what the model sees and counts (Cohen et al. 2019). docs/certify.md says what that proves.
"""
log = logging.getLogger("clipguard")


@dataclass(frozen=True)
class Delivery:
    """Where a result goes."""

    out: Path | None = setting(None, "New folder for the files.", letter="-o", default_help="runs/TIME-certify-NAME")
    name: str | None = setting(None, "Name in the default folder.", default_help="the first model's")
    format: Literal["table", "json", "csv", "md"] = setting("table", "What stdout gets.", letter="-f")


HOW = {"store": STORED["store"]} | settings_of(Delivery)
SETTINGS = PLAN | FILES_OF_MODELS | SMOOTHING | HOW


@takes(SETTINGS)
def certify(given: dict[str, Any]) -> None:
    """Certify the l2 radius around each image in which no attack changes the class, by randomised smoothing."""
    how = pop_settings(given, HOW)
    add_to_models(given)
    plan, smoothing = make_certification(given)
    from clipguard.certification.folder import CertifyFolder
    from clipguard.certification.run import CertifyRun
    from clipguard.cli.console.progress import RichProgress
    from clipguard.store.store import Store

    progress = RichProgress()
    run = CertifyRun(plan, smoothing, progress, Store(how["store"]) if how["store"] else None)
    # Without a store, a run that is started again would lose the finished cells of the interrupted one.
    known = settings_record(plan, smoothing) if how["store"] else None
    named, out = how["name"] or plan.models[0], how["out"]
    with CertifyFolder(out, plan=known) if out else CertifyFolder.by_default(named, "certify-", plan=known) as folder:
        try:
            with progress:
                run.execute()
        except KeyboardInterrupt:
            if run.store and run.result:
                log.info("What is done is kept in %s: the same command goes on from there.", how["store"])
            raise
        finally:
            # Also after Ctrl-C, or an error in a later cell: what is finished is kept.
            if run.result and run.result.cells:
                _deliver(run, folder, how["format"])


def _deliver(run: CertifyRun, folder: CertifyFolder, output_format: str) -> None:
    result = run.result
    assert result is not None
    folder.write(result)
    if output_format == "table":
        from clipguard.cli.console.certified import print_certified

        print_certified(result)
    elif output_format == "json":
        echo_data(result.to_json())
    elif output_format == "csv":
        echo_data(result.to_frame().to_csv(index=False))
    else:
        echo_data(result.to_markdown())
    state = "" if result.run["complete"] else " (interrupted: finished cells only)"
    log.info("Written to %s in %.0f s%s", folder.path, result.run["wall_seconds"], state)
