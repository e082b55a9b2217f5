"""What the runs in configs/ take, computed from their bases' configurations, as comments in their own files.

python -m benchmarks.configs            # prints
python -m benchmarks.configs --write    # puts it at the end of each file
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers.utils import logging

from tptt.cli.dry_run import as_keys, duration
from tptt.estimate.fit import ways_to_fit
from tptt.estimate.resources import ResourceEstimate, estimate_resources
from tptt.estimate.survey import Survey
from tptt.run.options import RunOptions
from tptt.run.run_file import load_run

CONFIGS = Path(__file__).parents[1] / "configs"
CARDS = ("t4", "rtx-4090", "80gb")
HEAD = "# Estimates of `python -m benchmarks.configs --write` (tptt.estimate.resources says of what):"
_CACHED = 32_768


def comments(options: RunOptions) -> str:
    """The figures of one run, as comments."""
    survey = Survey(options)
    found = survey.parameters
    lines = [
        f"parameters: base {found.base:,}, LoRA {found.lora:,}, memory {found.memory:,}; trained {found.trained:,}",
        *(_on_card(options, name, survey) for name in CARDS),
        _cache_line(estimate_resources(options, CARDS[-1], survey)),
    ]
    return "\n".join([HEAD, *(f"#   {line}" for line in lines)]) + "\n"


def _on_card(options: RunOptions, name: str, survey: Survey) -> str:
    """Memory and time on one card, with the keys that have to change for it."""
    changes = ways_to_fit(options, name, survey)
    found = estimate_resources(options.changed(**(changes or {})), name, survey)
    if changes is None:
        return f"{found.hardware.title}: does not fit"
    narrowly = " (narrowly)" if found.narrow else ""
    used = f"{found.peak / 2**30:.1f} of {found.hardware.usable / 2**30:.1f} GiB{narrowly}"
    seconds = "no time known" if found.seconds is None else duration(found.seconds)
    return f"{found.hardware.title}: {used}, {seconds}{f', with {as_keys(changes)}' if changes else ''}"


def _cache_line(found: ResourceEstimate) -> str:
    base, converted = found.cache_bytes(_CACHED)
    smaller = "never smaller" if found.break_even is None else f"smaller from {found.break_even:,} tokens on"
    return (
        f"cache of one sequence after {_CACHED:,} tokens: {base / 2**20:.1f} MiB for the base, "
        f"{converted / 2**20:.1f} MiB converted; {smaller}"
    )


def with_comments(path: Path) -> str:
    """The file at ``path`` with its figures computed anew."""
    text = path.read_text(encoding="utf-8").partition(HEAD)[0].rstrip("\n")
    return f"{text}\n\n{comments(load_run(path))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the figures into the files")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    for path in sorted(CONFIGS.glob("*.yaml")):
        text = with_comments(path)
        if arguments.write:
            path.write_text(text, encoding="utf-8")
        print(f"{path.name}\n{text.partition(HEAD)[2]}")


if __name__ == "__main__":
    main()
