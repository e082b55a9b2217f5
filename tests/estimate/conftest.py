import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.tiny import tiny_config
from tests.estimate.bases import describe
from tptt import TpttModel
from tptt.estimate.survey import Survey
from tptt.run.options import RunOptions


@pytest.fixture
def options_of(tmp_path):
    """Options of a run with a small base of a family, which is saved."""

    def make(family: str, **changes) -> RunOptions:
        config = tiny_config(family, max_position_embeddings=256)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
        options = RunOptions(str(tmp_path / "base"), base_config=str(describe(config, tmp_path)))
        settings = {
            "max_self_attn_length": 8,
            "seq_len": 64,
            "per_device_train_batch_size": 3,
            "tokens": 3 * 64 * 10,
            "lora_r": 2,
            "allocate_widths": False,
        }
        return options.changed(**settings | changes)

    return make


@pytest.fixture(params=("llama", "gemma3_text", "olmoe"))
def tiny(request, options_of):
    """`options_of` each of some families."""
    return options_of(request.param)


@pytest.fixture
def built():
    """The model that a run would train, with weights."""

    def make(options: RunOptions) -> TpttModel:
        config = Survey(options.changed(base_config=None)).model.config
        config.base_model_name, config.text_config = options.base_model, None
        chosen = {} if options.attn_implementation is None else {"attn_implementation": options.attn_implementation}
        return TpttModel(config, dtype=torch.float32, **chosen).train()

    return make
