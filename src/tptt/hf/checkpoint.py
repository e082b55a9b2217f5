"""Saving a converted model: memory and adapters beside a named base, or everything in one self-contained checkpoint."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from .adapter_settings import moves_base
from .adapters import adapters_in
from .compat import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    adapter_status,
    as_peft_model,
    base_weight_name,
    cannot_save_quantised,
    held_tensors,
    offloaded_value,
    rescaled_adapters,
    uncompiled_name,
    was_merged,
    with_variant,
)
from .describe import describe
from .loading import load_checkpoint
from .shim import AUTO_MAP, write_shim

logger = logging.getLogger("tptt")
_BACKBONE = "backbone."


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object


class CheckpointMixin(_Model):
    """`save_pretrained` and `from_pretrained` of TpttModel."""

    def own_state_dict(self, state_dict=None) -> dict:
        """What is not the base's: memory, adapters and everything else that trains. Sharded tensors stay sharded."""
        trained = {n for n, p in self.named_parameters() if p.requires_grad}
        if self.config.get_text_config().vocab_size != self.base_vocabulary:
            trained |= self.embeddings()
        state_dict = held_tensors(self) if state_dict is None else state_dict
        return {k: v for k, v in state_dict.items() if k in trained or not self.is_of_base(k)}

    def is_of_base(self, name: str) -> bool:
        """Whether ``name`` is that of a weight of the base, or of what its layers save beside their weights."""
        part = base_weight_name(name.removeprefix(_BACKBONE))
        if part.rpartition(".")[0] in self.base_parts:
            return True
        while part and part not in self.base_parts:
            if part in self.base_weights:
                return True
            part = part.rpartition(".")[0]
        return False

    def own_shapes(self) -> dict[str, torch.Size]:
        """Name -> shape of every weight that neither the base nor another name of a tied weight stands for."""
        aliases = self.aliases()
        found = ((k, v) for k, v in held_tensors(self).items() if k not in aliases and not self.is_of_base(k))
        return {uncompiled_name(k): v.shape for k, v in found}

    def aliases(self) -> set[str]:
        """Second names of tied weights (transformers does not know those that peft gives them) and of buffers that
        several layers of an adapter share."""
        names = {n for n, _ in self.named_parameters(remove_duplicate=False)}
        tied = (names - {n for n, _ in self.named_parameters()}) & set(self.all_tied_weights_keys)
        first: dict[tuple, str] = {}
        for name, buffer in self.named_buffers(remove_duplicate=False):
            if buffer.numel() and not self.is_of_base(name):
                where = id(buffer) if buffer.is_meta else buffer.data_ptr()
                if first.setdefault((where, buffer.shape), name) != name:
                    tied.add(name)
        return tied

    def embeddings(self) -> set[str]:
        """Names of the weights that `resize_token_embeddings` replaces; of tied ones the source alone."""
        ends = {self.get_input_embeddings(), self.get_output_embeddings()} - {None}
        places = [n for n, m in self.named_modules() if m in ends]
        names = {f"{n}.{k}" for n in places for k, _ in self.get_submodule(n).named_parameters(recurse=False)}
        return names - self.aliases()

    @property
    def _saves_all(self) -> bool:
        """Whether the base's weights are saved as well, because no named base stands for them: they train, making an
        adapter has changed them, or the base has no name."""
        config, peft = self.config, as_peft_model(self.backbone)
        adapters = {} if peft is None else adapters_in(peft)
        return (
            not adapters
            or config.weights_format == "full"
            or config.base_model_name is None
            or any(moves_base(settings, at_random=True) for settings in adapters.values())
            or bool(getattr(getattr(peft, "peft_config", None), "moved_base", False))
        )

    def whole_state_dict(self) -> dict:
        """What `save_pretrained` writes, with the weights that FSDP2 has sharded gathered. All processes call it."""
        found = self.state_dict() if self._saves_all else self.own_state_dict()
        return {k: x.full_tensor() if isinstance(x, DTensor) else x for k, x in found.items()}

    def save_pretrained(self, save_directory, is_main_process: bool = True, state_dict=None, **kwargs) -> None:
        """Save to a folder (or, with ``push_to_hub=True``, to the hub). All processes call it; the main one writes.

        The configuration is first brought to what the model is now. Then memory and adapters are written with the
        base's name, in one file whatever ``max_shard_size`` says. The base's weights are written as well where
        ``config.weights_format`` is "full", the base itself trains (no LoRA), LoRA was folded into it, or making an
        adapter has changed it ("pissa_niter_4"). ``trust_remote_code=True`` needs the small file beside them.

        Raises:
            ValueError: what would be written could not be loaded again; nothing is written then.
        """
        if was_merged(self.backbone):
            self.merge_and_unload()
            state_dict = None  # of other names
        self.drop_empty_adapters()
        describe(self)
        full = self._saves_all
        self._refuse_unloadable(full)
        if strays := self.config.strays():
            logger.warning(
                "not saved, because they are no settings of a converted model: config.%s", ", config.".join(strays)
            )
        self.config.weights_format = "full" if full else "adapter"
        self.config.auto_map = dict(AUTO_MAP)
        if full:  # else it is the type that the base of that name was loaded in
            self.config.text_config.dtype = self.inner.dtype
            state_dict = self.state_dict() if state_dict is None else state_dict
        else:
            state_dict = self.own_state_dict(state_dict)
            kwargs["max_shard_size"] = 1 << 60
        kwargs["save_original_format"] = False  # its patterns for the base's names would catch the memory's
        aliases = self.aliases()
        state_dict = {uncompiled_name(k): self._value(k, v) for k, v in state_dict.items() if k not in aliases}
        folder = Path(save_directory)
        if is_main_process:
            write_shim(folder)
        elif not any(isinstance(v, DTensor) for v in state_dict.values()):
            return  # transformers would make the folder here as well; of sharded tensors every process holds a part
        super().save_pretrained(folder, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            _keep_the_newer(folder, kwargs.get("variant"))

    def _value(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, or its value where accelerate keeps that elsewhere and transformers does not look for it."""
        away = isinstance(tensor, torch.Tensor) and tensor.is_meta and not hasattr(self, "hf_device_map")
        return offloaded_value(self, name) if away else tensor

    def _refuse_unloadable(self, full: bool) -> None:
        """Refuse to save what `from_pretrained` could not make again.

        Raises:
            ValueError: as it says.
        """
        peft = as_peft_model(self.backbone)
        if full and (reason := cannot_save_quantised(self.inner)):
            raise ValueError(
                f"a self-contained checkpoint holds the base's weights, and {reason}: keep LoRA unmerged (lora_config, "
                "weights_format='adapter'), so that the base is fetched by its name"
            )
        if full and peft is not None and (merged := adapter_status(peft).merged):
            raise ValueError(
                f"adapters {merged} are folded into the base for the time being, and would be so a second time when "
                "the checkpoint is loaded: model.backbone.unmerge_adapter() or model.merge_and_unload() comes first"
            )
        if rescaled := rescaled_adapters(self.backbone):
            raise ValueError(
                f"adapters {rescaled} are scaled otherwise than their lora_alpha says, which is all that a checkpoint "
                "holds: unscale_layer() of their layers, or another lora_alpha"
            )
        found = self.own_shapes()
        if found.keys() == self.made_of:
            return
        from .meta_model import skeleton  # which knows this class

        expected = skeleton(copy.deepcopy(self.config), self.dtype).own_shapes()
        if wrong := sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)):
            raise ValueError(
                f"this model holds {len(wrong)} weights that its configuration does not explain, and could not be "
                f"loaded again ({', '.join(wrong[:3])}): adapters that peft put around the model, or modules that were "
                "replaced. merge_and_unload() of the peft model around it folds its adapters in"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load a checkpoint that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            base_model_name, base_model_revision: where the base is now, if it moved.
            dtype: of the base. None and "auto" are what the checkpoint says.
            kwargs: settings of `MemoryConfig` (for example ``max_self_attn_length``) override the saved ones. The
                others go to the base's ``from_pretrained``.

        Raises:
            OSError: checkpoint or base was not found.
            ValueError: a newer version made the checkpoint, or it is none of tptt.
            RuntimeError: its weights do not fit the configuration.
        """
        with_report = kwargs.pop("output_loading_info", False)
        model, report = load_checkpoint(cls, pretrained_model_name_or_path, config, kwargs)
        return (model, report) if with_report else model


def _keep_the_newer(folder: Path, variant: str | None) -> None:
    """Of one file of weights and an index of several remove what an earlier save left: the one file would be read."""
    found = [
        p for n in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if (p := folder / with_variant(n, variant)).exists()
    ]
    if len(found) > 1:
        min(found, key=lambda p: p.stat().st_mtime_ns).unlink()
