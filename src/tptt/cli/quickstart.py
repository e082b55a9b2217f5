"""`tptt quickstart`: convert, train, measure, save, reload, generate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import errors_told, quiet


def quickstart(
    base_model: Annotated[
        str | None, typer.Option(help="Path or hub id of a causal LM; default: the embedded one.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Text file, folder, table or data set; default: this Python's documentation.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty.")] = Path("quickstart-out"),
    window: Annotated[int | None, typer.Option(help="Softmax window W in tokens; default: length / 8.")] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a training row; default: the base's context, at most 512.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of 2 rows.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice.")] = None,
) -> None:
    """Convert a base, train it, compare it with the base and with its window alone, save, reload, generate, report."""
    console = Console(highlight=False)
    with errors_told():
        from tptt.quickstart.options import QuickstartOptions, check_output

        options = QuickstartOptions(
            out=out,
            base_model=base_model,
            data=data,
            window=window,
            length=length,
            steps=steps,
            seed=seed,
            threads=threads,
        )
        check_output(out)
        quiet()
        from tptt.quickstart.run import run

        run(options, console)


def main() -> None:
    """This verb as a command of its own."""
    typer.run(quickstart)


if __name__ == "__main__":
    main()
