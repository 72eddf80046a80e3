"""Text on stdout and stderr, whatever the terminal's encoding: what it cannot show is replaced, never an error."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from functools import partial

from clipguard.cli.console import streams

REPLACE, ESCAPE = "clipguard.replace", "clipguard.escape"
# As wide as what they stand for, so that tables stay straight.
LOOKALIKES = str.maketrans("–—−→…·×✓✗•’‘“”", "--->*.x+x*''\"\"")
LOOSE_BYTES = range(0xDC80, 0xDD00)  # bytes of a file's name or an argument that could not be decoded


def _replace(error: UnicodeError, escape: bool = False) -> tuple[bytes, int]:
    """What is written for characters that cannot be encoded: bytes as they came, a lookalike, or question marks.

    With `escape` their numbers (`\\xe9`), which take more room.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = bytearray()
    for character in error.object[error.start : error.end]:
        lookalike = character.translate(LOOKALIKES)
        if ord(character) in LOOSE_BYTES:
            written.append(ord(character) - 0xDC00)
        elif lookalike.isascii():
            written += lookalike.encode()
        elif escape:
            written += character.encode("ascii", errors="backslashreplace")
        elif not unicodedata.combining(character):
            written += b"??" if unicodedata.east_asian_width(character) in "WF" else b"?"
    return bytes(written), error.end


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where the locale is ASCII, with streams encoded as they were.

    Names of files and classes are UTF-8 whatever the locale, and Python reads them as loose bytes otherwise.
    """
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1" or not sys.executable:
        return
    streams = os.environ.get("PYTHONIOENCODING") or str(getattr(sys.stdout, "encoding", "ascii"))
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": streams}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def prepare_streams() -> None:
    """From now on nothing written to stdout or stderr raises UnicodeEncodeError."""
    codecs.register_error(REPLACE, _replace)
    codecs.register_error(ESCAPE, partial(_replace, escape=True))
    for stream, errors in ((sys.stdout, REPLACE), (sys.stderr, ESCAPE)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def echo(text: str = "", *, err: bool = False) -> None:
    """A line of text for people. (`typer.echo` writes UTF-8 to an ASCII terminal.)"""
    if err:
        streams.say(text)
    else:
        print(text, flush=True)


def echo_data(text: str) -> None:
    """JSON, CSV or Markdown on stdout, without loss: where it goes to a file or a program it is UTF-8, as files are."""
    text = text if text.endswith("\n") else text + "\n"
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
        stream.flush()
        stream.buffer.write(text.encode("utf-8", errors="surrogateescape"))
        stream.buffer.flush()
    else:
        print(text, end="", flush=True)
