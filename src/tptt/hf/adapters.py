"""The adapters that peft puts into the base of a converted model: which are known, how they are made, named and read
back.

An adapter is one set of trained weights (LoRA, IA3, ...) with a name; several may lie in one model, one or more of them
active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from torch import nn
from transformers import PreTrainedModel

from .compat import adapter_status, is_quantised, on_execution_device, set_tied_names
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
"""peft's methods that train, generate, save, load and merge beside a memory. Prompt learning does not: its virtual
tokens would be read by the memory at every step of generation."""
ONE_AT_A_TIME = ("ADALORA", "BOFT", "SHIRA", "TINYLORA", "UNILORA", "VBLORA")
"""Those of them that one model holds one adapter of."""
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
            f"save, "
            f"load or merge); valid are {', '.join(PEFT_TYPES)}"
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
        return PeftConfig.from_peft_type(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def moves_base(settings: Mapping[str, Any], at_random: bool = False) -> bool:
    """Whether making an adapter of ``settings`` changes the base's weights; ``at_random``: and not every time alike."""
    start = str(settings.get("init_lora_weights")).lower()
    repeatable = start in _REPEATABLE
    return start.startswith(_REPLACES_BASE) and not (at_random and repeatable)


def with_adapters(
    base: PreTrainedModel, adapters: Mapping[str, Mapping[str, Any]], active: Sequence[str] | None, weights_follow: bool
) -> PeftModel:
    """``base`` inside peft's model with ``adapters`` (name -> settings), of which those called ``active`` are at work.

    Args:
        base: the base model; it is frozen.
        active: names; None is the first adapter, an empty sequence none.
        weights_follow: the base's weights are already those that making the adapters would give it.
    """
    parts = frozenset(part for name, _ in base.named_modules() for part in name.split(".") if part)
    configs = {name: check_adapter(settings, f"lora_config of adapter {name!r}") for name, settings in adapters.items()}
    starts = {n: c.init_lora_weights for n, c in configs.items() if weights_follow and moves_base(adapters[n])}
    for name in starts:
        configs[name].init_lora_weights = True
    AdapterConfigs(configs, parts)  # refuses before anything is changed
    if is_quantised(base):
        base = prepare_model_for_kbit_training(base)
    (first, config), *others = configs.items()
    with on_execution_device(base) as offloaded:
        if offloaded:
            _refuse_reading(configs, offloaded)
        model = get_peft_model(base, config, adapter_name=first)
        for name, other in others:
            model.add_adapter(name, other)
    for name, start in starts.items():
        model.peft_config[name].init_lora_weights = start
    model.base_model.peft_config = AdapterConfigs(model.peft_config, parts)
    activate(model, [first] if active is None else active)
    set_tied_names(model, _ties(model))
    return model


def _refuse_reading(configs: Mapping[str, PeftConfig], offloaded: Iterable[str]) -> None:
    """Refuse adapters whose start depends on weights that lie elsewhere."""
    for name, config in configs.items():
        settings = config.to_dict()
        reads = [k for k in ("use_dora", "modules_to_save", "trainable_token_indices") if settings.get(k)]
        if settings.get("init_lora_weights") not in (True, False, None, "gaussian"):
            reads.append("init_lora_weights")
        if config.peft_type.value != "LORA" or reads:
            what = ", ".join(reads) or f"peft_type {config.peft_type.value}"
            raise ValueError(
                f"lora_config of adapter {name!r}: {what} needs the base's weights, and those of "
                f"{sorted(offloaded)[:3]} are "
                "offloaded; use plain LoRA, or a device_map that keeps the base on devices"
            )


class AdapterConfigs(dict):
    """Name -> configuration of the adapters of a converted model, as peft keeps it; refuses what could not be saved.

    Args:
        configs: those that are there.
        parts: names that no adapter may have.

    ``moved_base``: the base's weights are no longer those that its name stands for.
    """

    def __init__(self, configs: Mapping[str, PeftConfig], parts: frozenset[str]) -> None:
        self.parts, self.moved_base = parts, False
        super().__init__()
        self.update(configs)

    def __reduce__(self):
        return _copied_configs, (dict(self), self.parts, self.moved_base)

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        settings = jsonable(config.to_dict())
        kind = check_adapter(settings, f"adapter {name!r}").peft_type.value
        if kind in ONE_AT_A_TIME and set(self) - {name}:
            raise ValueError(
                f"adapter {name!r}: a model holds one adapter of peft_type {kind!r}, and has {list(self)[0]!r}"
            )
        if name in self.parts:
            raise ValueError(f"adapter {name!r}: the base has a part of that name; give the adapter another one")
        self.moved_base |= moves_base(settings, at_random=True)
        super().__setitem__(name, config)

    def __delitem__(self, name: str) -> None:
        self.moved_base |= moves_base(jsonable(self[name].to_dict()))
        super().__delitem__(name)

    def update(self, *args, **kwargs) -> None:
        for name, config in dict(*args, **kwargs).items():
            self[name] = config


def _copied_configs(configs: dict[str, PeftConfig], parts: frozenset[str], moved: bool) -> AdapterConfigs:
    found = AdapterConfigs(configs, parts)
    found.moved_base = moved
    return found


def activate(model: PeftModel, names: Sequence[str]) -> None:
    """Let the adapters called ``names`` work, and no others.

    Raises:
        ValueError: ``model`` has no adapter of such a name.
    """
    if unknown := [n for n in names if n not in model.peft_config]:
        raise ValueError(f"no adapter is called {', '.join(unknown)}; there are {', '.join(model.peft_config)}")
    if not names:
        model.base_model.disable_adapter_layers()
    elif list(names) != adapter_status(model).active:
        model.base_model.set_adapter(list(names))
        model.active_adapter = names[0]


def adapters_in(model: PeftModel) -> dict[str, dict[str, Any]]:
    """Name -> settings of the adapters of ``model``, as JSON holds them."""
    found = {name: jsonable(config.to_dict()) for name, config in model.peft_config.items()}
    for settings in found.values():  # the base is named once, by TpttConfig.base_model_name
        settings.pop("base_model_name_or_path", None)
    return found


def active_in(model: PeftModel) -> list[str]:
    """Names of the adapters of ``model`` that are at work.

    Raises:
        ValueError: different ones work in different layers.
    """
    status = adapter_status(model)
    if status.irregular:
        raise ValueError(
            f"the layers of this model differ in which adapters are {' and '.join(status.irregular)}: a checkpoint "
            f"holds "
            "one answer for all. model.backbone.set_adapter(name) or enable_adapter_layers() gives one"
        )
    return status.active if status.enabled else []


def saved_form(adapters: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """``adapters`` as ``TpttConfig.lora_config`` holds them: one called "default" without its name."""
    if set(adapters) <= {"default"}:
        return adapters.get("default")
    return dict(adapters)


def check_adapters(lora_config: dict[str, Any] | None) -> None:
    """Refuse what ``TpttConfig.lora_config`` asks of peft in vain.

    Raises:
        As `check_adapter`.
    """
    for name, settings in named_adapters(lora_config).items():
        check_adapter(settings, "lora_config" if name == "default" else f"lora_config of adapter {name!r}")


class SecondAdapters(dict):
    """What peft asks a converted model for before it puts adapters around it: its configurations by name.

    peft would set up an adapter of a known name anew inside the layers that have one, and its trained weights would be
    gone; one of another name would switch the first off. ``make_room`` is called first with these
    configurations, and leaves none of the adapters.
    """

    def __init__(self, configs: Mapping[str, PeftConfig], make_room: Callable[[SecondAdapters], None]) -> None:
        super().__init__(configs)
        self._make_room = make_room

    def __reduce__(self):
        return dict, (dict(self),)

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        if self:
            self._make_room(self)
            self.clear()
        super().__setitem__(name, config)

    def update(self, *args, **kwargs) -> None:
        for name, config in dict(*args, **kwargs).items():
            self[name] = config


def _ties(model: nn.Module) -> dict[str, str]:
    """For every weight that has several names: the others, each with the first."""
    first: dict[nn.Parameter, str] = {}
    return {n: f for n, p in model.named_parameters(remove_duplicate=False) if (f := first.setdefault(p, n)) != n}
