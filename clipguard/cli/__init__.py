"""The command line: options in, engine, tables out. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from clipguard.cli import attack, bench, certify, compare, convert, doctor, finetune, inspect, listing, report, store
from clipguard.cli.console import streams
from clipguard.cli.console.flags import InFlags, in_flags
from clipguard.cli.console.terminal import LOOSE_BYTES, echo, prepare_streams, use_utf8
from clipguard.cli.options import configurable
from clipguard.core.errors import ClipguardError, ToldElsewhereError
from clipguard.core.version import __version__

app = typer.Typer(
    name="clipguard",
    help="Benchmark and train the adversarial robustness of CLIP models.",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("plan", epilog=bench.PLAN_EXAMPLES)(bench.plan)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("certify", epilog=certify.EXAMPLES)(certify.certify)
app.command("report", epilog=report.EXAMPLES)(configurable(report.report))
app.command("attack", epilog=attack.EXAMPLES)(attack.attack)
app.command("finetune", epilog=finetune.EXAMPLES)(finetune.finetune)
app.command("merge", epilog=convert.MERGE_EXAMPLES)(configurable(convert.merge))
app.command("convert", epilog=convert.EXAMPLES)(configurable(convert.convert))
app.command("inspect", epilog=inspect.EXAMPLES)(configurable(inspect.inspect))
app.add_typer(store.app, name="store")
app.command("list", epilog=listing.EXAMPLES)(configurable(listing.show))


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"clipguard {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no log, only results.")] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        echo(context.get_help())
        raise typer.Exit
    streams.require_folder()
    logging.basicConfig(level=logging.ERROR, handlers=[_log_handler()], force=True)
    logging.getLogger("clipguard").setLevel(logging.ERROR if quiet else logging.INFO)


def _log_handler() -> logging.Handler:
    """Log lines that are wrapped and coloured at a terminal, and one line each in a file or the log of a CI job."""
    if not sys.stderr.isatty():
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(InFlags(app, "%(levelname)-8s %(message)s"))
        return handler
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    handler.setFormatter(InFlags(app, "%(message)s"))
    return handler


# Every way in which a command can end is a branch, and all of them are told in one place.
def run(arguments: Sequence[str] | None = None) -> int:  # noqa: C901, PLR0912
    """Run a command line and return its exit code: 0, 2 for bad input (one line on stderr), 130 for Ctrl-C, 143 for
    SIGTERM, 141 when the reader of a pipe has gone.

    `compare` also has 1 for a regression and 3 for an inconclusive comparison, `doctor` 1 for a failure, `store verify`
    1 for damage.
    """
    prepare_streams()
    given = sys.argv[1:] if arguments is None else list(arguments)
    for argument in given:
        if not argument.isascii() and any(ord(character) in LOOSE_BYTES for character in argument):
            echo(f"Error: the argument {argument!r} is not UTF-8; rename what it names.", err=True)
            return 2
    command = typer.main.get_command(app)
    try:
        streams.require_stdout()
        code = command.main(args=given, standalone_mode=False)
        streams.flush()
    except ToldElsewhereError:
        return 2
    except ClipguardError as error:
        message = in_flags(" ".join(str(error).split()), app)
    except typer.TyperException as error:  # a wrong option or value
        message = " ".join(error.format_message().split())
    except (KeyboardInterrupt, typer.Abort):
        return streams.tell_interruption()
    except (OSError, SystemExit) as error:
        if streams.is_closed_pipe(error):
            streams.drop_output()
            return streams.PIPE_CLOSED
        if not isinstance(error, OSError) or error.filename or not streams.stdout_fails():
            raise
        streams.drop_output()
        message = f"The results cannot be printed ({error.strerror}). Files that were written are complete."
    except Exception:
        if streams.was_interrupted():
            return streams.tell_interruption()
        raise
    else:
        if code == streams.INTERRUPTED:  # Typer turns KeyboardInterrupt into it
            return streams.tell_interruption()
        return code if isinstance(code, int) else 0
    streams.say(f"Error: {message}")
    return 2


def main() -> None:
    """Entry point of the console script and of `python -m clipguard`."""
    use_utf8()
    streams.prepare()
    code = run()
    streams.heed_no_more()
    sys.exit(code)
