"""Private names of torch stand in one file, and each may be missing: the results stay the same."""

import ast
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

from tptt.ops import torch_compat, tracing

from .cases import KINDS, assert_close, make_case, native, results

OPS = Path(torch_compat.__file__).parent
LOOKED_UP = {  # in torch_compat: its owner and name in torch
    "in_dispatch_mode": ("torch.utils._python_dispatch", "is_in_torch_dispatch_mode"),
    "in_jit_trace": ("torch.jit", "is_tracing"),
}


def private_names(path):
    """What a file names of torch's insides, in imports and in attributes of what it imports from torch."""
    tree, of_torch = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and not node.level:
            of_torch |= {alias.asname or alias.name for alias in node.names}
            yield from ([node.module] if "._" in node.module else [])
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.Import):
            of_torch |= {"torch"} & {alias.name.split(".")[0] for alias in node.names}
            yield from (alias.name for alias in node.names if alias.name.startswith("torch") and "._" in alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in of_torch:
                yield ast.unparse(node)


def test_private_names_stand_in_one_file():
    found = {path.name: list(private_names(path)) for path in sorted(OPS.rglob("*.py"))}
    assert found.pop("torch_compat.py") == ["torch.utils._python_dispatch"]
    assert not any(found.values()), found


def test_the_search_finds_private_names(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "import torch\nimport torch._C\nfrom torch.a._b import c\nfrom torch.a import _d, ad\n"
        "torch._C._e()\nad._level\nother._mine\ntorch.x.y._z\n"
    )
    assert sorted(private_names(file)) == sorted(
        ["torch._C", "torch.a._b", "_d", "torch._C", "torch._C._e", "ad._level", "torch.x.y._z"]
    )


def loaded_anew():
    """torch_compat, imported once more with torch as it is now."""
    spec = importlib.util.spec_from_file_location("torch_compat_anew", torch_compat.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_torch_has_them_all():
    assert torch_compat.FALLBACKS == {} == loaded_anew().FALLBACKS


@pytest.mark.parametrize("name", LOOKED_UP)
def test_a_missing_name_is_told_at_import(monkeypatch, name):
    owner, attribute = LOOKED_UP[name]
    monkeypatch.delattr(f"{owner}.{attribute}")
    with pytest.warns(RuntimeWarning, match=rf"lacks names that tptt.ops uses. {owner}.{attribute}: the kernels are"):
        compat = loaded_anew()
    assert list(compat.FALLBACKS) == [f"{owner}.{attribute}"]
    assert getattr(compat, name)() is True  # unknown: taken for a call that something records


def test_a_missing_level_is_told_at_import(monkeypatch):
    monkeypatch.delattr("torch.autograd.forward_ad._current_level")
    with pytest.warns(RuntimeWarning, match="forward_ad._current_level: each call asks every tensor"):
        assert list(loaded_anew().FALLBACKS) == ["torch.autograd.forward_ad._current_level"]


@pytest.fixture(params=LOOKED_UP)
def without_a_name(request, monkeypatch):
    """Operators that use what `loaded_anew` found without one of the names."""
    with monkeypatch.context() as missing:
        missing.delattr(".".join(LOOKED_UP[request.param]))
        with pytest.warns(RuntimeWarning):
            compat = loaded_anew()
    monkeypatch.setattr(tracing, request.param, getattr(compat, request.param))


@pytest.mark.parametrize("backend", (native, "auto"))
@pytest.mark.parametrize("kind", ("gated delta", "gated product", "linear without beta"))
def test_without_a_name_every_call_takes_the_operators_of_torch(without_a_name, monkeypatch, kind, backend):
    assert tracing.traced()
    for tokens in (1, 20):
        case = make_case(tokens, groups=2, **KINDS[kind]).to(torch.float32)
        got = results(case, lambda c: c.run(backend))
        with torch.no_grad():
            o, state = case.run(backend)
        monkeypatch.undo()
        assert not tracing.traced()
        want = results(case, lambda c: c.run(backend))
        assert_close(got, want, 0, 0)
        assert_close({"o": o, "state": state}, {name: want[name] for name in ("o", "state")}, 2e-6)


@pytest.fixture
def without_the_level(monkeypatch):
    monkeypatch.setattr(torch_compat, "forward_ad", SimpleNamespace(unpack_dual=forward_ad.unpack_dual))
    assert torch_compat.in_forward_mode()  # unknown: every tensor is asked


@pytest.mark.filterwarnings("ignore")  # forward mode scripts its decompositions
@pytest.mark.parametrize("backend", ("naive", "chunk", native, "auto"))
def test_without_the_level_forward_mode_is_right_or_refused(without_the_level, backend):
    case = make_case(20).to(torch.float32)
    want = case.run(backend)[0]
    with forward_ad.dual_level():
        call = replace(case, v=forward_ad.make_dual(case.v, case.v))
        if backend == "naive":
            ours = replace(case, initial_state=torch.zeros_like(case.initial_state)).run(backend)[0]
            torch.testing.assert_close(forward_ad.unpack_dual(call.run(backend)[0]).tangent, ours)
        else:
            with pytest.raises(NotImplementedError):
                call.run(backend)
    assert torch.equal(case.run(backend)[0], want)


def test_has_tangent_passes_over_what_is_no_tensor():
    assert not torch_compat.in_forward_mode()
    with forward_ad.dual_level():
        assert torch_compat.in_forward_mode()
        dual = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        assert [torch_compat.has_tangent(x) for x in (None, 3, torch.ones(2), dual)] == [False, False, False, True]
