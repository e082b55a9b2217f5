"""Calls of the kernels where there is no room for their working space; `test_library.py` runs this in a process of its
own.

The address space of the process is limited while a call runs. Each call has small tensors and needs a large working
space.
"""

import resource

import torch

from tptt.ops import delta_rule, delta_rule_step
from tptt.ops.native import Parameters, fourier, fourier_backward, memory_step

FREE = resource.getrlimit(resource.RLIMIT_AS)
MIB = 1 << 20
HALF = torch.bfloat16


def fails(name, call, states=(), room=8 * MIB):
    """Check that `call` says that it is out of memory, leaves `states` alone, and works once there is room again."""
    before = [x.clone() for x in states]
    with open("/proc/self/statm") as sizes:
        used = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, FREE[1]))
    try:
        call()
        message = "no error"
    except RuntimeError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, FREE)
    assert "native kernels ran out of memory." in message, (name, message)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True)), name
    call()
    print(name)


def recurrences():
    beta = torch.full((1, 2, 1), 0.5)
    delta_rule(*(torch.randn(1, 2, 1, 16) for _ in range(3)), beta)  # starts the threads
    q, k, v = (torch.randn(1, 2, 1, 4096) / 64 for _ in range(3))
    fails("forward", lambda: delta_rule(q, k, v, beta, backend="native"))
    q.requires_grad_()
    o = delta_rule(q, k, v, beta, backend="native")[0]
    fails("backward", lambda: torch.autograd.grad(o.sum(), q, retain_graph=True))


def one_token():
    writes = 1 << 21
    q, k, v = (torch.randn(1, 1, *several, 1, 4).to(HALF) for several in ((), (writes,), (writes,)))
    state, beta = torch.randn(1, 1, 4, 4), torch.zeros(1, 1, writes, 1)
    fails("step", lambda: delta_rule_step(q, k, v, beta, state=state, inplace=True), [state])


def memory():
    width = 1 << 24
    one, hidden, state = torch.randn(1, 1, 1, 4).to(HALF), torch.zeros(1, 1, width, dtype=HALF), torch.randn(1, 1, 4, 4)

    def step(down):
        learned = Parameters(*[None] * 8, down, None, torch.ones(1, 4), torch.tensor(0.5))
        memory_step(one, one, one, hidden, one.flatten(2), state, learned, True, "silu")

    down = torch.zeros(1, width)
    fails("memory step", lambda: step(None), [state])
    fails("mixing gate of a memory step", lambda: step(down), [state])


def features():
    frequencies, mapped = torch.zeros(1 << 20, 16), torch.ones(1, 16)
    fails("fourier", lambda: fourier(mapped, frequencies), room=150 * MIB)
    out = fourier(mapped, frequencies)
    fails("fourier backward", lambda: fourier_backward(out, out, frequencies))


torch.set_num_threads(2)
recurrences()
with torch.no_grad():
    one_token()
    memory()
    features()
