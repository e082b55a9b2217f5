"""The dictionaries of configurations through which peft adds adapters to a converted model, or around one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from peft import PeftConfig

from .adapter_settings import ONE_AT_A_TIME, check_adapter, moves_base
from .configuration import jsonable


class AdapterConfigs(dict):
    """Name -> configuration of a converted model's adapters, as peft keeps it. It refuses what could not be saved.

    Args:
        configs: those that are there.
        parts: names that no adapter may have.

    ``moved_base`` says whether the base's weights are no longer those that its name stands for.
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


class SecondAdapters(dict):
    """Name -> configuration of the adapters in a converted model. peft asks for it before it puts others around it.

    peft would make an adapter of a known name anew inside the layers that have one, and the trained weights would be
    gone. One of another name would switch the first off. So ``make_room`` is called first with this dictionary, and
    leaves none of the adapters in the model.
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
