"""Print the lower bound of every requirement in pyproject.toml as a pin, for `pip install -c`.

python -m tools.lower_bounds > bounds.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lower_bounds(project: dict, extras: tuple[str, ...]) -> list[str]:
    """``name==version`` of each requirement of the project and of its ``extras``.

    Raises:
        ValueError: a requirement has no lower bound, so that nobody can say where its range begins.
    """
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    pins = []
    for requirement in found:
        if requirement.startswith(f"{project['name']}["):  # another extra of the project
            continue
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?\s*>=\s*([\w.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lower bound: write name>=version")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    print("\n".join(lower_bounds(project, tuple(sys.argv[1:]))))
