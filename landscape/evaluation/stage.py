"""The first stage of a convolutional network at many points: responses added up, max-pooled and rectified in one pass.

The responses of a first layer to the data are affine in the coordinates. What comes out of the layer, or of the
max-pooling and the ReLU after it, is for each entry of the result

    out_p = max_q (R_q0 + c_p1 R_q1 + ... + c_pk R_qk),    or the larger of that and 0,

where q runs over the places of the pooling window. Compiled by numba, a tile of the responses stays in the cache while
all points are computed from it; torch would read it from memory once per point and operation.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

TILE = 512  # entries; those of all responses to one place of the window stay in the first cache
_FOR_A_THREAD = 1 << 17  # entries of a result below which another thread does not pay


def add_up(
    responses: Tensor, coordinates: Sequence[Sequence[float]], out: Tensor, relu: bool, compiled: bool = False
) -> None:
    """Add up the responses of a first layer at some points.

    NaN and infinity go through as they do in torch.

    Args:
        responses: `[places, k + 1, ...]` under the origin and under each direction, for each place in the window of the
            pooling that follows (one where none does), contiguous.
        coordinates: `[g, k]`.
        out: `[g, ...]`, contiguous; written.
        relu: Whether a ReLU follows.
        compiled: Whether numba does it; then float32 or float64 on a CPU.
    """
    if compiled:
        flat, result = responses.flatten(2).numpy(), out.flatten(1).numpy()
        factors = np.array(coordinates, dtype=result.dtype)
        _in_threads(partial(kernel(_add_up), flat, factors, relu, result), result.shape[1], len(factors), TILE)
        return
    spare = torch.empty_like(out[0])
    for point, largest in zip(coordinates, out, strict=True):
        for q, (at_origin, first, *others) in enumerate(responses):
            value = torch.add(at_origin, first, alpha=point[0], out=spare if q else largest)
            for coordinate, step in zip(point[1:], others, strict=True):
                value.add_(step, alpha=coordinate)
            if q:
                torch.maximum(largest, value, out=largest)
        if relu:
            largest.relu_()


def pool(x: Tensor, relu: bool) -> Tensor:
    """Pool images `[n, c, h, w]` as `F.max_pool2d(x, 2)` does, by numba; the result has their layout.

    Args:
        x: See `can_pool`.
        relu: Whether a ReLU follows.
    """
    n, c, h, w = x.shape
    if x.is_contiguous():
        out = x.new_empty(n, c, h // 2, w // 2)
        arrays = x.flatten(0, 1).numpy(), out.flatten(0, 1).numpy()
        _in_threads(partial(kernel(_pool_planes), arrays[0], relu, arrays[1]), n * c, out[0, 0].numel(), 1)
        return out
    out = x.new_empty(n, h // 2, w // 2, c)
    arrays = x.permute(0, 2, 3, 1).numpy(), out.numpy()
    _in_threads(partial(kernel(_pool_pixels), arrays[0], relu, arrays[1]), n, out[0].numel(), 1)
    return out.permute(0, 3, 1, 2)


def can_pool(x: Tensor) -> bool:
    """Tell whether `pool` takes images: see `can_compile`, contiguous in either layout."""
    laid_out = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x.ndim == 4 and laid_out and can_compile(x)


def can_compile(x: Tensor) -> bool:
    """Tell whether compiled code takes a tensor: float32 or float64 on a CPU."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def available() -> bool:
    """Tell whether numba is installed."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def kernel(function: Callable) -> Callable:
    """Compile a function by numba; the code is kept on disk where a folder can be written."""
    import numba

    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(function, **options)


def _in_threads(function: Callable[[int, int], None], n: int, each: int, step: int) -> None:
    """Call `function(start, stop)` on parts of `range(n)` that begin at multiples of `step`, one per thread.

    The results do not depend on the number of threads, since every entry is computed by itself.
    """
    threads = min(torch.get_num_threads(), n * each // _FOR_A_THREAD, n)
    if threads < 2:
        function(0, n)
        return
    width = -(-n // (threads * step)) * step
    parts = [(start, min(start + width, n)) for start in range(0, n, width)]
    for done in [_team(threads, os.getpid()).submit(function, *part) for part in parts]:
        done.result()


@cache
def _team(threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads of this process: those of its parent did not come along."""
    return ThreadPoolExecutor(threads)


def _add_up(responses: np.ndarray, coordinates: np.ndarray, relu: bool, out: np.ndarray, begin: int, end: int) -> None:
    """See `add_up`; `responses` `[places, k + 1, n]`, `out` `[g, n]`, entries from `begin` to `end`."""
    places, k = responses.shape[0], responses.shape[1] - 1
    zero = out.dtype.type(0)
    memory = np.empty(TILE, out.dtype)
    for start in range(begin, end, TILE):
        stop = min(start + TILE, end)
        for p in range(len(out)):
            result = out[p, start:stop]
            for q in range(places):
                # slices and loops from 0: only these are vectorized
                total = responses[q, 0, start:stop]
                for j in range(1, k):
                    partial_sum, step, factor = (
                        memory[: stop - start],
                        responses[q, j, start:stop],
                        coordinates[p, j - 1],
                    )
                    for i in range(len(result)):
                        partial_sum[i] = total[i] + factor * step[i]
                    total = partial_sum
                step, factor = responses[q, k, start:stop], coordinates[p, k - 1]
                if q == 0:
                    for i in range(len(result)):
                        result[i] = total[i] + factor * step[i]
                else:
                    for i in range(len(result)):
                        old, new = result[i], total[i] + factor * step[i]
                        result[i] = old if (old > new or old != old) else new  # NaN stays
            if relu:
                for i in range(len(result)):
                    result[i] = zero if result[i] < zero else result[i]


def _pool_planes(x: np.ndarray, relu: bool, out: np.ndarray, begin: int, end: int) -> None:
    """See `pool`; `x` and `out` `[planes, h, w]`, planes from `begin` to `end`."""
    zero = out.dtype.type(0)
    for n in range(begin, end):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                nw, ne = x[n, 2 * i, 2 * j], x[n, 2 * i, 2 * j + 1]
                sw, se = x[n, 2 * i + 1, 2 * j], x[n, 2 * i + 1, 2 * j + 1]
                upper = nw if (nw > ne or nw != nw) else ne
                lower = sw if (sw > se or sw != sw) else se
                largest = upper if (upper > lower or upper != upper) else lower
                out[n, i, j] = zero if (relu and largest < zero) else largest


def _pool_pixels(x: np.ndarray, relu: bool, out: np.ndarray, begin: int, end: int) -> None:
    """See `pool`; `x` and `out` `[n, h, w, c]`, samples from `begin` to `end`."""
    zero = out.dtype.type(0)
    for n in range(begin, end):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                result = out[n, i, j]
                nw, ne, sw, se = (
                    x[n, 2 * i, 2 * j],
                    x[n, 2 * i, 2 * j + 1],
                    x[n, 2 * i + 1, 2 * j],
                    x[n, 2 * i + 1, 2 * j + 1],
                )
                for c in range(len(result)):
                    upper = nw[c] if (nw[c] > ne[c] or nw[c] != nw[c]) else ne[c]
                    lower = sw[c] if (sw[c] > se[c] or sw[c] != sw[c]) else se[c]
                    largest = upper if (upper > lower or upper != upper) else lower
                    result[c] = zero if (relu and largest < zero) else largest
