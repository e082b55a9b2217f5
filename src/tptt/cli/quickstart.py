"""`tptt quickstart`: convert, train, measure, save, reload, generate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Debug, errors_told, quiet


def quickstart(
    context: typer.Context,
    base_model: Annotated[
        str | None,
        typer.Option(help="Path or hub id of a causal LM, or path of a .gguf file; default: the embedded one."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that comes with the base run.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Text file, folder, table or data set; default: this Python's documentation.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder to write; must be empty.")] = Path("quickstart-out"),
    window: Annotated[int | None, typer.Option(help="Softmax window W in tokens; default: seq-len / 8.")] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens of a training row; default: the base's context, at most 512.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of 2 rows.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice.")] = None,
    debug: Debug = False,
) -> None:
    """Convert a base, train it, compare it with the base and with its window alone, save, reload, generate, report."""
    with errors_told(debug or bool(context.obj)):
        from tptt.quickstart.options import QuickstartOptions, check_output

        options = QuickstartOptions(
            output_dir=output_dir,
            base_model=base_model,
            trust_remote_code=trust_remote_code,
            data=data,
            window=window,
            seq_len=seq_len,
            steps=steps,
            seed=seed,
            threads=threads,
        )
        check_output(output_dir)
        quiet()
        from tptt.quickstart.run import run

        run(options)


def main() -> None:
    """This verb as a command of its own."""
    typer.run(quickstart)


if __name__ == "__main__":
    main()
