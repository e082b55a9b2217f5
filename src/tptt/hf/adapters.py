"""The adapters that peft puts into the base of a converted model: how they are made, put to work and read back.

An adapter is a set of trained weights (LoRA, IA3, ...) with a name. A model may hold several; some of them are at work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel

from .adapter_guards import AdapterConfigs
from .adapter_settings import check_adapter, moves_base
from .compat import adapter_status, is_quantised, on_execution_device, set_tied_names
from .configuration import jsonable


def with_adapters(
    base: PreTrainedModel, adapters: Mapping[str, Mapping[str, Any]], active: Sequence[str] | None, weights_follow: bool
) -> PeftModel:
    """Put ``adapters`` into ``base`` and freeze it; returns peft's model around it.

    Args:
        base: the base model.
        adapters: name -> settings.
        active: names of the adapters that are at work. None: the first; an empty sequence: none.
        weights_follow: weights will be loaded next, so that making an adapter must not change the base's.

    Raises:
        ValueError: an adapter does not work beside a memory, or its start needs weights that are offloaded.
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
    """Refuse adapters that start from weights of the base, some of which are offloaded."""
    for name, config in configs.items():
        settings = config.to_dict()
        reads = [k for k in ("use_dora", "modules_to_save", "trainable_token_indices") if settings.get(k)]
        if settings.get("init_lora_weights") not in (True, False, None, "gaussian"):
            reads.append("init_lora_weights")
        if config.peft_type.value != "LORA" or reads:
            what = ", ".join(reads) or f"peft_type {config.peft_type.value}"
            raise ValueError(
                f"lora_config of adapter {name!r}: {what} needs the base's weights, and those of "
                f"{sorted(offloaded)[:3]} are offloaded; use plain LoRA, or a device_map that keeps the base on devices"
            )


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
            "holds one answer for all. model.backbone.set_adapter(name) or enable_adapter_layers() gives one"
        )
    return status.active if status.enabled else []


def saved_form(adapters: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """``adapters`` as ``TpttConfig.lora_config`` holds them: a single one called "default" stands without its name."""
    if set(adapters) <= {"default"}:
        return adapters.get("default")
    return dict(adapters)


def _ties(model: nn.Module) -> dict[str, str]:
    """For every weight that has several names: the others, each with the first."""
    first: dict[nn.Parameter, str] = {}
    return {n: f for n, p in model.named_parameters(remove_duplicate=False) if (f := first.setdefault(p, n)) != n}
