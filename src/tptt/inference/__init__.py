"""Text from a converted model."""

from .pipeline import TpttPipeline

__all__ = ["TpttPipeline"]
