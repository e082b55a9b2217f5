"""Version-dependent names of transformers that `TpttConfig` needs; all others stand in `tptt.hf.compat`.

A file of its own, because the configuration is imported as soon as AutoConfig is (`tptt.hf.auto`), which may be in the
middle of an import of transformers or peft: nothing else of theirs may be imported then.
"""

from transformers.configuration_utils import SubConfigSpec

__all__ = ["SubConfigSpec"]
