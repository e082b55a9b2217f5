"""Conversion as one call, its settings, rows and diagnostics; schedules of the Memory-as-Gate weight as Trainer callbacks."""

from .allocator import keep_freed_memory
from .callbacks import AdjustMaGWeightCallback, LiZACallback
from .convert import Converted, convert_and_train, train
from .diagnostics import BranchProbe
from .layers import LayerChoice, choose_layers
from .material import Material
from .optim import default_rates, parameter_groups
from .rows import MixedRows
from .schedules import constant, cyclic, gradual, switch
from .settings import TrainingSettings
from .trainer import ConversionTrainer
from .widths import spread_width

__all__ = [
    "AdjustMaGWeightCallback",
    "BranchProbe",
    "ConversionTrainer",
    "Converted",
    "LayerChoice",
    "LiZACallback",
    "Material",
    "MixedRows",
    "TrainingSettings",
    "choose_layers",
    "constant",
    "convert_and_train",
    "cyclic",
    "default_rates",
    "gradual",
    "keep_freed_memory",
    "parameter_groups",
    "spread_width",
    "switch",
    "train",
]
