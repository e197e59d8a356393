"""Normal numbers that depend on a seed and a position only: the same bits on a CPU, on a GPU and in torch.

Philox-4x32-10 (Salmon, Moraes, Dror & Shaw, SC 2011); csrc/philox.h has the definition. Element n of a stream
is word n % 4 of the block with counter (n / 4, stream) and the seed for a key. A normal is the inverse
distribution function (M. Giles, "Approximating the erfinv function", 2011) at the middle of one of 2^23 equal
steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu, cuda

LOW = 0xFFFFFFFF
MIDDLE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
    -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
    0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def normal(shape: Sequence[int], seed: int, stream: int, device: torch.device) -> Tensor:
    """Normal numbers, float32 and contiguous; what numbers does not depend on the device.

    Args:
        seed, stream: 0 .. 2^64 - 1 each.

    Raises:
        ValueError: for a seed or a stream that is not among these.
    """
    if not (0 <= seed < 1 << 64 and 0 <= stream < 1 << 64):
        raise ValueError(f"seed {seed} and stream {stream} are not 64-bit numbers")
    out = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    count = out.numel()
    if device.type == "cpu" and not cpu.why_not():
        cpu.extension.normals(out.data_ptr(), count, seed, stream, cpu.team())
    elif device.type == "cuda" and not cuda.why_not():
        cuda.normals(out.data_ptr(), count, seed, stream, device)
    else:
        words = philox(torch.arange(-(-count // 4), device=device), stream, seed)
        out = from_words(words.flatten()[:count]).view(tuple(shape))
    return out


def philox(counter: Tensor, stream: int, seed: int) -> Tensor:
    """The four words of each block, as int64 (n, 4), for counters (n,) int64."""
    a, b = counter & LOW, (counter >> 32) & LOW
    c, d = (torch.full_like(a, half) for half in (stream & LOW, stream >> 32))
    low, high = seed & LOW, seed >> 32
    for _ in range(10):
        x, y = a * 0xD2511F53, c * 0xCD9E8D57  # modulo 2^64, which int64 keeps
        a, b, c, d = ((y >> 32) & LOW) ^ b ^ low, y & LOW, ((x >> 32) & LOW) ^ d ^ high, x & LOW
        low, high = (low + 0x9E3779B9) & LOW, (high + 0xBB67AE85) & LOW
    return torch.stack([a, b, c, d], -1)


def from_words(words: Tensor) -> Tensor:
    """Normals of 32-bit words, operation by operation as csrc/philox.h has them: none may be fused."""
    odd = (words >> 9) * 2 + 1
    x = (odd - (1 << 23)).float() * 2**-23
    t = (odd.float() * 2**-23) * (((1 << 24) - odd).float() * 2**-23)
    w = -_logarithm(t)
    tail = w >= 5.0
    root = (
        w.double().sqrt().float()
    )  # torch's float32 root is not always rounded as IEEE 754 says; this one is
    v = torch.where(tail, root - 3.0, w - 2.5)
    p = torch.full_like(v, MIDDLE[0]).masked_fill_(tail, TAIL[0])
    for far, near in zip(TAIL[1:], MIDDLE[1:], strict=True):
        p = p * v
        p = p + torch.full_like(v, near).masked_fill_(tail, far)
    return (p * x) * 1.41421356


def _logarithm(t: Tensor) -> Tensor:
    bits = t.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - exponent * (1 << 23)).view(torch.float32)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = torch.full_like(z, 1 / 9)
    for coefficient in (1 / 7, 1 / 5, 1 / 3, 1.0):
        p = p * z
        p = p + coefficient
    return exponent.float() * 0.69314718 + (p * s) * 2.0
