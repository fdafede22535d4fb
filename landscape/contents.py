"""What a stored file must hold before anything of it is used.

HDF5 can name other files, refer to objects many times, declare more than it holds, and run filters from plug-ins; JSON
can be of any structure. Files of this package need none of that, nor do those it imports, so all of it is refused.
"""

import errno
import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s, h5t

Array = np.ndarray

Number = (int, float)
"""Pattern of a number, see `check_value`."""
_HEAP = b"GCOL\x01"  # begins a global heap, with the version
_DEEPEST = 100  # levels of nested JSON; ours have fewer than ten
_BLOCK = 2**26  # bytes of text that are read at once
_WORDS = {"f": "floating-point numbers", "i": "whole numbers", "u": "whole numbers", "b": "truth values", "T": "text"}


def check_hdf5(file: h5py.File) -> None:
    """Refuse a file of which reading could reach beyond it, or take more memory than its size.

    Allowed are groups and data sets under one name each, stored within the file, unfiltered and whole, of numbers,
    truth values or text. References in attributes (dimension scales) are never followed.

    Raises:
        ValueError: It holds something else, or its structure is damaged.
        MemoryError, OSError: There is not enough memory to find out.
    """
    try:
        found = _broken_heap(file) or _strange(file)
    except Exception as error:  # h5py turns errors of the library into exceptions of many types
        if _is_short_of_memory(error):
            raise
        raise ValueError(f"{file.filename} is damaged: {_line(error)}") from error
    if found is not None:
        raise ValueError(f"{file.filename}: {found}: refused, it is damaged or was not written by landscape")


def _broken_heap(file: h5py.File) -> str | None:
    """Say what is wrong with the places where HDF5 keeps texts: libhdf5 2.0 reads entries of size 0 for ever."""
    if file.id.get_create_plist().get_sizes() != (8, 8):
        return "its addresses or lengths do not have 8 bytes"
    with open(file.filename, "rb") as plain, mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP)
        while start >= 0:
            place, stop = start + 16, start + int.from_bytes(content[start + 8 : start + 16], "little")
            if stop > len(content):
                return "a text heap ends behind the file"
            while stop - place >= 16:
                index = int.from_bytes(content[place : place + 2], "little")
                size = int.from_bytes(content[place + 8 : place + 16], "little")
                place += 16 + -(-size // 8) * 8 if index else size
                if place > stop or (not index and size < 16):
                    return "a text heap has an entry of no sound size"
            start = content.find(_HEAP, start + 1)
    return None


def _strange(file: h5py.File) -> str | None:
    """Return what must not be in a file; None if there is nothing."""
    size = file.id.get_filesize()
    groups = [(file["/"].id, "")]
    seen, n_bytes = {h5o.get_info(groups[0][0]).addr}, 0
    while groups:
        group, place = groups.pop()
        for name in group:
            path = f"{place}/{name.decode(errors='replace')}"
            if group.links.get_info(name).type != h5l.TYPE_HARD:
                return f"{path} is a link to another place or file"
            item = h5o.open(group, name)
            address = h5o.get_info(item).addr
            if address in seen:
                return f"{path} has a second name"
            seen.add(address)
            if isinstance(item, h5g.GroupID):
                groups.append((item, path))
            elif not isinstance(item, h5d.DatasetID):
                return f"{path} is neither a group nor a data set"
            elif problem := _strange_data(item, size):
                return f"{path} {problem}"
            else:
                n_bytes += _declared(item)
        if n_bytes > size:
            return f"its data sets declare {n_bytes:,} bytes, the file has {size:,}"
    return None


def _strange_data(data: h5d.DatasetID, size: int) -> str | None:
    created = data.get_create_plist()  # first: even the shape of a virtual data set may depend on other files
    layout = created.get_layout()
    if layout == h5d.VIRTUAL or created.get_external_count():
        return "is stored in another file"
    if created.get_nfilters():
        return "is compressed or filtered (`h5repack -f NONE` stores it plainly)"
    kind = data.get_type()
    if kind.get_class() not in (h5t.INTEGER, h5t.FLOAT, h5t.STRING) and not _is_bool(kind):
        return "is neither of numbers, nor of truth values, nor text"
    if data.get_space().get_simple_extent_type() == h5s.NULL:
        return "has no shape"
    declared = _declared(data)
    chunk = int(np.prod(created.get_chunk(), dtype=object)) * kind.get_size() if layout == h5d.CHUNKED else 0
    if declared > min(size, data.get_storage_size()) or chunk > size:
        return f"declares {max(declared, chunk):,} bytes and holds {min(size, data.get_storage_size()):,}"
    return None


def _declared(data: h5d.DatasetID) -> int:
    return int(np.prod(data.get_space().shape, dtype=object)) * int(data.get_type().get_size())


def _is_bool(kind: h5t.TypeID) -> bool:
    return kind.get_class() == h5t.ENUM and kind.dtype == np.bool_


def _is_short_of_memory(error: Exception) -> bool:
    """Whether an error says nothing about the file that was read."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def read_array(group: h5py.Group, name: str, shape: Sequence[int | None] | None, kinds: str = "fiu") -> Array:
    """Read a data set of the shape and type that it must have.

    Args:
        group: Of a file that `check_hdf5` has passed.
        name: The data set.
        shape: One entry per axis, None where any length is right; None for rows of any shape.
        kinds: Types allowed: any of the NumPy kinds `f`, `i`, `u`, `b`, or `T` for text.

    Returns:
        The values in the type they are stored in; text as NumPy strings.

    Raises:
        ValueError: There is no such data set, it is of another shape or type, or it cannot be read.
    """
    data = dataset(group, name, shape, kinds)
    try:
        if h5py.check_string_dtype(data.dtype):
            return _texts(data)
        values = data[()]
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{group.file.filename} is damaged: {name} cannot be read ({_line(error)})") from error
    if values.dtype == np.bool_ and values.size and values.view(np.uint8).max() > 1:
        raise ValueError(f"{group.file.filename} is damaged: {name} holds what is neither true nor false")
    return values


def dataset(group: h5py.Group, name: str, shape: Sequence[int | None] | None, kinds: str = "fiu") -> h5py.Dataset:
    """Return a data set, to be read in parts, of the shape and type that it must have (see `read_array`)."""
    try:
        data = group[name]
        found = data.dtype.kind if isinstance(data, h5py.Dataset) else None
        if found is not None and h5py.check_string_dtype(data.dtype):
            found = "T"
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{group.file.filename} is damaged: there is no {name} ({_line(error)})") from error
    if shape is None:
        shape = [None] * max(1, len(data.shape) if isinstance(data, h5py.Dataset) else 1)
    wanted = f"[{', '.join('any' if n is None else str(n) for n in shape)}]"
    if found is None or found not in kinds:
        words = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds))
        got = "a group" if found is None else _WORDS.get(found, "something else")
        raise ValueError(f"{group.file.filename} is damaged: {name} must be {words} {wanted}, it is {got}")
    if len(data.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, data.shape, strict=True)):
        raise ValueError(f"{group.file.filename} is damaged: {name} has shape {list(data.shape)}, expected {wanted}")
    return data


def read_group(group: h5py.Group, name: str) -> h5py.Group:
    """Return a group within another.

    Raises:
        ValueError: There is no such group.
    """
    found = group.get(name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{group.file.filename} is damaged: there is no group {name}")
    return found


def read_text(group: h5py.Group, name: str) -> str:
    """Read a data set that is one text.

    Raises:
        ValueError: There is no such data set, it is no text, or it cannot be read.
    """
    return str(read_array(group, name, (), "T").item())


def _texts(data: h5py.Dataset) -> Array:
    """Read text, a block at a time: all entries of a hostile file may refer to the same long one."""
    size = data.file.id.get_filesize()  # by the open file: a job may have put a new one in its place
    if data.shape == ():
        return np.array(_decoded(data[()]))
    block, n_bytes, texts = max(1, _BLOCK // size), 0, []
    for start in range(0, len(data), block):
        part = data[start : start + block].ravel()
        n_bytes += sum(map(len, part))
        if n_bytes > size:
            raise ValueError(f"more than {n_bytes:,} bytes of text in a file of {size:,}")
        texts += [_decoded(entry) for entry in part]
    return np.array(texts, dtype=str).reshape(data.shape)


def _decoded(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def has_attribute(group: h5py.Group, name: str) -> bool:
    """Return whether there is an attribute.

    Raises:
        ValueError: The attributes cannot be read.
    """
    try:
        return name in group.attrs
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{group.file.filename} is damaged: its attributes cannot be read ({_line(error)})") from error


def read_attribute(group: h5py.Group, name: str, kind: type) -> Any:
    """Read an attribute of one text (`str`), one whole number (`int`), or a row of texts (`list`).

    Raises:
        ValueError: There is no such attribute, or it is of another type or shape.
    """
    try:
        stored = group.attrs.get_id(name)
        is_text = stored.get_type().get_class() == h5t.STRING
        fits = is_text if kind in (str, list) else stored.get_type().get_class() == h5t.INTEGER
        value = group.attrs[name] if fits and len(stored.shape) == (kind is list) else None
        if value is not None:
            return [_decoded(entry) for entry in value] if kind is list else kind(_decoded(value) if is_text else value)
    except Exception as error:  # h5py turns errors of the library into exceptions of many types
        if _is_short_of_memory(error):
            raise
        raise ValueError(
            f"{group.file.filename} is damaged: attribute {name} cannot be read ({_line(error)})"
        ) from error
    raise ValueError(f"{group.file.filename} is damaged: attribute {name} must be {_described(kind)}")


def check_value(value: Any, pattern: Any, where: str) -> None:
    """Refuse a JSON value of another structure than expected.

    Args:
        value: What was read.
        pattern: A type, or a tuple of types, one of which it must have (a truth value is no number); a list with one
            pattern, that of all entries; a mapping of patterns by key, where further keys are free, keys that end in
            `?` may be missing, and the key `*` is for all others; `object` for anything.
        where: What it is, for errors.

    Raises:
        ValueError: It does not fit; the message names the part that does not. Or it is nested too deeply to be used.

    Example:
        >>> check_value({"names": ["a"], "n": 1}, {"names": [str], "n": int, "note?": str}, "the layout")
    """
    _check_depth(value, where)
    _check(value, pattern, where)


def _check(value: Any, pattern: Any, where: str) -> None:
    if isinstance(pattern, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping, it is {_named(value)}")
        for key, part in pattern.items():
            name = key.removesuffix("?")
            if key == "*":
                for other in value.keys() - pattern.keys():
                    _check(value[other], part, f"{where}, {other}")
            elif name in value:
                _check(value[name], part, f"{where}, {name}")
            elif name == key:
                raise ValueError(f"{where} has no {name}")
    elif isinstance(pattern, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, it is {_named(value)}")
        for i, entry in enumerate(value):
            _check(entry, pattern[0], f"{where}, entry {i}")
    elif pattern is not object:
        kinds = pattern if isinstance(pattern, tuple) else (pattern,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(dict.fromkeys(_described(kind) for kind in kinds))
            raise ValueError(f"{where} must be {expected}, it is {_named(value)}")
        if isinstance(value, int) and abs(value) >= 2**64:
            raise ValueError(f"{where} is a number of {value.bit_length()} bits, larger than any that is stored")


def _check_depth(value: Any, where: str) -> None:
    level, depth = [value], 0
    while level := [
        part
        for whole in level
        if isinstance(whole, dict | list)
        for part in (whole.values() if isinstance(whole, dict) else whole)
        if isinstance(part, dict | list)
    ]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"{where} is nested more than {_DEEPEST} levels deep")


def _named(value: Any) -> str:
    return _described(type(value))


def _described(kind: type) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
    return {**names, list: "a list", type(None): "nothing"}.get(kind, kind.__name__)


def _line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
