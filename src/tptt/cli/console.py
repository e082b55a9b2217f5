"""How a verb speaks: its own lines, what tptt says of its work, and errors in one line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="On an error show where it happened, as a traceback.")]
"""The switch that every verb has, and `tptt` itself before the verb."""


def say(text: str) -> None:
    """Print a line. ``print`` lets a progress bar that is shown move out of its way, which rich's console would not."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def quiet() -> None:
    """Show what tptt says, what text is passed over, and how far long stages are; silence the other libraries."""
    from transformers import logging as hf_logging

    from tptt.data import TextWarning

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", TextWarning)
    warnings.showwarning = _show_warning
    logging.getLogger("transformers").setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logger = logging.getLogger("tptt")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_ToStderr()]


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    warn(str(message))


class _ToStderr(logging.Handler):
    """Writes what tptt logs to what is ``sys.stderr`` by then: warnings as such, the rest with the time of day."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            print(self.format(record), file=sys.stderr, flush=True)


@contextmanager
def errors_told(debug: bool) -> Iterator[None]:
    """Tell what a user can mend in one line and end the verb with 1; with ``debug`` let every error through."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if debug or isinstance(error, typer.Exit | typer.Abort):  # these two are RuntimeErrors
            raise
        print(f"error: {error}\n(--debug shows where)", file=sys.stderr, flush=True)
        raise typer.Exit(1) from error
