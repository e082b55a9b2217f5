"""The arms of the bench: which model reads a row, and what kind of cache it keeps.

base                        the base with all its keys and values (DynamicCache)
base-yarn                   beyond its context: the base with YaRN (arXiv 2309.00071), factor = length / context;
                            within its context it is the base itself
window@N                    the base, untrained, with a sliding window of N tokens
streaming@N                 the same with 4 sinks: StreamingLLM (arXiv 2309.17453), positions as in the text
quantized                   the base's keys and values in 4 bits, transformers' QuantizedCache (package hqq)
NAME=FOLDER                 a converted model that `tptt train` or `python -m benchmarks.real convert` wrote
NAME=FOLDER,window=N        the same with a window of N tokens
NAME=FOLDER,memory=none     the same without its memory: its window alone
PRESS@SHARE                 kvpress keeps that share of the base's keys and values, see `presses`
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .greedy import CHUNK

SINKS = 4
_BITS = 4
_GROUP = 64  # weights that share a scale
_RECENT = 128  # last tokens that are kept as they are: transformers' default
_BASE = ("base", "base-yarn", "quantized")
_WINDOWS = {"window": 0, "streaming": SINKS}


@dataclass(frozen=True)
class Arm:
    """What one arm of the bench is.

    Args:
        name: By which files and tables call it.
        kind: "base", "base-yarn", "quantized", "window", "converted" or "press".
        window: Tokens of its window; None: it has none, or the one of its checkpoint.
        sinks: First tokens that an untrained window keeps.
        folder: Of a converted model.
        memory: Whether a converted model keeps its memory.
        press: Name of a press.
        share: Part of the keys and values that a press keeps.
    """

    name: str
    kind: str
    window: int | None = None
    sinks: int = 0
    folder: Path | None = None
    memory: bool = True
    press: str = ""
    share: float = 1.0

    @classmethod
    def read(cls, text: str) -> Arm:
        """An arm as the command line gives it.

        Raises:
            ValueError: It is none; the message lists what there is.
        """
        if "=" in text.partition(",")[0]:
            return _converted(text)
        if text in _BASE:
            return cls(text, text)
        kind, at, value = text.partition("@")
        if at and kind in _WINDOWS:
            return cls(text, "window", window=_count(value, text), sinks=_WINDOWS[kind])
        if at:
            from .presses import PRESSES

            if kind in PRESSES:
                return cls(text, "press", press=kind, share=_share(value, text))
        raise ValueError(f"there is no arm {text!r}. The arms:\n{(__doc__ or '').partition(chr(10) * 2)[2]}")


def _converted(text: str) -> Arm:
    named, *options = text.split(",")
    name, _, folder = named.partition("=")
    window, memory = None, True
    for option in options:
        key, _, value = option.partition("=")
        if key == "window":
            window = _count(value, text)
        elif option == "memory=none":
            memory = False
        else:
            raise ValueError(f"arm {text!r}: a converted model takes window=N and memory=none, not {option!r}")
    if not name or not (Path(folder) / "config.json").exists():
        raise ValueError(
            f"arm {text!r}: NAME=FOLDER names a folder with a converted model; {folder!r} has no config.json"
        )
    return Arm(name, "converted", window=window, folder=Path(folder), memory=memory)


def _count(value: str, text: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"arm {text!r}: a window is a number of tokens, 1 or more, not {value!r}")
    return int(value)


def _share(value: str, text: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"arm {text!r}: the share that is kept lies above 0 and is 1 at most, not {value!r}")
    return share


@dataclass(frozen=True)
class Reader:
    """A model that reads rows.

    Args:
        model_for: The model for a prompt of that nominal length.
        new_cache: An empty cache for a model; None: the model makes its own.
        chunk: Tokens of one call while it reads a context; None: one call, see `greedy.read`. Where keys and values
            are quantised, several calls would quantise them several times.
    """

    model_for: Callable[[int], Any]
    new_cache: Callable[[Any], Any] = lambda model: None
    chunk: int | None = None


def load(arm: Arm, base: Path, context: int) -> Reader:
    """The model of an arm, in float32 and eval mode.

    Args:
        arm: Any but a press, which reads in an environment of its own.
        base: The base as a plain folder.
        context: Tokens that the base was trained to read.

    Raises:
        ModuleNotFoundError: The arm needs a package that is not installed.
        ValueError: A press; or a converted model that has no memory to take away or no such setting.
    """
    if arm.kind == "converted":
        converted = _load_converted(arm)
        return Reader(lambda length: converted, chunk=CHUNK)
    if arm.kind == "press":
        raise ValueError(f"{arm.name} reads in an environment of its own: see benchmarks.real.presses")
    if arm.kind == "base-yarn":
        return Reader(Yarn(base, context))
    model = load_base(base)
    if arm.kind == "window":
        from tptt import MemoryConfig
        from tptt.hf import attach_window

        attach_window(model, MemoryConfig(max_self_attn_length=arm.window, sink_tokens=arm.sinks))
        return Reader(lambda length: model, chunk=CHUNK)
    if arm.kind == "quantized":
        _require_hqq()
        return Reader(lambda length: model, quantized_cache)
    return Reader(lambda length: model)


def load_base(folder: Path) -> Any:
    """The base of a plain folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _load_converted(arm: Arm) -> Any:
    from tptt import TpttModel
    from tptt.convert.window_only import window_alone

    settings = {} if arm.window is None else {"max_self_attn_length": arm.window}
    model = TpttModel.from_pretrained(str(arm.folder), dtype=torch.float32, **settings).eval()
    return model if arm.memory else window_alone(model)


class Yarn:
    """The base for prompts longer than its context: one model per factor, which all share their weights."""

    def __init__(self, folder: Path, context: int) -> None:
        self._base, self._context = load_base(folder), context
        self._models: dict[float, Any] = {1.0: self._base}

    def __call__(self, length: int) -> Any:
        factor = max(1.0, length / self._context)
        if factor not in self._models:
            self._models[factor] = yarn(self._base, factor, self._context)
        return self._models[factor]


def yarn(base: Any, factor: float, context: int) -> Any:
    """``base`` with YaRN's rotary embedding for ``factor`` times its ``context``; it shares the weights of ``base``.

    Raises:
        ValueError: The base's layers do not all turn by one rotary embedding.
    """
    config = type(base.config).from_dict(base.config.to_dict())
    before = dict(config.rope_parameters)
    if "rope_theta" not in before:
        raise ValueError(
            f"{type(base).__name__} has a rotary embedding for each kind of layer: YaRN is not set up for it"
        )
    config.rope_parameters = before | {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": context,
    }
    config.max_position_embeddings = round(factor * context)
    model = type(base)(config)
    model.load_state_dict(base.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = base.generation_config
    return model.eval()


def quantized_cache(model: Any) -> Any:
    """An empty cache that keeps keys and values in 4 bits, in groups of 64, and the last 128 tokens as they are."""
    from transformers import QuantizedCache

    return QuantizedCache(
        backend="hqq",
        config=model.config.get_text_config(decoder=True),
        nbits=_BITS,
        axis_key=1,
        axis_value=1,
        q_group_size=_GROUP,
        residual_length=_RECENT,
    )


def _require_hqq() -> None:
    if importlib.util.find_spec("hqq") is None:
        raise ModuleNotFoundError(
            "the arm quantized needs the package hqq: pip install --no-deps hqq termcolor (it asks for more packages "
            "than quantising a cache uses)"
        )
