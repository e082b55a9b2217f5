"""Schedules of the Memory-as-Gate weight, the Trainer callbacks that apply them, and the optimizer's groups.

`tptt.training.recall_trainer` (a Trainer that weights recall targets) is not imported here: it pulls in all of Trainer.
"""

from .callbacks import AdjustMaGWeightCallback, LiZACallback
from .optim import parameter_groups
from .schedules import constant, cyclic, gradual, switch

__all__ = [
    "AdjustMaGWeightCallback",
    "LiZACallback",
    "constant",
    "cyclic",
    "gradual",
    "parameter_groups",
    "switch",
]
