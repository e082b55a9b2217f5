"""What a call of ``generate`` asks for, wherever that is said."""

from __future__ import annotations

from typing import Any


def chosen(model, options: dict, name: str) -> Any:
    """The value of the option ``name`` in ``model.generate(**options)``: that in ``options``, else in their
    generation_config, else in the model's; None: it is set nowhere."""
    found = (
        options.get(name),
        *(getattr(c, name, None) for c in (options.get("generation_config"), model.generation_config)),
    )
    return next((value for value in found if value is not None), None)


def check_options(model, options: dict) -> None:
    """Raises:
    ValueError: ``options`` ask for what cannot go on from a cache, or for more than ids.
    """
    where = "in the call, its generation_config or the model's"
    if chosen(model, options, "use_cache") is False:
        raise ValueError(
            f"use_cache=False ({where}): a session's past is its cache; leave it out, or set use_cache=True"
        )
    if chosen(model, options, "return_dict_in_generate"):
        raise ValueError(
            f"return_dict_in_generate=True ({where}): a session returns ids or text; leave it out, or set it to False "
            "(model.generate returns scores and the like)"
        )
