"""Checks of what a caller passes, with errors that say what was expected and what came."""

import json
import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any

LARGEST_SEED = 2**63 - 1
"""What torch's generators take."""
_LONGEST_NAME = 180  # bytes; systems take 255, and names of temporary files are longer than that of the file


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an argument as an int of at least `least` and at most `most`.

    Raises:
        ValueError: It is not one; the message names it.
    """
    number = None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if number is None or number < least or (most is not None and number > most):
        expected = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {expected}, got {value!r}")
    return number


def real_number(name: str, value: Any, least: float = -math.inf, above: float = -math.inf) -> float:
    """Return an argument as a finite float that is at least `least`, and larger than `above`.

    Raises:
        ValueError: It is not one; the message names it.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not math.isfinite(number) or number < least or number <= above:
        bound = f", {least:g} or more" if least > above else f", above {above:g}" if above > -math.inf else ""
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
    return number


def expect(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Refuse an argument of another type.

    Args:
        name: Of the argument.
        value: What was passed.
        kind: The type, or types, that it may have.
        what: That type in words, and how to get one.

    Raises:
        TypeError: It has another type; the message names it.
    """
    if not isinstance(value, kind):
        came = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} must be {what}, got {came}")


def file_path(value: str | os.PathLike) -> Path:
    """Return the path of a file to write; of a link the file that it stands for, which is what is locked and replaced.

    Raises:
        TypeError: It is no path.
        IsADirectoryError, NotADirectoryError: It is an existing folder, or lies below an existing file.
        ValueError: It is empty or cannot be the name of a file.
    """
    expect("path", value, (str, os.PathLike), "the path of a file")
    text = os.fspath(value)
    if not text or "\0" in text:
        raise ValueError(f"path must be the name of a file, got {text!r}")
    path = Path(text)
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ValueError(
            f"the name of a file may have {_LONGEST_NAME} bytes, got {len(os.fsencode(path.name))}: {path.name!r}"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder: give the name of a file in it")
    path = _below_folders(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def folder_path(value: str | os.PathLike) -> Path:
    """Return the path of a folder to write to; it need not exist.

    Raises:
        TypeError: It is no path.
        NotADirectoryError: It is, or lies below, an existing file.
        ValueError: It is empty or cannot be the name of a folder.
    """
    expect("folder", value, (str, os.PathLike), "the path of a folder")
    text = os.fspath(value)
    if not text or "\0" in text:
        raise ValueError(f"folder must be the name of a folder, got {text!r}")
    path = Path(text)
    _below_folders(path / "file")
    return path


def _below_folders(path: Path) -> Path:
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise NotADirectoryError(f"{str(parent)!r} is a file: nothing can be written below it")
            break
    return path


def json_text(name: str, value: Any) -> str:
    """Return what is kept with a result as JSON text.

    Raises:
        TypeError: It holds something else than texts, numbers, lists and mappings by name.
    """
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must fit into JSON (texts, numbers, lists, mappings by name): {error}") from None
