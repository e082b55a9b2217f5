"""Text from a converted model."""

from .pipeline import TpttPipeline
from .session import Session, stream
from .snapshot import MemorySnapshot

__all__ = ["MemorySnapshot", "Session", "TpttPipeline", "stream"]
