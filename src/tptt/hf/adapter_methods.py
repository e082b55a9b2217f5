"""What a converted model does with its adapters: fold them into the base, and make room for others around the model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

import torch

from .adapter_guards import SecondAdapters
from .adapters import active_in
from .compat import as_peft_model, cannot_save_quantised, has_adapters, is_quantised
from .patch import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedModel as _Model
else:
    _Model = object


class AdapterMixin(_Model):
    """The adapters of TpttModel, which lie in its ``backbone`` if that is peft's model."""

    @property
    def peft_config(self) -> SecondAdapters:
        """Name -> configuration of the adapters in this model. peft asks for it before it puts others around the model;
        then those that are here are folded into the base, or the second ones are refused (`SecondAdapters`)."""
        if (around := self.__dict__.get("_configs_around")) is not None:
            return around
        if (peft := as_peft_model(self.backbone)) is None:
            raise AttributeError(f"{type(self).__name__} has no adapters")
        return SecondAdapters(peft.peft_config, self._make_room)

    @peft_config.setter
    def peft_config(self, configs) -> None:
        """peft says which adapters it has put around the model."""
        self.__dict__["_configs_around"] = SecondAdapters(configs, self._make_room)

    @peft_config.deleter
    def peft_config(self) -> None:
        """peft says that it has taken the adapters around the model away."""
        self.__dict__.pop("_configs_around", None)

    def _make_room(self, around: SecondAdapters) -> None:
        """Fold the adapters into the base, so that peft can put others around the model.

        Raises:
            ValueError: that would lose some of them, or what they know.
        """
        peft = as_peft_model(self.backbone)
        if peft is None and not has_adapters(self):  # it tried to, and failed
            return
        if peft is None:
            raise ValueError(
                "peft has put adapters around this converted model already, and would replace them: "
                "add_adapter(name, config) of that peft model adds one beside them, its merge_and_unload() folds them "
                "into the base first"
            )
        idle = sorted(set(peft.peft_config) - set(active_in(peft)))
        if idle or is_quantised(self.inner):
            why = f"adapters {idle} are not at work" if idle else "folding them into quantised weights loses precision"
            raise ValueError(
                "this converted model has adapters, which peft would replace or switch off, and they are not folded "
                f"into the base first because {why}: model.backbone.add_adapter(name, config) adds one beside "
                "them, model.merge_and_unload() folds those at work into the base all the same"
            )
        warnings.warn(
            f"adapters {sorted(peft.peft_config)} of this converted model were folded into its base, because those "
            "that peft puts around it would have replaced them",
            stacklevel=4,
        )
        self.merge_and_unload()
        self.__dict__["_configs_around"] = around

    def active_adapters(self) -> list[str]:
        """Names of the adapters that are at work."""
        peft = as_peft_model(self.backbone)
        return [] if peft is None else active_in(peft)

    def drop_empty_adapters(self) -> None:
        """Take out what peft leaves of adapters when the last one has been deleted."""
        if (peft := as_peft_model(self.backbone)) is not None and not peft.peft_config:
            self._unwrap(peft.unload() if has_adapters(peft) else base_of(peft))

    def merge_and_unload(self) -> Self:
        """Fold the adapters that are at work into the base's weights, and drop the others; from then on
        `save_pretrained` writes a self-contained checkpoint.

        Raises:
            ValueError: the base is quantised in a way whose weights cannot be saved, or different adapters are at work
                in different layers.
        """
        if (peft := as_peft_model(self.backbone)) is not None:
            if reason := cannot_save_quantised(self.inner):
                raise ValueError(f"LoRA cannot be folded into this base: {reason}")
            if not has_adapters(peft):
                self._unwrap(base_of(peft))
            elif not active_in(peft):
                self._unwrap(peft.unload())
            else:
                self._untie(peft)
                self._unwrap(peft.merge_and_unload())
        self.config.weights_format = "full"
        return self

    def _untie(self, peft) -> None:
        """Give a tied weight that LoRA changes on one side alone a copy of its own, or it would reach the other."""
        for name, source in peft.all_tied_weights_keys.items():
            if any(n.endswith(".base_layer.weight") and ".token_adapter." not in n for n in (name, source)):
                tied = peft.get_parameter(source)
                place, _, own = name.rpartition(".")
                copied = torch.nn.Parameter(tied.detach().clone(), tied.requires_grad)
                setattr(peft.get_submodule(place), own, copied)

    def _unwrap(self, base: PreTrainedModel) -> None:
        """Go on with ``base``, which holds no adapters any more."""
        self.backbone = base
        self.config.lora_config = self.config.active_adapters = None
        self.post_init()
        self.made_of = frozenset(self.own_shapes())
