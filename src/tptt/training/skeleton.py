"""A converted model without weights, on torch's meta device: what can be known from the base's configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from tptt.configuration import TpttConfig, base_error
from tptt.evaluation import LayerKV, layer_kv
from tptt.modeling import TpttModel

from .lora import lora_config
from .run_file import RunOptions


def base_config(options: RunOptions) -> PreTrainedConfig:
    """The base's configuration: from ``base_config``, or from where its name says.

    In a file, keys that begin with an underscore are remarks.

    Raises:
        OSError: there is none.
        ValueError: the file is not a configuration, or no base is named.
    """
    if options.base_config is not None:
        return config_from_file(options.base_config)
    if options.base_model_name is None:
        raise ValueError("base_model_name is missing: the path or hub id of a causal language model")
    try:
        return AutoConfig.from_pretrained(options.base_model_name, revision=options.base_model_revision)
    except (OSError, ValueError) as error:
        here = f"a relative path counts from {Path.cwd()}, and a base that has moved is named by base_model_name"
        token = "for a gated or private model set HF_TOKEN"
        raise base_error(options.base_model_name, error, f"{here}; {token}") from error


def config_from_file(path: str | Path) -> PreTrainedConfig:
    """The configuration in the JSON file ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not the configuration of a model that transformers knows.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        plain = {k: v for k, v in found.items() if not k.startswith("_")}
        return AutoConfig.for_model(plain.pop("model_type"), **plain)
    except (json.JSONDecodeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no model's configuration with a model_type that transformers knows: {error}"
        ) from error


def conversion_config(options: RunOptions, base: PreTrainedConfig, name: str | None = None) -> TpttConfig:
    """The converted model's configuration; ``name`` is the base's, None for one that is not to be loaded."""
    lora: dict[str, Any] | None = None
    if options.lora_rank:
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(base)
        lora = lora_config(
            plain, options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_targets,
            options.memory.attention_layout,
        )  # fmt: skip
    return TpttConfig(
        text_config=base, base_model_name=name, base_model_revision=options.base_model_revision, lora_config=lora,
        **vars(options.memory),
    )  # fmt: skip


def skeleton(config: TpttConfig, dtype: torch.dtype) -> TpttModel:
    """The converted model on the meta device: base in ``dtype``, LoRA and memory in float32, as they train."""
    base: Any = config.text_config
    before, base.dtype = base.dtype, dtype
    try:
        with torch.device("meta"):
            return TpttModel._from_config(config, dtype=dtype)
    finally:
        base.dtype = before


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps for its backward pass: q, k, v and its output; on the meta device torch would
    count the matrix of all weights, which no kernel keeps. [B, H, T, D]."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


class _Fused(TorchFunctionMode):
    """Fused attention as it is kept on a GPU; and products of experts in any dtype, where the meta device has bfloat16 only."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        if function is torch._grouped_mm:  # [S, K] and [E, K, N] -> [S, N]: one expert takes what any takes
            return args[0] @ args[1][0]
        return function(*args, **(kwargs or {}))


def saved_for_backward(model: nn.Module, rows: int, length: int) -> int:
    """Bytes of all tensors that a forward pass of ``rows`` x ``length`` tokens keeps for the backward pass, parameters
    aside. Nothing is computed: ``model`` lies on the meta device."""
    # fake tensors on top of meta ones: a model asks them for no values, such as whether rows are packed
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    parameters = {n: fake.from_tensor(p) for n, p in model.named_parameters()}
    own = {p.untyped_storage()._cdata for p in parameters.values()}
    kept: dict[int, int] = {}
    alive = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        alive.append(x)  # an address is that of one storage only while it lives
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with fake, torch.device("meta"), _Fused(), hooks:
        inputs = {"input_ids": torch.zeros(rows, length, dtype=torch.long), "use_cache": False}
        torch.func.functional_call(model, parameters, (), inputs)
    return sum(size for address, size in kept.items() if address not in own)


def skeleton_kv(model: nn.Module, tokens: int) -> list[LayerKV]:
    """`layer_kv` of a model on the meta device."""
    with _Fused():
        return layer_kv(model, tokens)
