"""The recurrences of the linear memory: tensors in, tensors out. See README.md."""

from .backends import available_backends
from .recurrences import delta_rule, delta_rule_step, linear_attention

__all__ = ["available_backends", "delta_rule", "delta_rule_step", "linear_attention"]
