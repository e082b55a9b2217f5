"""Bases in GGUF files: read as they are, trained, saved, found again, and refused where they are damaged."""

import hashlib
import json
import shutil
import struct

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

gguf = pytest.importorskip("gguf")

from tests.gguf_files import ARCHITECTURES, TEMPLATE, TOKENS, plain_model, write_gguf  # noqa: E402
from tptt import TpttConfig, TpttModel  # noqa: E402
from tptt.cli.main import app  # noqa: E402
from tptt.hf import gguf_base  # noqa: E402
from tptt.hf.base_model import load_base  # noqa: E402
from tptt.train.base import load_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The file of a tiny Llama in Q8_0, which no test changes."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", plain_model("llama"), "llama", "Q8_0")


@pytest.fixture
def ids():
    return torch.randint(len(TOKENS), (2, 24), generator=torch.Generator().manual_seed(1))


def settings(**changes):
    lora = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    return {"lora_config": lora, "max_self_attn_length": 8, "feature_width": 16} | changes


def trained(path, ids, **changes):
    """The converted model after a training step."""
    model = TpttModel(TpttConfig(base_model_name=path, **settings(**changes))).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return model.eval()


@torch.no_grad()
def logits(model, ids):
    return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    ("architecture", "stored"),
    [(a, s) for a in ARCHITECTURES for s in ("F32", "Q4_0")] + [("llama", s) for s in ("F16", "Q8_0", "Q4_1")],
)
def test_weights_are_those_of_the_file(tmp_path, ids, architecture, stored):
    expected = plain_model(architecture)
    before = logits(expected, ids)
    path = write_gguf(tmp_path / "tiny.gguf", expected, architecture, stored)
    base = load_base(TpttConfig(base_model_name=str(path)))
    assert {p.dtype for p in base.parameters()} == {torch.float32}
    found = dict(base.named_parameters())
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6 if architecture == "gemma3" else 0)
    torch.testing.assert_close(logits(base, ids), logits(expected, ids), rtol=1e-4, atol=1e-4)
    assert torch.equal(before, logits(expected, ids)) == (stored == "F32")  # the writer rounds what it is asked to


def test_adapter_comes_back(llama, tmp_path, ids):
    model = trained(llama, ids)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["base_model_name"] == str(llama)
    assert saved["base_sha256"] == hashlib.sha256(llama.read_bytes()).hexdigest()
    assert (tmp_path / "model.safetensors").stat().st_size < llama.stat().st_size
    expected = logits(model, ids)
    assert torch.equal(expected, logits(TpttModel.from_pretrained(tmp_path), ids))
    assert torch.equal(expected, logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids))


def test_merged_model_is_saved_whole(llama, tmp_path, ids):
    moved = shutil.copy(llama, tmp_path / "base.gguf")
    model = trained(moved, ids)
    with_adapter = logits(model, ids)
    model.merge_and_unload()
    model.save_pretrained(tmp_path / "whole")
    moved.unlink()
    again = TpttModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(logits(model, ids), logits(again, ids))
    torch.testing.assert_close(logits(again, ids), with_adapter, rtol=1e-4, atol=1e-4)


def test_base_without_lora_is_saved_whole(llama, tmp_path, ids):
    model = trained(llama, ids, lora_config=None)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model, ids), logits(TpttModel.from_pretrained(tmp_path), ids))


def test_folder_and_file(llama, tmp_path, ids):
    place = {"base_model_name": llama.parent, "base_gguf_file": llama.name}
    model = TpttModel(TpttConfig(**place, **settings()))
    model.save_pretrained(tmp_path / "a")
    assert torch.equal(logits(model, ids), logits(TpttModel.from_pretrained(tmp_path / "a"), ids))
    moved = shutil.copy(llama, tmp_path / "elsewhere.gguf")
    again = TpttModel.from_pretrained(tmp_path / "a", base_model_name=str(moved))
    assert torch.equal(logits(model, ids), logits(again, ids))
    assert (again.config.base_model_name, again.config.base_gguf_file) == (str(moved), None)
    with pytest.raises(ValueError, match="give one of both ways"):
        TpttConfig(base_model_name=str(llama), base_gguf_file=llama.name)
    with pytest.raises(ValueError, match=r"must be the name of a \.gguf file"):
        TpttConfig(base_model_name=str(llama.parent), base_gguf_file="config.json")


def test_another_file_is_refused(llama, tmp_path, ids, tiny_llama):
    TpttModel(TpttConfig(base_model_name=str(llama), **settings())).save_pretrained(tmp_path / "a")
    other = write_gguf(tmp_path / "tiny.gguf", plain_model("llama"), "llama", "Q4_1")
    with pytest.raises(ValueError) as error:
        TpttModel.from_pretrained(tmp_path / "a", base_model_name=str(other))
    for file in (llama, other):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in str(error.value)
    with pytest.raises(ValueError, match="was a GGUF file of SHA-256"):
        TpttModel.from_pretrained(tmp_path / "a", base_model_name=str(tiny_llama))


def test_tokenizer_and_chat_template(llama, tmp_path):
    tokenizer = load_tokenizer(TpttConfig(base_model_name=str(llama)))
    assert tokenizer("the and").input_ids == [TOKENS.index("the"), TOKENS.index("Ġ"), TOKENS.index("and")]
    assert tokenizer.chat_template == TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "the"}]
    assert again.apply_chat_template(chat, tokenize=False) == "<|user|>the"
    assert again("the and").input_ids == tokenizer("the and").input_ids


def test_train_from_the_command_line(llama, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    letters = "abcdefghij"
    text.write_text(" ".join(x + y + z for x in letters for y in letters for z in letters) * 3)
    given = {"base-model": llama, "data": text, "output-dir": out, "seq-len": 32, "tokens": 128, "feature-width": 16}
    flags = [x for name, value in given.items() for x in (f"--{name}", str(value))]
    found = CliRunner().invoke(app, ["train", *flags])
    assert found.exit_code == 0, found.output
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert tokenizer.chat_template == TEMPLATE
    model = TpttModel.from_pretrained(out)
    assert model.config.base_sha256 == hashlib.sha256(llama.read_bytes()).hexdigest()


def test_dry_run_reads_the_header_alone(llama, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    found = CliRunner().invoke(app, ["train", "--dry-run", "--base-model", str(llama), "--seq-len", "32"])
    assert found.exit_code == 0, found.output
    assert llama.name in found.output.replace("\n", "")


def test_four_bits_are_refused(llama, tmp_path):
    found = CliRunner().invoke(app, ["train", "--base-model", str(llama), "--quantization", "4bit"])
    assert found.exit_code == 1 and "not quantised once more" in found.output


def test_missing_package_is_named(llama, monkeypatch):
    monkeypatch.setattr(gguf_base, "gguf_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'tptt\[gguf\]'"):
        TpttConfig(base_model_name=str(llama))


def test_missing_file(tmp_path):
    with pytest.raises(OSError, match="there is no GGUF file"):
        TpttConfig(base_model_name=str(tmp_path / "nowhere.gguf"))


DAMAGED = {
    "empty": (lambda data: b"", "the file is empty"),
    "short": (lambda data: data[:10], "fewer than a GGUF header"),
    "magic": (lambda data: b"PK\x03\x04" + data[4:], "it is no GGUF file"),
    "version": (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "GGUF version 9"),
    "header": (lambda data: data[:3000], "ends within its header"),
    "tensors": (lambda data: data[:-40], "not wholly copied"),
    "entries": (lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:], "more entries than the file has bytes"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused(llama, tmp_path, kind):
    damage, message = DAMAGED[kind]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(llama.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        TpttConfig(base_model_name=str(path))
    assert str(path) in str(error.value)


REFUSED = {
    "a part": ({"metadata": {"split.count": 3, "split.no": 1}}, "it is part 2 of 3"),
    "a projector": ({"metadata": {"general.type": "mmproj"}}, "projector of a multimodal model"),
    "an adapter": ({"metadata": {"general.type": "adapter"}}, "holds a 'adapter'"),
    "scaled positions": ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "scales its rotary embedding"),
    "big-endian": ({"endianess": gguf.GGUFEndian.BIG}, "it is big-endian"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_whole_model_is_refused(tmp_path, kind):
    changes, message = REFUSED[kind]
    path = write_gguf(tmp_path / "tiny.gguf", plain_model("llama"), "llama", **changes)
    with pytest.raises(ValueError, match=message):
        TpttConfig(base_model_name=str(path))


def test_missing_weights_are_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", plain_model("llama"), "llama", leave_out="blk.1.ffn_up")
    with pytest.raises(ValueError, match=r"lacks weights .*layers\.1\.mlp\.up_proj\.weight"):
        load_base(TpttConfig(base_model_name=str(path)))


def replace_once(data, old, new):
    assert data.count(old) >= 1 and len(old) == len(new)
    return data.replace(old, new)


def test_unknown_architecture_is_refused(llama, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(replace_once(llama.read_bytes(), b"llama", b"lxama"))
    with pytest.raises(ValueError, match="lxama"):
        TpttConfig(base_model_name=str(path))


def test_unknown_type_of_values_is_refused(llama, tmp_path):
    data, path = llama.read_bytes(), tmp_path / "tiny.gguf"
    place = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    assert struct.unpack_from("<I", data, place) == (gguf.GGMLQuantizationType.Q8_0,)
    path.write_bytes(data[:place] + struct.pack("<I", 199) + data[place + 4 :])
    with pytest.raises(ValueError, match="'blk.0.attn_q.weight' is stored in the ggml type 199"):
        TpttConfig(base_model_name=str(path))
