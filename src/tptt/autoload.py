"""`import torch` calls `register` in every process, through the entry point that torch offers to packages beside it.

A process that only asks transformers for the tokenizer in the folder of a converted model never imports tptt. Without
this, transformers takes the configuration there for custom code and asks whether to run it.
"""

import warnings


def register() -> None:
    """Let transformers' Auto classes know the model type "tptt". It never fails: `import torch` would fail with it."""
    try:
        from tptt.hf.auto import register_config

        register_config()
    except Exception as error:
        warnings.warn(f"transformers does not know the model type 'tptt': {error!r}", stacklevel=2)
