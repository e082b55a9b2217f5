"""Feature maps of queries and keys: [B, T, H, D] -> [B, T, H, K] with unit L2 norm, computed in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tptt.ops.dtypes import without_autocast
from tptt.ops.native import fourier, fourier_backward, fourier_serves
from tptt.ops.tracing import are_ordinary


class LearnedMap(nn.Module):
    """P [H, rows, D], learned from ``start`` [rows, D]; K is the width of the features.

    What P started from is kept, and saved with it: only a map that has not been trained may start anew.
    """

    def __init__(self, heads: int, start: torch.Tensor, width: int) -> None:
        super().__init__()
        self.width = width  # K
        here = torch.empty(0).device  # "meta" where weights are loaded later; ``start`` never is there
        self.weight = nn.Parameter(start.repeat(heads, 1, 1).to(here))
        self.register_buffer("start", self.weight.detach().clone())

    @torch.no_grad()
    def begin_from(self, maps: torch.Tensor) -> bool:
        """Start the features from those of the first rows of A x, A = ``maps`` [H, D, D]. False: they have been
        trained, and stay as they are."""
        if not torch.allclose(self.start.to(self.weight), self.weight, rtol=1e-4, atol=1e-6):
            return False
        self.start.copy_(maps[:, : self.weight.shape[1]])
        self.weight.copy_(self.start)
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with without_autocast(x.device.type):
            return self.features(self.mapped(x))

    def mapped(self, x: torch.Tensor) -> torch.Tensor:
        """P x, [B, T, H, rows]."""
        return torch.einsum("bthd,hed->bthe", x.float(), self.weight.float())

    def features(self, mapped: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class SignSplit(LearnedMap):
    """SiLU([Px, -Px]) / ||.||, P [H, D, D] learned from the identity; K = 2 D (LoLCATs, arXiv 2410.10254, section
    3)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__(heads, torch.eye(head_dim, dtype=torch.float32, device="cpu"), 2 * head_dim)

    def features(self, mapped: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.silu(torch.cat([mapped, -mapped], -1)), dim=-1, eps=1e-6)


class Silu(nn.Module):
    """SiLU(x) / ||.||; K = D, no parameters."""

    weight = None

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.width = head_dim  # K

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.silu(x.float()), dim=-1, eps=1e-6)


class Fourier(LearnedMap):
    """[cos(W z), sin(W z)] / sqrt(K / 2) of z = Px / ||Px||, P [H, R, D] learned, R = min(D, 32), W [K / 2, R] drawn
    once.

    Random Fourier features (Rahimi and Recht, 2007) of a Gaussian kernel on the unit sphere, in orthogonal blocks (Yu
    et al., arXiv 1610.09072): the product of two of them is exp(-SHARPNESS (1 - cos)), give or take 1 / sqrt(K). The
    kernel sets the key that matches apart from those that nearly do, as a softmax does; K says how many keys are kept
    apart.
    """

    def __init__(self, heads: int, head_dim: int, width: int) -> None:
        rows = min(head_dim, ROWS)
        draw = _drawn if are_ordinary(torch.empty(0)) else _drawn.__wrapped__  # fake ones are not for others
        start, frequencies = draw(head_dim, rows, width // 2)
        super().__init__(heads, start, width)
        self.register_buffer("frequencies", frequencies.to(self.weight.device, copy=True))

    def features(self, mapped: torch.Tensor) -> torch.Tensor:
        mapped = F.normalize(mapped, dim=-1, eps=1e-6)
        if torch.compiler.is_compiling():  # a compiler fuses the plain form
            return _plain(mapped, self.frequencies.float())
        return _Waves.apply(mapped, self.frequencies.float())


def _plain(mapped: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    angles = F.linear(mapped, frequencies)
    return torch.cat([angles.cos(), angles.sin()], -1).mul_(angles.shape[-1] ** -0.5)


class _Waves(torch.autograd.Function):
    """`_plain`, which keeps its result alone: the halves are each other's derivatives. Two thirds of the memory and
    half of the time, on a CPU with kernels a ninth, of what autograd makes of the formula."""

    @staticmethod
    def forward(ctx, mapped: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
        ctx.kernels = fourier_serves(mapped)
        out = (fourier if ctx.kernels else _plain)(mapped, frequencies)
        ctx.save_for_backward(out, frequencies)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out, frequencies = ctx.saved_tensors
        if ctx.kernels:
            return fourier_backward(out, grad, frequencies), None
        (cosines, sines), (d_cosines, d_sines) = out.chunk(2, -1), grad.chunk(2, -1)
        d_angles = torch.mul(d_sines, cosines).addcmul_(d_cosines, sines, value=-1)
        with without_autocast(grad.device.type):
            return d_angles @ frequencies, None


SHARPNESS = 12.0
ROWS = 32
"""At most. Of heads of 32 channels, 16 rows told keys apart as well as all of them."""


@lru_cache
def _drawn(head_dim: int, rows: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthogonal rows [``rows``, D], and frequencies [``count``, ``rows``]: the same ones for queries and keys."""
    options = {"dtype": torch.float32, "device": "cpu", "generator": torch.Generator("cpu").manual_seed(0)}
    start = torch.linalg.qr(torch.randn(head_dim, rows, **options))[0].T.contiguous()
    directions = torch.linalg.qr(torch.randn(-(-count // rows), rows, rows, **options))[0].flatten(0, 1)[:count]
    lengths = torch.randn(count, rows, **options).norm(dim=-1, keepdim=True)  # those of Gaussian vectors
    return start, (SHARPNESS**0.5 * lengths * directions).contiguous()


MAPS: dict[str, Callable[[int, int, int], nn.Module]] = {  # of heads, D and the configuration's feature_width
    "sign_split": lambda heads, head_dim, width: SignSplit(heads, head_dim),
    "silu": lambda heads, head_dim, width: Silu(heads, head_dim),
    "fourier": Fourier,
}
