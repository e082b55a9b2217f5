"""Peak memory of one forward and backward, in a process of its own.

python -m benchmarks.ops.memory native      # or PyTorch, kda, SDPA
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

TOKENS, HEADS, WIDTH = 32768, 4, 64


def peak_units(name: str) -> float:
    """Bytes above inputs, outputs and gradients at the peak, in tensors of H T D floats."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ops.memory", name],
        capture_output=True,
        encoding="utf-8",
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


def _status(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")).group(1))


def _run(name: str, tokens: int) -> int:
    """Bytes of the results of one forward and backward at ``tokens``."""
    from tptt.ops import delta_rule

    q, k, v = (torch.randn(1, tokens, HEADS, WIDTH) for _ in range(3))
    gates = [torch.rand(1, tokens, HEADS), -0.1 * torch.rand(1, tokens, HEADS, *([WIDTH] if name == "kda" else []))]
    d_o = torch.randn(1, tokens, HEADS, WIDTH)
    inputs = [x.requires_grad_() for x in ((q, k, v) if name == "SDPA" else (q, k, v, *gates))]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew here
    before = _status("VmRSS")
    if name == "SDPA":
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs), is_causal=True).transpose(1, 2)
    else:
        backend = "native" if name == "native" else "chunk"
        out = delta_rule(*inputs, backend=backend)[0]
    grads = torch.autograd.grad(out, inputs, d_o)
    return _status("VmHWM") - before - sum(4 * x.numel() for x in (out, *grads))


if __name__ == "__main__":
    _run(sys.argv[1], 256)  # loads what is loaded once
    print(_run(sys.argv[1], TOKENS) / (4 * HEADS * TOKENS * WIDTH))
