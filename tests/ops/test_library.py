"""The compiled library as a file: a stale, foreign or broken one is refused in one line and PyTorch does its work; and
what happens where the system has too little memory."""

import ast
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tptt.ops import available_backends, delta_rule_step
from tptt.ops.native import fourier_serves, library, library_file, sources, structs

from .cases import make_case

pytestmark = pytest.mark.skipif(bool(available_backends()["native"]), reason="no kernels here")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="of the ELF format, or of limits that Linux keeps")
FUNCTIONS = ("forward", "backward", "step", "memory_step", "fourier", "fourier_backward", "best", "sizes")


@pytest.fixture
def install(monkeypatch, tmp_path):
    """A function that puts other bytes in the library's place."""

    def put(content):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.so"  # a loaded file is known by its path
        if content is not None:
            file.write_bytes(content)
        monkeypatch.setattr(library, "FILE", file)
        library._attempt.cache_clear()

    yield put
    library._attempt.cache_clear()


def check_that_pytorch_does_the_work(reason):
    """Every operator works, and says why the kernels do not, where they are asked for."""
    assert reason in available_backends()["native"]
    case = make_case(40).to(torch.float32)
    with pytest.raises(ValueError, match="'native' cannot serve this call: it "):
        case.run("native")
    with pytest.raises(RuntimeError, match="tptt's native kernels: it "):
        library.library()
    torch.testing.assert_close(case.run("auto"), case.run("chunk"), rtol=0, atol=0)
    one = case.tokens(0, 1, case.initial_state)
    state = case.initial_state.clone()
    o, after = delta_rule_step(one.q, one.k, one.v, one.beta, one.g, state=state, scale=0.7, inplace=True)
    assert after is state
    torch.testing.assert_close((o, state), one.run("naive"))
    assert not fourier_serves(torch.ones(1, 16))


def broken():
    """{kind: (content of the file or None, what is said of it)}"""
    whole = library.FILE.read_bytes()
    own = sources.source_hash().encode()
    assert whole.count(own) == 1
    return {
        "other sources": (whole.replace(own, b"0" * 64), "built from other sources than the installed ones"),
        "from before there was a hash": (whole.replace(sources.MARK, b"?" * len(sources.MARK)), "does not say which"),
        "no library": (b"no library", "does not say which sources"),
        "an empty file": (b"", "does not say which sources"),
        "text with the right hash": (sources.MARK + own, "could not be loaded"),
        "truncated": (whole[: len(whole) // 2], "is truncated"),
        "another format of ELF": (whole[:4] + b"\x01" + whole[5:], "could not be loaded"),
    }


@on_linux
@pytest.mark.parametrize("kind", broken() if not available_backends()["native"] else ())
def test_a_library_that_does_not_fit_is_refused(install, kind):
    content, reason = broken()[kind]
    install(content)
    with pytest.warns(RuntimeWarning, match="PyTorch does their work: it could not be loaded") as told:
        assert reason in available_backends()["native"]
    assert len(told) == 1
    check_that_pytorch_does_the_work(reason)  # and nothing warns again
    if reason != "could not be loaded":
        assert "`pip install .`" in str(told[0].message)


@on_linux
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_library_without_one_of_the_functions_is_refused(install, name):
    symbol = f"\0tptt_{name}\0".encode()
    whole = library.FILE.read_bytes()
    assert symbol in whole
    install(whole.replace(symbol, symbol[:-2] + b"X\0"))
    with pytest.warns(RuntimeWarning, match=f"has no function tptt_{name}; `pip install .`"):
        check_that_pytorch_does_the_work("has no function")


def test_structs_of_other_sizes_are_refused(monkeypatch):
    monkeypatch.setattr(structs, "SIZES", (*structs.SIZES[:3], structs.SIZES[3] + 8))
    with pytest.raises(OSError, match="structs of other sizes"):
        library.Library(library.FILE)


def test_no_library_at_all(install):
    install(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # without a compiler that is no surprise
        check_that_pytorch_does_the_work("it was not built")


@on_linux
def test_no_length_of_a_truncated_library_kills_the_process(tmp_path):
    """The loader maps what a file announces, and reading behind its end is a fault of the bus."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tptt.ops.native import library\n"
        "whole = library.FILE.read_bytes()\n"
        "for part in range(64):\n"
        "    file = Path(sys.argv[1], f'{part}.so')\n"
        "    file.write_bytes(whole[: len(whole) * part // 64])\n"
        "    try:\n"
        "        library.Library(file)\n"
        "    except OSError:\n"
        "        pass\n"
        "print('alive')\n"
    )
    done = run(code, str(tmp_path))
    assert done.returncode == 0 and "alive" in done.stdout, done.stderr


def test_the_hash_is_that_of_names_and_contents(tmp_path):
    (tmp_path / "a.h").write_text("one")
    first = sources.source_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("no source")
    assert sources.source_hash(tmp_path) == first and len(first) == 64
    (tmp_path / "a.h").write_text("two")
    assert sources.source_hash(tmp_path) != first
    (tmp_path / "a.h").write_text("one")
    (tmp_path / "a.h").rename(tmp_path / "b.h")
    assert sources.source_hash(tmp_path) != first


def test_a_library_whose_sources_are_not_installed_is_refused(tmp_path):
    with pytest.raises(OSError, match="cannot be checked: there are no kernel sources in"):
        library_file.check_file(library.FILE, tmp_path)


def test_a_changed_source_makes_the_library_stale(tmp_path):
    for file in sources.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    library_file.check_file(library.FILE, tmp_path)
    (tmp_path / "abi.h").write_text((tmp_path / "abi.h").read_text() + "\n")
    with pytest.raises(OSError, match="built from other sources"):
        library_file.check_file(library.FILE, tmp_path)


def test_the_build_can_hash_without_anything_installed():
    tree = ast.parse(Path(sources.__file__).read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert set(names) <= {"__future__", "hashlib", "pathlib"}


def test_an_instruction_set_that_is_not_there():
    with pytest.raises(OSError, match="TPTT_INSTRUCTIONS=mmx is not available on this processor; valid: portable"):
        library.Library(library.FILE, "mmx")


@on_linux
def test_too_little_memory_is_an_error_that_changes_nothing():
    done = run("import tests.ops.out_of_memory")
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    assert done.stdout.splitlines() == [
        "forward",
        "backward",
        "step",
        "memory step",
        "mixing gate of a memory step",
        "fourier",
        "fourier backward",
    ]


def test_accelerate_takes_the_error_for_too_little_memory():
    memory = pytest.importorskip("accelerate.utils.memory")
    assert memory.should_reduce_batch_size(RuntimeError(library.OUT_OF_MEMORY))


def run(code, *arguments):
    """The code in a process of its own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=os.environ, cwd=root, capture_output=True, text=True)
