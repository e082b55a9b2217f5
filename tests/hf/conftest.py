import pytest
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.families.models import VOCABULARY, build
from tptt import TpttConfig


@pytest.fixture
def tokenizer():
    """One token per word w0, w1, ..."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=["llama", "llama-tied", "gpt2"])
def family(request):
    return request.param


@pytest.fixture
def base(family, tmp_path, tokenizer):
    place = tmp_path / "base"
    build(family).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def config(base, family):
    """make(lora=True, **settings) -> TpttConfig on the base."""
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=targets,
        fan_in_fan_out=family == "gpt2",
    )

    def make(lora_config=True, **settings):
        return TpttConfig(base_model_name=str(base), lora_config=lora.to_dict() if lora_config else None, **settings)

    return make
