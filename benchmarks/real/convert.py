"""Convert a prepared base by a recipe. A run that was stopped goes on from its last checkpoint.

python -m benchmarks.real convert --recipe default --tokens 65536 --background
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tptt.cli.console import quiet
from tptt.run.folder import how_to_go_on
from tptt.run.interrupt import Interrupted
from tptt.run.job import run as train

from .bases import BASES, base_of
from .conversions import RECIPES, Conversion
from .looks import KeepLooks, looks_file
from .place import FOLDER, RESULTS, say

_DONE = "config.json"
"""What a folder holds once the model in it is saved."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--base", choices=list(BASES), default=next(iter(BASES)), help="the model that is converted")
    parser.add_argument("--recipe", choices=list(RECIPES), default="default", help="how")
    parser.add_argument("--tokens", type=int, default=65_536, help="of the training")
    parser.add_argument("--seed", type=int, default=0, help="of rows, LoRA's start and dropout")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the prepared folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the looks are kept")
    parser.add_argument(
        "--minutes", type=float, help="save a checkpoint and stop after so many; the same command goes on"
    )
    parser.add_argument("--background", action="store_true", help="return at once; output goes to a log in the folder")


def run(args: argparse.Namespace) -> None:
    """Convert as ``args`` say; a base or text that is not prepared ends the program and is named."""
    conversion = Conversion(base_of(args.base), args.recipe, args.tokens, args.seed)
    folder, options = conversion.folder(args.folder), conversion.options(args.folder)
    if (folder / _DONE).exists():
        say(f"{conversion.name} is there: {folder}")
        return
    for lacking in (x for x in (options.base_model, options.data) if x and not Path(x).exists()):
        raise SystemExit(f"{lacking} is not there: python -m benchmarks.real prepare --base {args.base}")
    if args.background:
        in_the_background(args, folder.with_name(f"{folder.name}.log"))
        return
    quiet()
    looks = KeepLooks(conversion, looks_file(args.base, args.results))
    timer = stop_after(args.minutes)
    try:
        train(options.changed(resume_from_checkpoint=True), callbacks=[looks])
    except Interrupted as stopped:
        say(f"{stopped}; the same command goes on ({how_to_go_on(options)})")
        raise SystemExit(stopped.exit_code) from stopped
    finally:
        if timer is not None:
            timer.cancel()
    looks.write("saved", 0)
    say(f"{conversion.name}: {folder}")


def stop_after(minutes: float | None) -> threading.Timer | None:
    """Ask this process to save a checkpoint and stop after ``minutes``; None: never."""
    if minutes is None:
        return None
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    return timer


def in_the_background(args: argparse.Namespace, log: Path) -> None:
    """Start the same command as a process of its own, which outlives this one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.real", "convert"]
    for name in ("base", "recipe", "tokens", "seed", "folder", "results"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--minutes", str(args.minutes)] if args.minutes is not None else []
    with log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    say(f"process {process.pid} writes {log}; end it with: kill {process.pid} (it saves a checkpoint first)")
