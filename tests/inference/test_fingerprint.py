"""A fingerprint sees every single element of every weight, and what a model computes beside its weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.families.models import build, randomize, tokens
from tptt import MemoryConfig, attach_memory, stream
from tptt.hf import set_mag_weight
from tptt.inference.fingerprint import fingerprint

WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}


def make(**settings):
    return randomize(attach_memory(build("llama"), MemoryConfig(**WINDOW | settings)))


def bytes_of(tensor):
    return tensor.data.view(-1).view(torch.uint8)  # through .data: torch does not count such a change


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_bit_of_any_weight_is_seen(dtype):
    model, g = make().to(dtype), torch.Generator().manual_seed(0)
    before = fingerprint(model)
    assert before == fingerprint(make().to(dtype))
    for name, tensor in model.state_dict(keep_vars=True).items():
        data = bytes_of(tensor)
        for place in torch.randint(len(data), (3,), generator=g).tolist():
            data[place] ^= 1
            assert fingerprint(model) != before, f"{name}: byte {place}"
            data[place] ^= 1
    assert fingerprint(model) == before


def test_a_snapshot_of_a_model_with_every_other_number_changed_is_refused():
    model = make()
    snapshot = stream(model, tokens(1, 20)).snapshot()
    snapshot.check(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight[:, 1::2] += 1
    with pytest.raises(ValueError, match="was taken from another model"):
        snapshot.check(model)


def test_types_shapes_names_and_memories_are_seen():
    found = [fingerprint(make(**s)) for s in ({}, {"operator": "gated_delta_rule"}, {"max_self_attn_length": 7})]
    found += [fingerprint(make(sink_tokens=1)), fingerprint(make(memory_only_layers=[1]))]
    weighted, rotated = make(), make()
    set_mag_weight(weighted, 0.25)
    rotated.config.rope_parameters = rotated.config.rope_parameters | {"rope_theta": 5.0}
    found += [fingerprint(weighted), fingerprint(rotated)]
    assert len(set(found)) == len(found)


class Held(torch.nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("tensor", tensor)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float16", "bool", "int8", "uint16", "complex64"])
def test_every_type_of_weight(dtype):
    held = Held(torch.zeros(5, 7, dtype=getattr(torch, dtype)).t())
    before = fingerprint(held)
    flat = held.tensor.t().view(-1).view(torch.uint8)
    assert fingerprint(Held(held.tensor.contiguous())) == before
    for place in range(len(flat)):
        flat[place] ^= 1
        assert fingerprint(held) != before
        flat[place] ^= 1
    assert fingerprint(Held(torch.zeros(5, 7, dtype=held.tensor.dtype))) != before
    assert fingerprint(Held(held.tensor.contiguous().view(torch.uint8))) != before


def test_no_dimension_and_no_element():
    found = [fingerprint(Held(t)) for t in (torch.tensor(1.0), torch.tensor(2.0), torch.ones(1), torch.ones(0))]
    assert len(set(found)) == 4


@pytest.mark.filterwarnings("ignore:.*quantize.*")
def test_quantised_tensors():
    def per_tensor(values, scale=0.1, zero=3):
        return torch.quantize_per_tensor(torch.tensor(values), scale, zero, torch.qint8)

    def per_channel(values, scale):
        return torch.quantize_per_channel(
            torch.tensor([values]), torch.tensor([scale]), torch.tensor([0]), 0, torch.qint8
        )

    tensors = [
        per_tensor([0.1, 0.2]),
        per_tensor([0.1, 0.3]),
        per_tensor([0.1, 0.2], 0.2),
        per_tensor([0.1, 0.2], 0.1, 4),
    ]
    tensors += [per_channel([0.1, 0.2], 0.1), per_channel([0.1, 0.2], 0.2)]
    found = [fingerprint(Held(t)) for t in tensors]
    assert len(set(found)) == len(found) and found == [fingerprint(Held(t)) for t in tensors]


def test_adapters():
    model = get_peft_model(make(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.nn.init.ones_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    first = fingerprint(model)
    found = [first]
    with model.disable_adapter():
        found.append(fingerprint(model))
    model.set_adapter("second")
    found.append(fingerprint(model))
    model.set_adapter("default")
    assert fingerprint(model) == first
    model.merge_adapter()
    found.append(fingerprint(model))
    assert len(set(found)) == len(found)
    model.unmerge_adapter()
    idle = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["second"].weight
    before = fingerprint(model)
    bytes_of(idle)[0] ^= 1
    assert fingerprint(model) != before


def test_compiling_changes_no_fingerprint():
    model = make()
    before = fingerprint(model)
    assert fingerprint(torch.compile(model, backend="eager")) == before
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp, backend="eager")
    assert fingerprint(model) == before
