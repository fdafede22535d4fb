"""Checks of what the user asked for, with errors that name the valid choices."""

import difflib
import operator
from collections.abc import Iterable, Sequence


def closest(name: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the option most like `name`, or nothing when none is alike."""
    found = difflib.get_close_matches(str(name), list(options), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def one_of(what: str, value: str, options: Sequence[str]) -> str:
    """Return `value` if it is one of `options`.

    Raises:
        ValueError: it is not; the message lists the options.
    """
    if value not in options:
        raise ValueError(f"{what} must be one of {', '.join(options)}; got {value!r}{closest(value, options)}")
    return value


def whole(what: str, value: int, least: int = 1) -> int:
    """Return `value` as an int that is at least `least`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{what} must be at least {least}, got {number}")
    return number


def shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return `input_shape` as a tuple of positive integers.

    Raises:
        TypeError: it is no sequence of integers.
        ValueError: it is empty or a size is below 1.
    """
    if isinstance(input_shape, str) or not isinstance(input_shape, Iterable):
        raise TypeError(f"input_shape must be a sequence such as (1, 28, 28) or (2,), got {input_shape!r}")
    sizes = tuple(whole("each size in input_shape", size) for size in input_shape)
    if not sizes:
        raise ValueError("input_shape must hold at least one size, got none")
    return sizes


def image(input_shape: Sequence[int], least: int = 1) -> tuple[int, int, int]:
    """Return `input_shape` as `(channels, height, width)`.

    Raises:
        TypeError: it is no sequence of integers.
        ValueError: it is not three sizes, or the image is under `least` pixels high or wide.
    """
    sizes = shape(input_shape)
    if len(sizes) != 3:
        raise ValueError(f"input_shape must be (channels, height, width), got {sizes}")
    channels, height, width = sizes
    if min(height, width) < least:
        raise ValueError(f"this network needs images of at least {least} x {least} pixels, got {height} x {width}")
    return channels, height, width
