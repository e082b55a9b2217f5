"""Imports point one way: ops <- memory <- hf <- convert <- train <- run <- estimate <- cli."""

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "tptt"
LEVELS = {
    name: level
    for level, names in enumerate(
        (
            "version lazy progress fields",
            "config ops data processes assets",
            "memory",
            "hf",
            "inference evaluation",
            "convert",
            "train",
            "run",
            "estimate",
            "quickstart",
            "cli autoload",
        )
    )
    for name in names.split()
}


def imported(path: Path):
    package = ("tptt", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            yield from ([*base, *module, alias.name] for alias in node.names)


def test_imports_point_one_way():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imported(path):
            if name[0] != "tptt" or len(name) < 2 or name[1] in (own, "__version__"):
                continue
            if LEVELS.get(name[1], len(LEVELS)) >= LEVELS[own]:  # a name of tptt itself stands above all
                wrong.append(f"{path.relative_to(SOURCE)} imports {'.'.join(name)}")
    assert not wrong, "\n".join(wrong)


def test_every_part_has_a_level():
    parts = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or p.is_dir()}
    parts -= {"__init__", "__pycache__"}
    assert parts == set(LEVELS)


def test_ops_import_nothing_but_torch():
    for path in (SOURCE / "ops").rglob("*.py"):
        roots = {name[0] for name in imported(path)}
        assert roots <= {"torch", "tptt", "fla", "triton", *sys.stdlib_module_names}, path
