"""What happens between attaching a memory and training it: start values, widths, which layers."""

from .choose_layers import LayerChoice, choose_layers
from .widths import allocate_widths

__all__ = ["LayerChoice", "choose_layers", "allocate_widths"]
