"""How a verb speaks: its own lines only, and errors in one line."""

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
    """Let through what the verb itself says, what text is passed over, and how far long stages are."""
    from transformers.utils import logging as hf_logging

    from tptt.data import TextWarning

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", TextWarning)
    warnings.showwarning = _show_warning
    for name in ("transformers", "tptt"):  # what tptt warns of stands among the results
        logging.getLogger(name).setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    _show_progress()


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    warn(str(message))


def _show_progress() -> None:
    """Write the lines of `tptt.progress` to stderr, each with the time of day."""
    logger = logging.getLogger("tptt.progress")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]


class _ToStderr(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
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
