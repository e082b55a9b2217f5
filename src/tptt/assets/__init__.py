"""The small base model that ships with the package, and the scripts that made it."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
