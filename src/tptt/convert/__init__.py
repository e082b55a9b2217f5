"""What is decided between loading a base and training it: which layers get a memory, and how wide it is."""

from .layer_search import LayerChoice, choose_layers
from .widths import allocate_widths
from .windowed import windowed

__all__ = ["LayerChoice", "allocate_widths", "choose_layers", "windowed"]
