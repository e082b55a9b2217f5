import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import logging  # noqa: E402 - the variables above come first
import random  # noqa: E402 - the variables above come first

import numpy as np  # noqa: E402 - the variables above come first
import pytest  # noqa: E402 - the variables above come first
import torch  # noqa: E402 - the variables above come first
from transformers import LlamaForCausalLM  # noqa: E402 - the variables above come first

from tests.small_llama import small_llama_config  # noqa: E402 - the variables above come first
from tptt import TpttConfig, TpttModel  # noqa: E402 - the variables above come first
from tptt.data import KeyValueRecall  # noqa: E402 - the variables above come first
from tptt.train import MixedRows  # noqa: E402 - the variables above come first

torch.set_num_threads(1)


class Words:
    """A recall vocabulary of token ids 10..59 without a tokenizer."""

    marker = (5,)
    record_length = 3
    words = torch.arange(10, 60)
    keys, values = words[0::2], words[1::2]


@pytest.fixture
def words():
    return Words()


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory):
    """A cache of the tests' own, also for the processes that they start."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logger():
    """A verb takes the logger "tptt" for itself (`tptt.cli.console.quiet`): the next test gets it as it was."""
    logger = logging.getLogger("tptt")
    before = logger.level, logger.propagate, logger.handlers
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers = before[1:]


@pytest.fixture
def rows(words):
    """make(**options) -> 16 rows of 32 tokens, half of them recall rows."""

    def make(count=16, **options):
        stream = torch.randint(64, (500,), generator=torch.Generator().manual_seed(0))
        options = {"recall_share": 0.5, "facts": (2, 4)} | options
        return MixedRows(stream, KeyValueRecall(words, stream), 32, count, **options)

    return make


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Folder of a random Llama with 64 tokens in its vocabulary."""
    torch.manual_seed(0)
    config = small_llama_config(pad_token_id=0)
    path = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def tiny(tiny_llama):
    """() -> a TpttModel with LoRA on it, the same every time."""

    def make(**options):
        torch.manual_seed(0)
        lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        return TpttModel(TpttConfig(**{"base_model_name": str(tiny_llama)} | options, lora_config=lora))

    return make


CONTRACT = (
    "tests/families/test_registry.py",
    "tests/inference/test_session.py",
    "tests/hf/test_checkpoint.py",
    "tests/hf/test_compat.py",
    "tests/cli/test_quickstart.py",
)
"""Beside tests/test_contract.py, what `make contract` runs in the newest environment."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.startswith(CONTRACT) and not item.get_closest_marker("slow"):
            item.add_marker("contract")
