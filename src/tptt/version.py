"""The version of the package: pyproject.toml, checkpoints and reports read it here."""

__version__ = "1.0.0.dev0"
