"""Runs the operator of the public package tptt 0.12.1 in a Python that has it, on request.

It computes something else than the recurrence it names (shared measurement: 100 % off at chunk size 64); only its time
is of interest. Reads lines "threads T H D backward" and answers with the seconds of one call.
"""

import sys
import time

import torch
from tptt.modeling_tptt import LinearAttentionOp  # the original's, not ours


def seconds(tokens: int, heads: int, width: int, backward: bool) -> float:
    inputs = [torch.randn(1, heads, tokens, 1, width, requires_grad=backward) for _ in range(3)]
    inputs[0], inputs[1] = (
        torch.nn.functional.normalize(x.detach(), dim=-1).requires_grad_(backward) for x in inputs[:2]
    )
    gates = torch.ones(1, heads, tokens, 1, 1), torch.rand(1, heads, tokens, 1, 1)
    operator = LinearAttentionOp(max_chunk_size=64)
    start = time.perf_counter()
    out, _ = operator(*inputs, *gates, linear_activation=True)
    if backward:
        torch.autograd.grad(out.sum(), inputs)
    return time.perf_counter() - start


for line in sys.stdin:
    threads, *numbers = map(int, line.split())
    torch.set_num_threads(threads)
    print(seconds(*numbers[:3], bool(numbers[3])), flush=True)
