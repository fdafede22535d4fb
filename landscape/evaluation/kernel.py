"""The compiled kernel of the dense plan: a narrow network, whole, for one tile of samples after the other.

A batched product reads and writes the values of every layer through memory. Here the samples are cut into tiles so
short that the values of two layers stay in the fastest cache; for each tile, each point runs through all layers and the
loss. All inner loops go over the samples of a tile, whose number is fixed when this is compiled, so that the compiler
turns them into vector instructions without remainder. It calls no mathematical library, which it could not vectorize:
the functions below are polynomials and quotients of them, fitted for the least largest relative error and right to a
few units in the last place of float32. NaN stays NaN.

Importing this module compiles it, seconds at the first time, and keeps the result in a folder of numba's choice.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

TILE = 256
IDENTITY, TANH, RELU, SIGMOID, LEAKY_RELU, ELU, GELU, GELU_TANH, SILU = range(9)

_F = np.float32  # numba takes a plain number for float64, and everything it touches with it
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)
_FAST = {"contract", "nsz"}  # fused multiplication and addition; nothing that breaks NaN or reorders a sum


_function = njit(forceinline=True, fastmath=_FAST)  # of numbers
_part = njit(inline="always", fastmath=_FAST)  # strides known where it is used: no checks whether its arrays overlap
_pass = njit(fastmath=_FAST)


def _compile(signature: str) -> Callable:
    compile_for = partial(njit, signature, nogil=True, fastmath=_FAST, error_model="numpy")

    def compiled(function: Callable) -> Callable:
        try:
            return compile_for(cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return compile_for()(function)  # no folder can be written: compiled anew by each process

    return compiled


def _ask_for_widest_vectors(context):
    """Ask for 512-bit vectors where the processor has them; by itself the compiler stops at 256 bits."""

    def generate(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # past llvmlite's list of known names
        return context.get_dummy_value()

    return types.none(), generate


_widest_vectors: Callable = intrinsic(_ask_for_widest_vectors)


@_function
def tanh(x):
    """Compute `x P(x^2) / Q(x^2)`, both of degree 4; constant beyond 8.5."""
    x = _F(8.5) if x > _F(8.5) else x
    x = _F(-8.5) if x < _F(-8.5) else x
    t = x * x
    p = (((_F(1.42691957e-8) * t + _F(2.12510187e-5)) * t + _F(3.53402522e-3)) * t + _F(0.134132455)) * t + _ONE
    q = (((_F(8.14510951e-7) * t + _F(3.34886218e-4)) * t + _F(2.60227450e-2)) * t + _F(0.467465683)) * t + _ONE
    return x * p / q


@_function
def exp(x):
    """Compute `e^x = 2^n e^r`, `x = n log 2 + r`; 0 below -87.3, where float32 loses digits, infinity above 88.3."""
    z = x * _F(1.44269504) + _F(12582912)  # adding 1.5 * 2^23 rounds to a whole number, which the last bits hold
    n = z - _F(12582912)
    r = (x - n * _F(0.693359375)) - n * _F(-2.12194440e-4)
    p = (((_F(1.38145e-3) * r + _F(8.36878e-3)) * r + _F(4.166839e-2)) * r + _F(0.1666652)) * r + _F(0.49999993)
    p = p * (r * r) + r + _ONE
    bits = np.int32((np.int32(_F(z).view(np.int32)) << np.int32(23)) + np.int32(0x3F800000))
    y = p * np.int32(bits).view(np.float32)
    y = _ZERO if x < _F(-87.3) else y
    return _F(np.inf) if x > _F(88.3) else y


@_function
def log1p(t):
    """Compute the logarithm of `1 + t = 2^n (1 + f)` for `t >= 0`, with all its digits where `t` is small."""
    u = t + _ONE
    bits = np.int32(np.int32(_F(u).view(np.int32)) - np.int32(0x3F3504F3))  # 1 + f from sqrt(1/2) to sqrt(2)
    n = np.int32(bits >> np.int32(23))
    scale = np.int32(np.int32(0x3F800000) - np.int32(n << np.int32(23))).view(np.float32)
    f = (u * scale - _ONE) + (t - (u - _ONE)) * scale  # what 1 + t lost is added here
    p = ((_F(-0.07634501) * f + _F(0.1276158)) * f + _F(-0.13160182)) * f + _F(0.14201758)
    p = (((p * f + _F(-0.16623357)) * f + _F(0.20001227)) * f + _F(-0.25000821)) * f + _F(0.33333332)
    square = f * f
    small = (p * f - _HALF) * square + _F(n) * _F(-2.12194440e-4)
    return (small + f) + _F(n) * _F(0.693359375)


@_function
def erf(x):
    """Compute `x P(x^2) / Q(x^2)`, both of degree 5; constant beyond 3.9."""
    x = _F(3.9) if x > _F(3.9) else x
    x = _F(-3.9) if x < _F(-3.9) else x
    t = x * x
    p = ((_F(2.06643364e-6) * t + _F(2.85059534e-4)) * t + _F(3.73835062e-3)) * t + _F(5.26680853e-2)
    q = ((_F(3.82694690e-5) * t + _F(1.15737212e-3)) * t + _F(1.49142875e-2)) * t + _F(0.113819107)
    return x * ((p * t + _F(0.189667324)) * t + _F(1.12837915)) / ((q * t + _F(0.501421071)) * t + _ONE)


@_function
def expm1_of_negative(x):
    """Compute the exponential minus 1 for `x <= 0`, `2 t / (1 - t)` with `t = tanh(x / 2)`."""
    t = tanh(_HALF * x)
    return (t + t) / (_ONE - t)


@_pass
def _activate(h, rows, code, parameter):
    """Apply an activation to the first rows of `h`, in place."""
    _widest_vectors()
    for u in range(rows):
        if code == TANH:
            for s in range(TILE):
                h[u, s] = tanh(h[u, s])
        elif code == RELU:
            for s in range(TILE):
                h[u, s] = _ZERO if h[u, s] < _ZERO else h[u, s]
        elif code == SIGMOID:
            for s in range(TILE):
                h[u, s] = _ONE / (_ONE + exp(-h[u, s]))
        elif code == LEAKY_RELU:
            for s in range(TILE):
                h[u, s] = h[u, s] if h[u, s] > _ZERO else parameter * h[u, s]
        elif code == ELU:
            for s in range(TILE):
                x = h[u, s]
                h[u, s] = x if x > _ZERO else parameter * expm1_of_negative(x)
        elif code == GELU:
            for s in range(TILE):
                h[u, s] = _HALF * h[u, s] * (_ONE + erf(_F(0.707106781) * h[u, s]))
        elif code == GELU_TANH:
            for s in range(TILE):
                x = h[u, s]
                h[u, s] = _HALF * x * (_ONE + tanh(_F(0.797884561) * (x + _F(0.044715) * (x * x * x))))
        elif code == SILU:
            for s in range(TILE):
                h[u, s] = h[u, s] / (_ONE + exp(-h[u, s]))


@_part
def _affine(h, responses, units, c):
    """Fill `h` with the first layer at coordinates `c`: `r_0 + sum_i c_i r_i`."""
    for u in range(units):
        r0, r1, c1 = responses[0, u], responses[1, u], c[0]
        for s in range(TILE):
            h[u, s] = r0[s] + c1 * r1[s]
        for i in range(1, len(c)):
            ri, ci = responses[i + 1, u], c[i]
            for s in range(TILE):
                h[u, s] += ci * ri[s]


@_part
def _linear(h, n_in, weights, n_out, y):
    """Fill `y` with `W h + b`, two outputs by four inputs at a time, as `padded` lays out the weights."""
    padded = (n_in + 4) // 4 * 4
    for i in range(n_in, padded):
        one = _ONE if i == n_in else _ZERO  # the bias is the weight of a row of ones
        for s in range(TILE):
            h[i, s] = one
    for o in range(0, n_out, 2):
        w, v = weights[o * padded : (o + 1) * padded], weights[(o + 1) * padded : (o + 2) * padded]
        for i in range(0, padded, 4):
            w0, w1, w2, w3, v0, v1, v2, v3 = w[i], w[i + 1], w[i + 2], w[i + 3], v[i], v[i + 1], v[i + 2], v[i + 3]
            if i == 0:
                for s in range(TILE):
                    x0, x1, x2, x3 = h[0, s], h[1, s], h[2, s], h[3, s]
                    y[o, s] = w0 * x0 + (w1 * x1 + (w2 * x2 + w3 * x3))
                    y[o + 1, s] = v0 * x0 + (v1 * x1 + (v2 * x2 + v3 * x3))
            else:
                for s in range(TILE):
                    x0, x1, x2, x3 = h[i, s], h[i + 1, s], h[i + 2, s], h[i + 3, s]
                    y[o, s] = w0 * x0 + (w1 * x1 + (w2 * x2 + (w3 * x3 + y[o, s])))
                    y[o + 1, s] = v0 * x0 + (v1 * x1 + (v2 * x2 + (v3 * x3 + y[o + 1, s])))
    return padded * ((n_out + 1) // 2 * 2)


@_pass
def _cross_entropy(h, classes, target, largest, of_target, loss, ties):
    """Fill `loss` with `log sum_j exp(h_j - m) + (m - h_target)`, `m` the largest; see `losses.cross_entropy`."""
    _widest_vectors()
    for s in range(TILE):
        largest[s] = h[0, s]
        of_target[s] = h[0, s]
        loss[s] = _ZERO
        ties[s] = -_ONE
    for j in range(1, classes):
        for s in range(TILE):
            x = h[j, s]
            largest[s] = x if (x > largest[s] or x != x) else largest[s]
            of_target[s] = x if target[s] == j else of_target[s]
    for j in range(classes):
        for s in range(TILE):
            x = h[j, s] - largest[s]
            loss[s] += exp(x) if x != _ZERO else _ZERO  # the largest apart: what is added to its 1 keeps its digits
            ties[s] += _ONE if x == _ZERO else _ZERO
    for s in range(TILE):
        loss[s] = log1p(loss[s] + ties[s]) + (largest[s] - of_target[s])


@_part
def _sum(values, wide):
    """Add the values of a tile in float64, always in the same order; `wide` is memory."""
    for s in range(TILE):
        wide[s] = values[s]
    half = TILE // 2
    while half:
        for s in range(half):
            wide[s] += wide[s + half]
        half //= 2
    return wide[0]


@_compile(
    "(f4[:,:,:,::1], f4[:,::1], f4[:,::1], i8[::1], i8[::1], f4[::1], i4[:,::1], i8, i8, i8, f8[:,::1], f8[:,::1])"
)
def add_up(responses, c, weights, widths, codes, parameters, targets, n, first, last, losses, right):
    """Sum cross-entropy and right answers over each of the tiles `first` to `last - 1`, at many points.

    Args:
        responses: `[tiles, k + 1, units, TILE]` of the first layer, at the origin and for each direction.
        c: `[m, k]` coordinates.
        weights: `[m, q]` of all further layers, each `[n_out, n_in + 1]` with the bias last, both numbers rounded up
            (to even, to multiples of four) with zeros.
        widths: Units of each layer.
        codes: Activation after each layer.
        parameters: Slope or alpha of each activation.
        targets: `[tiles, TILE]`, of classes.
        n: Samples; those beyond, in the last tile, are left out.
        first: Tile to begin with.
        last: Tile to stop before.
        losses: `[m, tiles]` result.
        right: `[m, tiles]` result.
    """
    _widest_vectors()
    depth, most = len(widths), (np.max(widths) + 4) // 4 * 4
    h, y = np.empty((most, TILE), np.float32), np.empty((most, TILE), np.float32)
    largest, of_target = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    loss, ties, wide = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float64)
    for tile in range(first, last):
        for point in range(len(c)):
            _affine(h, responses[tile], widths[0], c[point])
            at = 0
            for i in range(depth):
                _activate(h, widths[i], codes[i], parameters[i])
                if i < depth - 1:
                    at += _linear(h, widths[i], weights[point, at:], widths[i + 1], y)
                    h, y = y, h
            _cross_entropy(h, widths[depth - 1], targets[tile], largest, of_target, loss, ties)
            for s in range(TILE):
                largest[s] = _ONE if of_target[s] == largest[s] else _ZERO
            for s in range(min(TILE, n - tile * TILE), TILE):
                loss[s] = _ZERO
                largest[s] = _ZERO
            losses[point, tile], right[point, tile] = _sum(loss, wide), _sum(largest, wide)
