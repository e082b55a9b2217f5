"""Where a number comes from: commit, code, machine, versions and time of the run that measured it.

python -m benchmarks.record     # says of each section of RESULTS.md whether the code that it measured has changed

Every benchmark asks `provenance` once and keeps the answer beside what it measures. Nothing fills in a provenance
later: what a run did not record stays unknown.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import tokenize
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import tptt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
FIELDS = ("commit", "code", "machine", "threads", "python", "torch", "transformers", "peft", "tptt", "utc")
"""What `provenance` records: the commit, a hash of the measured code, processor or GPU, torch's threads, versions,
date."""

_MEMORY = ("src/tptt/config.py", "src/tptt/ops", "src/tptt/memory", "src/tptt/hf")
_MEASURED = (*_MEMORY, "src/tptt/data", "src/tptt/evaluation", "src/tptt/inference")
_TRAINED = (*_MEASURED, "src/tptt/convert", "src/tptt/train", "benchmarks/answers.py", "benchmarks/held_out.py")
SOURCES: dict[str, tuple[str, ...]] = {
    "conversion": (
        *_TRAINED,
        "benchmarks/original_operator.py",
        "benchmarks/conversion/bench.py",
        "benchmarks/conversion/changes.py",
        "benchmarks/conversion/half_life.py",
        "benchmarks/conversion/records.py",
        "benchmarks/conversion/second_write.py",
        "benchmarks/conversion/sinks.py",
    ),
    "layers": (*_TRAINED, "benchmarks/layers/bench.py"),
    "features": (*_TRAINED, "benchmarks/features.py"),
    "widths": (*_MEASURED, "src/tptt/convert", "benchmarks/widths.py"),
    "generation": (
        *_MEASURED,
        "src/tptt/convert",
        "benchmarks/timing.py",
        "benchmarks/generation/models.py",
        "benchmarks/generation/measure.py",
    ),
    "ops": (
        "src/tptt/ops",
        "src/tptt/train/allocator.py",
        "setup.py",
        "benchmarks/timing.py",
        "benchmarks/ops/contenders.py",
        "benchmarks/ops/memory.py",
        "benchmarks/ops/original_worker.py",
        "benchmarks/ops/tables.py",
    ),
    "families": (*_MEASURED, "benchmarks/families.py", "benchmarks/tiny.py"),
    "real": (
        *_MEASURED,
        "src/tptt/convert/window_only.py",
        "benchmarks/real/arms.py",
        "benchmarks/real/greedy.py",
        "benchmarks/real/judge.py",
        "benchmarks/real/peak.py",
        "benchmarks/real/perplexity.py",
        "benchmarks/real/presses.py",
        "benchmarks/real/presses_worker.py",
        "benchmarks/real/prompts.py",
        "benchmarks/real/rows.py",
        "benchmarks/real/skills.py",
    ),
    "real_convert": (
        *_TRAINED,
        "src/tptt/run",
        "benchmarks/real/bases.py",
        "benchmarks/real/conversions.py",
        "benchmarks/real/lines.py",
        "benchmarks/real/looks.py",
        "benchmarks/real/place.py",
        "benchmarks/real/wheels.py",
    ),
    "real_rows": (
        "benchmarks/real/place.py",
        "benchmarks/real/build.py",
        "benchmarks/real/draws.py",
        "benchmarks/real/fill.py",
        "benchmarks/real/material.py",
        "benchmarks/real/passages.py",
        "benchmarks/real/rows.py",
        "benchmarks/real/ruler",
        "benchmarks/real/sources.py",
        "benchmarks/real/texts.py",
    ),
}
"""For each benchmark, the files and folders that its results depend on."""
_SUFFIXES = {".py", ".cpp", ".h"}
_CODE = re.compile(r"\(code ([0-9a-f]{12}), `benchmarks\.(\w+)`\)")


def files_of(kind: str) -> list[Path]:
    """The files that results of the benchmark ``kind`` depend on.

    Raises:
        FileNotFoundError: `SOURCES` names a file or folder that is not there.
    """
    found: list[Path] = []
    for name in SOURCES[kind]:
        path = ROOT / name
        if not path.exists():
            raise FileNotFoundError(f"benchmarks.record.SOURCES[{kind!r}] names {name}, which does not exist")
        found += [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in _SUFFIXES]
    return sorted(set(found))


def code_text(source: str) -> str:
    """Python ``source`` without comments, docstrings and blank lines: what is left when only words change.

    It cuts the text itself, so that every version of Python gives the same one.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            before, after = lines[first][: node.col_offset], lines[last].encode()[node.end_col_offset :]
            if not before.strip() and not after.strip():  # it stands alone on its lines
                lines[first : last + 1] = [""] * (last + 1 - first)
    return "\n".join(line.rstrip() for line in lines if line.strip())


@cache
def measured_text(path: Path) -> bytes:
    """What of a file counts as its code."""
    text = path.read_text(encoding="utf-8")
    return (code_text(text) if path.suffix == ".py" else text).encode()


@cache
def code_version(kind: str) -> str:
    """A hash of the code that results of ``kind`` depend on, as it was when this process first asked."""
    found = hashlib.sha256()
    for path in files_of(kind):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + measured_text(path) + b"\0")
    return found.hexdigest()[:12]


@cache
def commit(kind: str) -> str:
    """The commit, with ``-dirty`` where a file that ``kind`` depends on is not as in it; "unknown" without git."""
    found = _git("rev-parse", "--short=10", "HEAD")
    if found is None:
        return "unknown"
    return f"{found}-dirty" if _git("status", "--porcelain", "--", *SOURCES[kind]) else found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", cwd=ROOT)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()


def processor(device: str = "cpu") -> str:
    """Name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def provenance(kind: str, device: str = "cpu") -> dict[str, Any]:
    """`FIELDS` of a run of the benchmark ``kind`` in this process, now, on ``device``."""
    return {
        "commit": commit(kind),
        "code": code_version(kind),
        "machine": f"{processor(device)}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("transformers", "peft")},
        "tptt": tptt.__version__,
        "utc": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }


def is_current(kind: str, found: Mapping[str, Any]) -> bool:
    """Whether the provenance ``found`` is of the code that is here now."""
    return found.get("code") == code_version(kind)


def place(found: Mapping[str, Any]) -> str:
    """What two provenances have in common that differ in their date alone."""
    return json.dumps({k: v for k, v in found.items() if k != "utc"}, sort_keys=True)


def described(kind: str, *found: Mapping[str, Any]) -> str:
    """Provenances of one `place` in one line, which says so where the code has changed since or something is not
    known."""
    one = found[0]
    if "code" in one:
        dates = sorted(x["utc"] for x in found)
        text = (
            f"commit {one['commit']} (code {one['code']}, `benchmarks.{kind}`), {one['machine']}, {one['threads']} "
            f"threads, Python {one['python']}, torch {one['torch']}, transformers {one['transformers']}, peft "
            f"{one['peft']}, tptt {one['tptt']}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))} UTC"
        )
    else:
        known = [f"commit {one.get('commit', 'unknown')}"]
        known += [f"in the repository since {one['recorded_in']}"] if "recorded_in" in one else []
        known.append(str(one.get("machine", "machine not recorded")))
        known += [f"{one['threads']} threads"] if "threads" in one else []
        known += [f"torch {one['torch']}"] if "torch" in one else []
        text = ", ".join([*known, "all else not recorded"])
    return text if is_current(kind, one) else f"{text}; the code has changed since"


def section(kind: str, command: str, parts: list[str], device: str = "cpu") -> str:
    """A section of RESULTS.md: the command that prints it, where it was measured, then ``parts``."""
    head = f"`{command}`\n\nMeasured at {described(kind, provenance(kind, device))}."
    return "\n\n".join([head, *parts])


def write_section(file: Path, title: str, text: str) -> None:
    """Put ``text`` under the heading ``## title`` of a Markdown file, in the place of what stood there."""
    old = file.read_text(encoding="utf-8") if file.exists() else "# Results\n"
    head, *sections = old.split("\n## ")
    new = f"{title}\n\n{text.strip()}\n"
    titles = [s.partition("\n")[0] for s in sections]
    if title in titles:
        sections[titles.index(title)] = new
    else:
        sections.append(new)
    file.write_text("\n## ".join([head.rstrip() + "\n", *(s.rstrip() + "\n" for s in sections)]), encoding="utf-8")


def ages(text: str) -> list[tuple[str, str]]:
    """(title, what is known) of each section ``## title`` of a Markdown file's ``text``."""
    found = []
    for part in text.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        versions = _CODE.findall(body)
        old = [kind for code, kind in versions if not is_current(kind, {"code": code})]
        if not versions:
            state = "older: its code was not recorded"
        elif old:
            state = f"older: the code of {', '.join(sorted(set(old)))} has changed since"
        else:
            state = "measured with today's code"
        found.append((title, state))
    return found


def main() -> None:
    for title, state in ages(RESULTS.read_text(encoding="utf-8")):
        print(f"{title}: {state}")


if __name__ == "__main__":
    main()
