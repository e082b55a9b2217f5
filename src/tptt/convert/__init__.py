"""What happens between attaching a memory and training it: start values, widths, which layers."""

from .allocate_widths import spread_width
from .choose_layers import LayerChoice, choose_layers

__all__ = ["LayerChoice", "choose_layers", "spread_width"]
