"""The training of a converted model: its settings, rows, losses, schedules and loop."""

from .allocator import keep_freed_memory
from .arguments import training_arguments
from .begin import begin_conversion
from .callbacks import AdjustMaGWeightCallback, LiZACallback
from .corpus import Corpus
from .loop import Converted, convert_and_train, train
from .optim import default_rates, parameter_groups
from .probe import BranchProbe
from .rows import MixedRows
from .schedules import constant, cyclic, gradual, switch
from .settings import TrainingSettings
from .trainer import ConversionTrainer

__all__ = [
    "AdjustMaGWeightCallback",
    "BranchProbe",
    "ConversionTrainer",
    "Converted",
    "Corpus",
    "LiZACallback",
    "MixedRows",
    "TrainingSettings",
    "begin_conversion",
    "constant",
    "convert_and_train",
    "cyclic",
    "default_rates",
    "gradual",
    "keep_freed_memory",
    "parameter_groups",
    "switch",
    "train",
    "training_arguments",
]
