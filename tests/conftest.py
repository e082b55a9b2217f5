import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random

import numpy as np
import pytest
import torch

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


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
