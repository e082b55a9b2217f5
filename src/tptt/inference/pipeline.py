"""The text-generation pipeline of a converted model."""

from __future__ import annotations

import os

from transformers import AutoTokenizer, TextGenerationPipeline

from tptt.hf.model import TpttModel


class TpttPipeline(TextGenerationPipeline):
    """transformers' text-generation pipeline for a converted model; every option of that one works.

    Args:
        model: a TpttModel, or the path or hub id of a checkpoint.
        tokenizer: its tokenizer; read from the checkpoint when ``model`` is a path.
        device: "cpu", "cuda:0", an index or a torch.device; None leaves the model where it is.
    """

    def __init__(self, model, tokenizer=None, device=None, **kwargs) -> None:
        if isinstance(model, str | os.PathLike):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            model = TpttModel.from_pretrained(model)
        if tokenizer is None:
            raise ValueError(
                "TpttPipeline needs the tokenizer of the base model: tokenizer=AutoTokenizer.from_pretrained(...)"
            )
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        super().__init__(model=model, tokenizer=tokenizer, device=device, **kwargs)
