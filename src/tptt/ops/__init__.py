"""The recurrences of the linear memory: tensors in, tensors out. See README.md."""

from .backends import BackendChoice, available_backends, backend_for
from .recurrences import delta_rule, delta_rule_step, linear_attention

__all__ = [
    "BackendChoice",
    "available_backends",
    "backend_for",
    "delta_rule",
    "delta_rule_step",
    "linear_attention",
]
