"""Builds the C++ kernels of tptt.ops.native beside the Python files; everything else is in pyproject.toml.

Needs g++ or clang++ (or $CXX) on Linux or macOS; without one the package installs without kernels and runs on PyTorch.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/tptt/ops/native")
KERNELS = NATIVE / "kernels"
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-c"]
# name, floats of a vector, flags
PORTABLE = ("portable", 4, [])
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"]
X86 = [
    ("avx2", 8, ["-mavx2", "-mfma"]),
    ("avx512", 16, AVX512),
]
AMX = ("amx", 16, [*AVX512, "-mamx-tile", "-mamx-bf16", "-DTPTT_TILES"])


def compiler() -> str | None:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for name in wanted if (found := shutil.which(name))), None)


def openmp_flags(cxx: str) -> list[tuple[list[str], list[str]]]:
    """(compiler's, linker's) flags to try in turn, the last without threads. g++'s code runs on the OpenMP library that
    torch has loaded, so none is named; clang's needs its own."""
    version = subprocess.run([cxx, "--version"], capture_output=True, encoding="utf-8").stdout
    if "clang" in version:
        return [(["-fopenmp"], ["-fopenmp"]), ([], [])]
    return [(["-fopenmp"], []), ([], [])]


def knows_tiles(cxx: str) -> bool:
    """g++ from version 11 on, clang++ from 12."""
    done = subprocess.run(
        [cxx, *AMX[2], "-x", "c++", "-fsyntax-only", "-"],
        input="#include <immintrin.h>\n",
        capture_output=True,
        encoding="utf-8",
    )
    return done.returncode == 0


def commands(cxx: str, out: Path, objects: Path, compile_flags: list[str], link_flags: list[str]) -> list[list[str]]:
    """One object per instruction set, the choice between them, and the library."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    result, made = [], []
    sets = [PORTABLE, *(X86 if x86 else []), *([AMX] if x86 and knows_tiles(cxx) else [])]
    for name, lanes, flags in sets:
        made.append(objects / f"{name}.o")
        names = [f"-DTPTT_LANES={lanes}", f"-DTPTT_NAME={name}"]
        result.append([cxx, *FLAGS, *compile_flags, *flags, *names, str(KERNELS / "variant.cpp"), "-o", str(made[-1])])
    made.append(objects / "dispatch.o")
    sources = runpy.run_path(str(NATIVE / "sources.py"))["source_hash"](KERNELS)
    known = [f'-DTPTT_SOURCES="{sources}"', *(["-DTPTT_X86"] if x86 else []), *(["-DTPTT_AMX"] if AMX in sets else [])]
    result.append([cxx, *FLAGS, *known, str(KERNELS / "dispatch.cpp"), "-o", str(made[-1])])
    dynamic = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    result.append([cxx, "-shared", *link_flags, *dynamic, *map(str, made), "-o", str(out)])
    return result


def build(out: Path, objects: Path) -> None:
    """Compile the kernels to the library `out`. Raises RuntimeError where that cannot be done."""
    cxx = compiler()
    if sys.platform not in ("linux", "darwin"):
        raise RuntimeError(f"they need Linux or macOS, not {sys.platform}")
    if cxx is None:
        raise RuntimeError("no C++ compiler (g++ or clang++)")
    objects.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    error = ""
    for flags in openmp_flags(cxx):
        for command in commands(cxx, out, objects, *flags):
            done = subprocess.run(command, capture_output=True, encoding="utf-8")
            if done.returncode:
                error = f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}"
                break
        else:
            return
    raise RuntimeError(error)


class BuildKernels(build_ext):
    def build_extension(self, ext) -> None:
        out = Path(self.get_ext_fullpath(ext.name))
        try:
            build(out, Path(self.build_temp))
        except (RuntimeError, OSError) as error:
            print(f"tptt: the native kernels are skipped, PyTorch does their work: {error}", file=sys.stderr)

    def get_ext_filename(self, ext_name: str) -> str:
        return str(Path(*ext_name.split(".")).with_suffix(".so"))

    def copy_extensions_to_source(self) -> None:
        """For an editable install."""
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            if built.exists():
                shutil.copyfile(built, Path("src", self.get_ext_filename(ext.name)))


class Wheel(bdist_wheel):
    """One wheel for every Python 3: the library knows nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("tptt.ops.native.libtptt_kernels", [str(KERNELS / "variant.cpp")])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
