"""A real pretrained model, measured as the field measures.

python -m benchmarks.real prepare     # wheels, base, training text, development and test rows, into runs/real
python -m benchmarks.real convert     # a converted model, into the same folder
python -m benchmarks.real evaluate    # answers of one arm to the rows, into benchmarks/real/results
python -m benchmarks.real report      # tables and plots into docs/
python -m benchmarks.real profile     # seconds of a training step, a prompt and a decoding step, by kind of work

Each command has its own arguments: ``python -m benchmarks.real COMMAND --help``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "prepare": "fetch wheels, write training text and rows",
    "convert": "give a base a memory and train it, resumable",
    "evaluate": "answer the prepared rows with one arm",
    "report": "write tables and plots into docs/",
    "profile": "time a training step, a prompt and a decoding step, converted over base, by kind of work",
}
"""Modules of this package with ``add_arguments(parser)`` and ``run(args)``, and what each does."""


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="benchmarks.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if given[:1] == [name]:  # only the command that is given is imported
            importlib.import_module(f"benchmarks.real.{name}").add_arguments(command)
    args = parser.parse_args(given)
    importlib.import_module(f"benchmarks.real.{args.command}").run(args)


if __name__ == "__main__":
    main()
