"""How a verb speaks: its own lines only, and errors without a traceback."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


def quiet() -> None:
    """Only our own progress bar and lines, and what text is passed over."""
    from transformers.utils import logging as hf_logging

    from tptt.data import TextWarning

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", TextWarning)
    warnings.showwarning = _say
    for name in ("transformers", "tptt"):  # what ours warns of stands among the results
        logging.getLogger(name).setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def _say(message, category, filename, lineno, file=None, line=None) -> None:
    Console(stderr=True, highlight=False).print(f"warning: {message}", markup=False, style="yellow", soft_wrap=True)


@contextmanager
def errors_told() -> Iterator[None]:
    """What a user can mend is told in a line, and the verb ends with 1."""
    try:
        yield
    except typer.Exit:  # a RuntimeError, too
        raise
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(1) from error
