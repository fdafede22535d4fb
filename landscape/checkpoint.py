"""One stored network: our own safetensors files, and anybody's state dicts. Nothing is ever unpickled.

A file of ours is plain safetensors, so every other tool reads it. Its metadata hold one JSON text `landscape` (how to
rebuild the network, information about it, the order of the entries), for each tied parameter an entry
`alias: stored name`, as `safetensors.torch.save_model` writes them, and `landscape_sha256`, a digest of all tensors and
of all other metadata, which is checked when the file is read.
"""

import hashlib
import io
import json
import logging
import os
import pickle
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from landscape import __version__
from landscape.arguments import expect
from landscape.contents import check_value
from landscape.storage import FORMAT_VERSION, refuse_newer, replacing

log = logging.getLogger(__name__)

_REMEDY = "save the weights alone with torch.save(model.state_dict(), ...) or as safetensors"
_MOST_WORK = 10**8  # entries of tuples; two seconds to hash, and more than a million tensors have
_EXPANDED = 2**26  # bytes that expanded tensors may have beyond the numbers that are stored
_RECORD = {"format?": int, "name?": (str, type(None)), "arguments?": dict, "info?": dict, "order?": [str]}
_NESTED = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before all names
_DIGEST = "landscape_sha256"
_OPTIONAL = "num_batches_tracked"  # absent from checkpoints older than torch 0.4.1; nothing we compute needs it


@dataclass(frozen=True)
class Checkpoint:
    """A stored network.

    Attributes:
        state: Parameters and buffers by name, on the CPU, in the order of the file. Tied entries share memory.
        name: The network's name for `landscape.models.build`, if known.
        arguments: The other arguments of `landscape.models.build`.
        info: Anything else that JSON can hold.
    """

    state: dict[str, Tensor]
    name: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def save(
    path: str | os.PathLike,
    model: nn.Module,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write the parameters and buffers of a network to a safetensors file, whole or not at all.

    Args:
        path: A path that ends in `.safetensors`. An old file is replaced.
        model: Any module; tied parameters are stored once.
        name: Its name for `landscape.models.build`, so that it can be rebuilt from the file alone.
        arguments: The other arguments of `landscape.models.build`.
        info: Anything else worth keeping that JSON can hold: settings, final loss, seed.

    Raises:
        ValueError: `path` has another suffix.
        TypeError: `arguments` or `info` do not fit into JSON, or the state holds something that is no tensor.

    Example:
        >>> save("runs/a.safetensors", model, info={"epochs": 20})  # doctest: +SKIP
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"a checkpoint is written as .safetensors, got {str(path)!r}: change the suffix")
    tensors = _tensors(model)
    stored = first_names(tensors)
    record = {
        **{"format": FORMAT_VERSION, "version": __version__, "name": name, "arguments": dict(arguments or {})},
        **{"info": dict(info or {}), "order": list(tensors)},
    }
    try:
        text = json.dumps(record)
    except TypeError as error:
        raise TypeError(f"arguments and info of a checkpoint must fit into JSON: {error}") from None
    aliases = {alias: first for alias, first in stored.items() if alias != first}
    # clone: entries may be views of one storage (a fused recurrent layer), which safetensors refuses
    unique = {name: tensors[name].cpu().contiguous().clone() for name in dict.fromkeys(stored.values())}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        metadata = {**aliases, "format": "pt", "landscape": text}
        save_file(unique, temporary, metadata={**metadata, _DIGEST: _digest(unique, metadata)})
        temporary.chmod(mode)  # safetensors leaves 0600, unreadable for the rest of a group


def read(path: str | os.PathLike) -> Checkpoint:
    """Read a stored network without running anything that is in the file.

    Accepts safetensors (ours and anybody's) and what `torch.save` wrote: a state dict, or a dictionary with one under
    `state_dict` (Lightning's `.ckpt`), `model_state_dict` or `model`; its numbers and texts become `info`. The content
    of the file decides, not its suffix.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, damaged, of another type, holds no tensors, or could only be read by unpickling, which
            may run code that is in it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the checkpoint file in it")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}")
    with open(path, "rb") as file:
        head = file.read(9)
    if not head:
        raise ValueError(f"{path} is empty: the program that wrote it was probably stopped")
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _read_safetensors(path)
    # a zip archive, or the bare pickle that torch wrote before version 1.6
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(f"{path} is no checkpoint: expected safetensors or a file written by torch.save")
    return _read_torch(path, mmap=head.startswith(b"PK"))


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a mapping
    except (SafetensorError, OSError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a readable safetensors file (damaged or of another type): {error}") from error
    digest = metadata.pop(_DIGEST, None)
    if digest is not None and digest != _digest(state, metadata):
        raise ValueError(f"{path} is damaged: its checksum does not fit its content; restore it from a copy")
    for alias, first in metadata.items():
        if first in state and alias not in state and alias != "format":
            state[alias] = state[first]
    try:
        record = json.loads(metadata.get("landscape", "{}"))
        check_value(record, _RECORD, "the record")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: its metadata entry 'landscape' is not the JSON that `save` writes: {error}"
        ) from error
    version = record.get("format", 1)
    refuse_newer(path, version, str(record.get("version")))
    if version > 1 and digest is None:
        raise ValueError(f"{path} is damaged: it has lost its checksum; restore it from a copy")
    order = [name for name in record.get("order", ()) if name in state]
    return Checkpoint(
        state={name: state[name] for name in dict.fromkeys([*order, *state])},
        name=record.get("name"),
        arguments=record.get("arguments", {}),
        info=record.get("info", {}),
    )


def _digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of tensors and of metadata, in any order."""
    names = sorted(state)
    head = [sorted(metadata.items()), [[name, str(state[name].dtype), list(state[name].shape)] for name in names]]
    digest = hashlib.sha256(json.dumps(head).encode())
    for name in names:
        digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_torch(path: Path, mmap: bool) -> Checkpoint:
    # mapped, so that an optimizer's state in the file, often twice the network, is never read
    content = load_torch(path, path, mmap)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict: {_REMEDY}")
    try:
        state = _state_dict(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check_size(state, path)
    copies: dict[str, Tensor] = {}
    for name, first in first_names(state).items():
        # copied, so that nothing depends on the mapped file any more
        copies[name] = copies[first] if first in copies else state[name].detach().clone()
    info = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, str | int | float)
    }
    return Checkpoint(copies, info=info)


def load_torch(source: str | os.PathLike | IO[bytes], name: object, mmap: bool = False) -> Any:
    """Read what `torch.save` wrote without running anything that is in it.

    Args:
        source: A path, or an open file.
        name: What it is called in errors.
        mmap: Whether tensors stay in the file until they are used.

    Raises:
        ValueError: It is damaged, holds more than tensors, numbers and text, or unpacks to more than its size.
    """
    try:
        if zipfile.is_zipfile(source):
            _check_zip(source)
        elif isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                _check_pickles(file)
        else:
            _check_pickles(source)
        if not isinstance(source, str | os.PathLike):
            source.seek(0)
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError) or "TorchScript" in text:
            raise ValueError(
                f"{name} holds more than tensors, numbers and text (or is damaged), and reading it could run code "
                f"that is in it: {_REMEDY}"
            ) from error
        raise ValueError(f"{name} is damaged or incomplete: {text[:300]}") from error


def _check_zip(source: str | os.PathLike | IO[bytes]) -> None:
    """Refuse an archive that is compressed, as `torch.save` makes none: a small one could unpack to any size."""
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        assert archive.fp is not None
        size = archive.fp.seek(0, os.SEEK_END)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is a compressed archive, which torch.save does not write")
    if (unpacked := sum(entry.file_size for entry in entries)) > size:
        raise ValueError(f"its parts have {unpacked:,} bytes, more than the file, {size:,}")
    with zipfile.ZipFile(source) as archive:
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                _check_tuples(io.BytesIO(archive.read(entry)))


def _check_pickles(file: IO[bytes]) -> None:
    """Check the pickles that begin what torch wrote before version 1.6: three of its own, the content, the keys."""
    file.seek(0)
    for _ in range(5):
        _check_tuples(file)


def _check_tuples(file: IO[bytes]) -> None:
    """Refuse a pickle of tuples that hold the same tuple over and over.

    A tuple of two times the same tuple of two times ... is small to store, but as a key of a dictionary, which is what
    an unpickler makes of it at once, its hash takes time that doubles with each level.
    """
    stack: list[int | None] = []  # sizes of what an unpickler would hold there: 1 but for tuples; None for a mark
    memo: dict[int, int] = {}
    work = 0
    for code, given, _ in pickletools.genops(file):
        argument: Any = given
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if code.name == "MEMOIZE" else int(argument)] = stack[-1] or 1
            continue
        if code.name in ("GET", "BINGET", "LONG_BINGET"):
            made: list[int | None] = [memo[int(argument)]]
        else:
            taken: list[int | None] = []
            for kind in reversed(code.stack_before):
                if kind is pickletools.stackslice:
                    while stack[-1] is not None:
                        taken.append(stack.pop())
                else:
                    taken.append(stack.pop())
            size = 1 + sum(part or 0 for part in taken) if "TUPLE" in code.name else 1
            made = [None if kind is pickletools.markobject else size for kind in code.stack_after]
        stack += made
        work += sum(part or 0 for part in made)
        if work > _MOST_WORK:
            raise ValueError("it holds tuples of the same tuples over and over, made to take for ever")


def _check_size(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are no plain arrays, or that are larger than the file by views of few numbers."""
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
            raise ValueError(f"{path}: {name!r} is sparse, quantized, nested or without values; only arrays are read")
    size = path.stat().st_size
    unique = {id(state[first]): state[first] for first in first_names(state).values()}
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in unique.values())
    if n_bytes > size + _EXPANDED:
        raise ValueError(
            f"{path} has {size:,} bytes but declares tensors of {n_bytes:,}: it is damaged or made to harm"
        )


def _state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the state dict in what a user stored; entries that are no tensors are left out."""
    nested = [content[key] for key in _NESTED if isinstance(content.get(key), Mapping)]
    entries = (nested or [content])[0].items()
    state = {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(repr(key[:80]) for key in list(content)[:5] if isinstance(key, str)) or "nothing named"
        raise ValueError(f"no tensors found; it holds {keys}. Pass the part that is the state dict, or {_REMEDY}")
    return state


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, tied ones under each of their names."""
    tensors = {}
    for name, value in model.state_dict().items():
        if nn.parameter.is_lazy(value):
            raise TypeError(f"{name!r} is not initialized yet: call the model once on a batch first")
        if not isinstance(value, Tensor):
            raise TypeError(f"state entry {name!r} is a {type(value).__name__}; only tensors can be stored")
        if value.is_meta:
            raise TypeError(f"{name!r} is on the meta device and has no values: build the network on a real one")
        tensors[name] = value.detach()
    return tensors


def first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each name to the first name of the same memory: itself, unless the tensor is tied to an earlier one."""
    first: dict[tuple, str] = {}
    names = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        names[name] = first.setdefault(key, name) if tensor.numel() else name
    return names


def match_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    tied: Iterable[Sequence[str]] = (),
) -> dict[str, Tensor]:
    """Find the entries of a network in a state dict whose names may carry a prefix.

    Prefixes come from DataParallel (`module.`), `torch.compile` (`_orig_mod.`), or a Lightning module that holds the
    network (`model.`, `net.`, any other). The one prefix is taken under which every name is found; entries outside of
    it, such as the weights of a loss, are left out. Counters `num_batches_tracked` may be missing.

    Args:
        state: Tensors by name.
        expected: Shapes by the names that the network has.
        tied: Groups of names that are one tensor in the network; one of each group is enough.

    Returns:
        Tensors by the network's names, not copied.

    Raises:
        ValueError: Entries are missing, misshapen, superfluous, contradict a tie, or two prefixes fit.
    """
    for entry, value in state.items():
        expect(f"state entry {entry!r}", value, Tensor, "a tensor")
    wrapper = ""
    while added := [w for w in _WRAPPERS if expected and all(n.startswith(wrapper + w) for n in expected)]:
        wrapper += added[0]
    shapes = {name.removeprefix(wrapper): tuple(shape) for name, shape in expected.items()}
    groups = [tuple(name.removeprefix(wrapper) for name in group) for group in tied]
    aliases = {name: group for group in groups for name in group}

    def find(prefix: str, name: str) -> Tensor | None:
        found = (state.get(prefix + other) for other in (name, *aliases.get(name, ())))
        return next((tensor for tensor in found if tensor is not None), None)

    def missing(prefix: str) -> list[str]:
        return [prefix + n for n in shapes if find(prefix, n) is None and not n.endswith(_OPTIONAL)]

    def misshapen(prefix: str) -> list[str]:
        return [
            f"{prefix}{name} {tuple(tensor.shape)} for {shape}"
            for name, shape in shapes.items()
            if (tensor := find(prefix, name)) is not None and tuple(tensor.shape) != shape
        ]

    def superfluous(prefix: str) -> list[str]:
        return [n for n in state if n.startswith(prefix) and n.removeprefix(prefix) not in shapes]

    def refuse(prefix: str) -> ValueError:
        problems = {
            "missing": missing(prefix),
            "of another shape": misshapen(prefix),
            "not in the network": superfluous(prefix),
        }
        return ValueError(
            f"the checkpoint does not fit the network; {_listing(problems)}. "
            "Build the network as it was trained, or pass only the entries that belong to it"
        )

    hits = Counter({"": 0})
    for key in state:
        ends = [0, *(match.end() for match in re.finditer(r"\.", key))]
        hits.update(key[:end] for end in ends if key[end:] in shapes)
    named = [prefix for prefix in hits if not missing(prefix)]
    if not named:
        raise refuse(max(hits, key=hits.__getitem__))
    # The bare names win: beside them, an averaged copy under its own prefix is superfluous, not a candidate.
    candidates = [""] if "" in named else named
    fitting = [prefix for prefix in candidates if not misshapen(prefix) and not superfluous(prefix)]
    if not fitting:
        raise refuse(candidates[0])
    if len(fitting) > 1:
        raise ValueError(
            f"the network is in the checkpoint more than once, under {', '.join(map(repr, fitting))}: "
            "pass the entries of one of them"
        )
    prefix = fitting[0]
    for group in groups:
        given = [prefix + name for name in group if prefix + name in state]
        for name in given[1:]:
            if not _same(state[given[0]], state[name]):
                raise ValueError(
                    f"{given[0]} and {name} are one tensor in the network but differ in the checkpoint: "
                    "build the network without tying them"
                )
    if n_left := sum(not name.startswith(prefix) for name in state):
        log.info("took the entries under %r, left out %d others", prefix, n_left)
    return {wrapper + n: tensor for n in shapes if (tensor := find(prefix, n)) is not None}


def _listing(problems: Mapping[str, Sequence[str]]) -> str:
    """Name up to five of each kind."""
    texts = []
    for kind, names in problems.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        texts += [f"{kind}: {', '.join(names[:5])}{more}"] if names else []
    return "; ".join(texts)


def _same(a: Tensor, b: Tensor) -> bool:
    """Compare values of any two types; NaN equals NaN."""
    return a is b or bool(((a == b) | ((a != a) & (b != b))).all())


def load_state(model: nn.Module, source: str | os.PathLike | Checkpoint | Mapping[str, Any]) -> None:
    """Fill the parameters and buffers of a network from a checkpoint. All of them, or none if something does not fit.

    Args:
        model: The network, changed in place; it keeps its device and dtypes.
        source: A file that `read` accepts, a `Checkpoint`, or a state dict.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or does not fit the network (see `read` and `match_state`).

    Example:
        >>> load_state(model, "epoch_20.pt")  # doctest: +SKIP
    """
    if isinstance(source, str | os.PathLike):
        source = read(source)
    state = source.state if isinstance(source, Checkpoint) else _state_dict(source)
    matched = state_for(model, state)
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            if name in matched:
                tensor.copy_(matched[name])


def state_for(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of `state` under the names of `model`'s own state dict (see `match_state`)."""
    tensors = _tensors(model)
    groups: dict[str, list[str]] = {}
    for name, first in first_names(tensors).items():
        groups.setdefault(first, []).append(name)
    tied = [group for group in groups.values() if len(group) > 1]
    return match_state(state, {name: tensor.shape for name, tensor in tensors.items()}, tied)
