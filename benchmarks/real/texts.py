"""Text for training and for perplexity: paragraphs and essays of which no row is made, and those of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .material import Sources
from .place import TRAIN
from .rows import SPLITS


def text_files(folder: Path) -> list[Path]:
    """The files that `write_texts` writes into the prepared ``folder``."""
    names = [f"{kind}-{split}.txt" for kind in ("essays", "paragraphs") for split in SPLITS]
    return [folder / TRAIN, *(folder / TRAIN.parent / name for name in names)]


def write_texts(sources: Sources, folder: Path) -> None:
    """Write the texts, pieces divided by an empty line.

    ``text/train.txt``: paragraphs and essays of which no row of either split is made and with which no row shares
    `material.RUN` words. The paragraphs stand with their titles, question after question, so that neighbours are about
    related things, with the essays spread evenly among them. ``text/essays-SPLIT.txt``: the essays that the rows of a
    split are made of, one after another, for perplexity by position. ``text/paragraphs-SPLIT.txt``: its paragraphs.
    """
    (folder / "text").mkdir(parents=True, exist_ok=True)
    pieces = [spread(sources.paragraphs["train"], sources.essays["train"])]
    pieces += [sources.essays[split] for split in SPLITS] + [sources.paragraphs[split] for split in SPLITS]
    for file, texts in zip(text_files(folder), pieces, strict=True):
        partial = file.with_suffix(".partial")
        partial.write_text("".join(text.strip() + "\n\n" for text in texts), encoding="utf-8")
        partial.replace(file)


def spread(many: Sequence[str], few: Sequence[str]) -> list[str]:
    """``many`` in its order with ``few`` in its order at even distances among them."""
    places = [(i + 1) / (len(many) + 1) for i in range(len(many))]
    others = [(i + 0.5) / len(few) for i in range(len(few))]
    ordered = sorted([*zip(places, many, strict=True), *zip(others, few, strict=True)], key=lambda item: item[0])
    return [text for _, text in ordered]
