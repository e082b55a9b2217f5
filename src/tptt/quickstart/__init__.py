"""The whole job in one run: convert, train, measure, save, reload, generate, report."""

from .options import QuickstartOptions
from .run import run

__all__ = ["QuickstartOptions", "run"]
