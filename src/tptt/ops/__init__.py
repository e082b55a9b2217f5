"""The recurrences of the linear memory: tensors in, tensors out. See README.md."""

from .backends import available_backends, delta_rule, delta_rule_step

__all__ = ["available_backends", "delta_rule", "delta_rule_step"]
