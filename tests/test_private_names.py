"""Private and version-dependent names of other packages stand in one file for each room that needs some.

Checked on the syntax tree: a name that transformers or peft may rename is mended in `hf/compat.py` alone.
"""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tptt"
FILES = sorted(SOURCE.rglob("*.py"))
COMPAT = {SOURCE / "hf" / "compat.py", SOURCE / "hf" / "config_compat.py"}
ALLOWED = {*COMPAT, SOURCE / "ops" / "torch_compat.py", SOURCE / "estimate" / "torch_compat.py"}
RENAMED = {"layer_past", "cache_params", "past_key_value"}  # beside past_key_values, which users write
# of torch.nn.Module its dictionaries, which torch's documentation names; of named tuples what Python documents
MODULE = {"_replace", "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}
CALLS = {"getattr", "hasattr", "setattr", "delattr"}


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def is_private(name):
    return bool(re.fullmatch(r"_[A-Za-z]\w*", name))


def own_names():
    """Private names that this package defines itself: functions, classes, fields, assignments."""
    found = set()
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                found.add(node.attr)
    return {name for name in found if is_private(name)}


def names_used(path):
    """(line, private name) of every attribute, and of every name given to getattr and its kin, in a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            for argument in node.args[1:2]:
                if isinstance(argument, ast.Constant) and is_private(str(argument.value)):
                    yield node.lineno, argument.value


def imports(path):
    """(line, module) of every import in a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if is_private(alias.name))


def test_private_names_of_others_stand_in_one_file_for_each_room():
    own = own_names() | MODULE
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path in FILES
        if path not in ALLOWED
        for line, name in names_used(path)
        if name not in own
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["transformers", "peft", "accelerate", "trl"])
def test_the_insides_of_a_package_are_imported_by_compat_alone(package):
    """A module of transformers or peft is an inside; their public names lie in the packages themselves."""
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path in FILES
        if path not in COMPAT
        for line, name in imports(path)
        if name.startswith(f"{package}.")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_caches_names_stand_in_compat_alone():
    wrong = []
    for path in FILES:
        if path in COMPAT:
            continue
        for node in ast.walk(tree_of(path)):
            used = {
                ast.Attribute: lambda n: n.attr,
                ast.keyword: lambda n: n.arg,
                ast.Constant: lambda n: n.value,
            }.get(type(node), lambda n: None)(node)
            if used in RENAMED or (used == "past_key_values" and path.name != "model.py"):
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} {used}")
    assert not wrong, "\n".join(wrong)


def test_private_imports_of_torch_stand_in_its_compat():
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path in FILES
        if path not in ALLOWED
        for line, name in imports(path)
        if name.startswith("torch.") and any(is_private(part) for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_looked_for_is_found(tmp_path):
    """The checks see what they are to see."""
    file = tmp_path / "x.py"
    file.write_text("from peft.utils import y\nx._hidden\ngetattr(x, '_too')\nimport torch._C\n", encoding="utf-8")
    assert [name for _, name in names_used(file)] == ["_hidden", "_too"]
    assert {name for _, name in imports(file)} == {"peft.utils", "torch._C"}
