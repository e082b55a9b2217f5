"""RULER's 13 tasks (arXiv 2404.06654), written anew after the paper, with the values and words of its released data.

A row agrees with RULER's in form, parameters, words and judge. It differs in this: its essays begin at a drawn
sentence and are split by another splitter, no key or value comes twice, the length is filled more closely and counts
the base's chat template, and what stands before a haystack (instructions, a worked example) is part of ``context``.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chains import Chains
from .needles import Needles
from .questions import Documents
from .words import CommonWords, FrequentWords


@dataclass(frozen=True)
class Task:
    """A task of the table.

    Args:
        family: Key of RULER's templates.
        maker: Drafts its rows.
        judge: A key of `judge.JUDGES`.
    """

    family: str
    maker: Needles | Chains | CommonWords | FrequentWords | Documents
    judge: str = "all"


TASKS: dict[str, Task] = {
    "niah_single_1": Task("niah", Needles("noise")),
    "niah_single_2": Task("niah", Needles("essays")),
    "niah_single_3": Task("niah", Needles("essays", value_kind="uuids")),
    "niah_multikey_1": Task("niah", Needles("essays", keys=4)),
    "niah_multikey_2": Task("niah", Needles("needles")),
    "niah_multikey_3": Task("niah", Needles("needles", key_kind="uuids", value_kind="uuids")),
    "niah_multivalue": Task("niah", Needles("essays", values=4)),
    "niah_multiquery": Task("niah", Needles("essays", keys=4, queries=4)),
    "vt": Task("variable_tracking", Chains()),
    "cwe": Task("common_words_extraction", CommonWords()),
    "fwe": Task("freq_words_extraction", FrequentWords()),
    "qa_1": Task("qa", Documents("squad"), "any"),
    "qa_2": Task("qa", Documents("hotpotqa"), "any"),
}
"""In the order of the paper."""
