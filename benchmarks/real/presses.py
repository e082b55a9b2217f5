"""Arms of kvpress: presses that keep a share of the base's keys and values once the context is read.

kvpress needs an older transformers than tptt, so these arms read in an environment of their own, which `environment`
makes. Prompts go there as token ids, and answers come back, one JSON a line (`presses_worker`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .prompts import Prompt
from .rows import Row

KVPRESS, TRANSFORMERS = "0.5.5", "5.2.0"
PRESSES: dict[str, tuple[str, str]] = {
    "streamingllm": ("StreamingLLMPress", "arXiv 2309.17453"),
    "snapkv": ("SnapKVPress", "arXiv 2404.14469"),
    "keydiff": ("KeyDiffPress", "arXiv 2504.15364"),
    "expected-attention": ("ExpectedAttentionPress", "arXiv 2510.00636"),
    "tova": ("TOVAPress", "arXiv 2401.06104"),
    "kvzip": ("KVzipPress", "arXiv 2505.23416"),
}
"""Class in kvpress and source of each press, all with kvpress's own defaults."""
WORKER = Path(__file__).with_name("presses_worker.py")


def environment(folder: Path) -> Path:
    """The Python of an environment with kvpress in ``folder``, made where it is not there.

    It takes torch from the environment that runs now, so that nothing large is fetched and both compute alike.

    Raises:
        ConnectionError: pip could not fetch kvpress or its transformers.
    """
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    found = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    place = Path(found.stdout.strip()) / "zz_outer_environment.pth"  # behind what is installed in its own folder
    place.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    wanted = [f"kvpress=={KVPRESS}", f"transformers=={TRANSFORMERS}", f"torch=={torch.__version__}"]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    came = subprocess.run([*pip, *wanted], capture_output=True, encoding="utf-8")
    if came.returncode:
        said = [line for line in came.stderr.splitlines() if line.strip()]
        raise ConnectionError(
            f"pip could not install {' '.join(wanted)} ({said[-1].strip() if said else 'it said nothing'}); give an "
            "environment that has them by --presses-python"
        )
    done.touch()
    return python


def press_answers(
    python: Path, base: Path, press: str, share: float, rows: Sequence[tuple[Row, Prompt]]
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The rows with their answers, in order, as they come.

    Args:
        python: Of an environment with kvpress.
        base: The base as a plain folder, which both versions of transformers read.
        press: A key of `PRESSES`.
        share: Part of the keys and values of the context that is kept.
        rows: With their prompts.

    Raises:
        RuntimeError: The worker ended early; the message holds the end of what it said.
    """
    job = {"base": str(base), "press": PRESSES[press][0], "share": share, "threads": torch.get_num_threads()}
    # the outer environment's backends belong to another transformers
    surroundings = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONPATH": ""}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as messages,  # a pipe that nobody reads would fill and stop it
        subprocess.Popen(
            [str(python), "-P", str(WORKER), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            encoding="utf-8",
            env=surroundings,
        ) as worker,
    ):
        try:
            for row, prompt in rows:
                asked = {
                    "context": prompt.context,
                    "question": prompt.question,
                    "room": row.max_new_tokens,
                    "answers": row.answers,
                    "judge": row.judge,
                }
                line = _ask(worker, json.dumps(asked))
                if not line:
                    worker.wait()
                    messages.seek(0)
                    said = messages.read().strip().splitlines()[-12:]
                    raise RuntimeError("the worker with kvpress ended early:\n" + "\n".join(said))
                yield row, json.loads(line)
        finally:
            worker.kill()


def _ask(worker: subprocess.Popen[str], line: str) -> str:
    """The worker's answer to a line; "" where it has ended."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return ""
    return worker.stdout.readline()
