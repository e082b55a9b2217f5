"""Which of peft's configurations work beside a memory, and what they do to the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftType

from .configuration import jsonable, named_adapters

PEFT_TYPES = (
    "LORA",
    "ADALORA",
    "BOFT",
    "C3A",
    "DEFT",
    "DELORA",
    "FOURIERFT",
    "GLORA",
    "GRALORA",
    "HIRA",
    "HRA",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "MISS",
    "OFT",
    "OSF",
    "PEANUT",
    "PVERA",
    "RANDLORA",
    "ROAD",
    "SHIRA",
    "SUPERTUNING",
    "TINYLORA",
    "TRAINABLE_TOKENS",
    "UNILORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
)
"""peft's methods that train, generate, save, load and merge beside a memory. Prompt learning is none of them: the
memory would read its virtual tokens at every step of generation."""
ONE_AT_A_TIME = ("ADALORA", "BOFT", "SHIRA", "TINYLORA", "UNILORA", "VBLORA")
"""Methods of which a model holds one adapter at most."""
_REPLACES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of starting LoRA that change the base's weights."""
_REPEATABLE = ("pissa", "olora")
"""Those of them that change the same base in the same way every time."""


def check_adapter(settings: Mapping[str, Any], name: str = "lora_config") -> PeftConfig:
    """peft's configuration of ``settings``, which an error calls ``name``.

    Raises:
        ValueError: a setting is unknown, or it is a method, a task or a variant that does not work beside a memory.
    """
    kind, task = str(jsonable(settings["peft_type"])).upper(), jsonable(settings.get("task_type"))
    if kind not in PEFT_TYPES:
        raise ValueError(
            f"{name}: peft_type {kind!r} does not work beside a memory (it was not tried, or fails to train, generate, "
            f"save, load or merge); valid are {', '.join(PEFT_TYPES)}"
        )
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{name}: task_type {task!r} is not for a causal language model; valid are 'CAUSAL_LM' and None"
        )
    if settings.get("alora_invocation_tokens") is not None:
        raise ValueError(
            f"{name}: alora_invocation_tokens (activated LoRA) does not work beside a memory; leave it out"
        )
    valid = sorted(f.name for f in fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]))
    if unknown := sorted(set(settings) - set(valid)):
        raise ValueError(f"{name}: unknown {', '.join(unknown)}; settings of {kind} are {', '.join(valid)}")
    try:
        return PeftConfig.from_peft_type(**{**settings, "peft_type": kind})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def moves_base(settings: Mapping[str, Any], at_random: bool = False) -> bool:
    """Whether making an adapter of ``settings`` changes the base's weights. With ``at_random``: whether it also changes
    them differently every time."""
    start = str(settings.get("init_lora_weights")).lower()
    repeatable = start in _REPEATABLE
    return start.startswith(_REPLACES_BASE) and not (at_random and repeatable)


def check_adapters(lora_config: dict[str, Any] | None) -> None:
    """Refuse what ``TpttConfig.lora_config`` asks of peft in vain.

    Raises:
        As `check_adapter`.
    """
    for name, settings in named_adapters(lora_config).items():
        check_adapter(settings, "lora_config" if name == "default" else f"lora_config of adapter {name!r}")
