import gzip
import hashlib
import io
import logging
import os
import pickle
import struct
import tarfile
from collections import UserDict, namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from landscape.data import Dataset, batch_size, collect, load, names, split_batch

REAL = os.environ.get("LANDSCAPE_DATA")
PIXELS = 3072


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no data folder, no network."""
    folder = tmp_path / "cache"
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)

    def no_network(url, *args, **kwargs):
        raise ConnectionError(f"no network for {url}")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", lambda self, url, *args, **kwargs: no_network(url))
    return folder


# --- files of the right format, written here independently of the reader ---


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_mnist(folder: Path, n=5, prefix="train", images="images-idx3-ubyte", labels="labels-idx1-ubyte", zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    x, y = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)
    for name, array in ((images, x), (labels, y)):
        content = gzip.compress(idx(array)) if zipped else idx(array)
        (folder / f"{prefix}-{name}{'.gz' if zipped else ''}").write_bytes(content)
    return x, y


def cifar_arrays(n=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)


def cifar_binary(x, y) -> bytes:
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(x, y, strict=True))


def cifar_python2_pickle(x, y, by_columns=False) -> bytes:
    """The instructions that Python 2 wrote into the official files (protocol 2)."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    rows = x.reshape(-1, PIXELS)
    raw = rows.tobytes(order="F" if by_columns else "C")
    dtype = (
        b"cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
        b"(K\x01M" + struct.pack("<H", len(x)) + b"M\x00\x0c\x86" + dtype + (b"\x88" if by_columns else b"\x89")
        + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    labels = b"]q\x05(" + b"".join(b"K" + bytes([label]) for label in y) + b"e"
    filenames = b"](" + b"".join(short(f"image_{i}.png".encode()) for i in range(len(x))) + b"e"
    return (
        b"\x80\x02}q\x01(" + short(b"batch_label") + short(b"training batch 1 of 5") + short(b"labels") + labels
        + short(b"data") + array + short(b"filenames") + filenames + b"u."
    )  # fmt: skip


def as_pixels(inputs, mean, std):
    mean, std = (np.array(v).reshape(1, -1, 1, 1) for v in (mean, std))
    return np.rint((inputs.double().numpy() * std + mean) * 255).astype(np.uint8)


mnist_pixels = partial(as_pixels, mean=[0.1307], std=[0.3081])
cifar_pixels = partial(as_pixels, mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616])


# --- named data sets ---


def test_digits_are_scikit_learns_and_stratified():
    from sklearn.datasets import load_digits

    train, test = load("digits"), load("digits", "test")
    assert train.inputs.shape == (1437, 1, 8, 8)
    assert test.inputs.shape == (360, 1, 8, 8)
    assert train.inputs.dtype == torch.float32
    assert train.targets.dtype == torch.int64
    counts = torch.bincount(test.targets, minlength=10) / torch.bincount(train.targets, minlength=10)
    assert counts.sub(360 / 1437).abs().max() < 0.01
    assert abs(train.inputs.mean()) < 1e-3
    assert abs(train.inputs.std() - 1) < 1e-3
    # together they are the original images, each once
    rows = torch.cat([train.inputs, test.inputs]).mul(0.3761).add(0.3054).mul(16).round().flatten(1)
    labels = torch.cat([train.targets, test.targets])
    both = sorted(map(tuple, torch.column_stack([rows, labels]).int().tolist()))
    original = load_digits()
    assert both == sorted(map(tuple, np.column_stack([original.data, original.target]).astype(int).tolist()))


def test_digits_split_is_the_same_everywhere():
    labels = load("digits", "test").targets.numpy().astype(np.uint8).tobytes()
    assert hashlib.sha256(labels).hexdigest()[:16] == "da1a2ec12e5c2ed7"


def test_moons_and_xor():
    train, test = load("moons"), load("moons", "test")
    assert train.inputs.shape == test.inputs.shape == (1000, 2)
    assert not torch.equal(train.inputs, test.inputs)
    assert torch.bincount(train.targets).tolist() == [500, 500]
    upper = train.inputs[train.targets == 0]  # the half circle around the origin, with noise of 0.1
    assert abs(upper.norm(dim=1).std() - 0.1) < 0.01
    xor = load("xor")
    assert [(int(a) ^ int(b)) for a, b in xor.inputs.tolist()] == xor.targets.tolist()
    assert xor.fingerprint == load("xor", "test").fingerprint


@pytest.mark.parametrize("name", ["digits", "moons", "xor"])
def test_same_call_same_samples(name):
    data = load(name)
    assert data.fingerprint == load(name).fingerprint
    first = load(name, limit=3)
    assert len(first) == 3
    assert torch.equal(first.inputs, data.inputs[:3])
    assert torch.equal(first.targets, data.targets[:3])
    assert first.fingerprint != data.fingerprint
    assert data.classes == data.targets.max() + 1


def test_names_can_be_loaded_or_are_known():
    assert names() == ("digits", "moons", "xor", "mnist", "cifar10")


def test_fingerprint_depends_on_everything():
    x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])
    variants = [(x, y), (x + 1, y), (x, y + 1), (x.reshape(2, 3), y), (x.double(), y), (x.int(), y)]
    prints = {Dataset("a", "train", x, y, 2).fingerprint for x, y in variants if len(x) == len(y)}
    assert len(prints) == 5
    assert Dataset("b", "test", x, y, 9).fingerprint == Dataset("a", "train", x, y, 2).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "minst"}, "choose one of digits"),
        ({"name": "digits", "split": "valid"}, "'train' or 'test'"),
        ({"name": "digits", "limit": 0}, "1 or more"),
        ({"name": "digits", "limit": 2.5}, "1 or more"),
    ],
)
def test_load_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)


# --- MNIST and CIFAR-10 in folders ---


@pytest.mark.parametrize("sub", ["mnist", "MNIST/raw", "."])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_mnist_layouts(tmp_path, sub, zipped, dot):
    kinds = ("images.idx3-ubyte", "labels.idx1-ubyte") if dot else ("images-idx3-ubyte", "labels-idx1-ubyte")
    x, y = make_mnist(tmp_path / "data" / sub, 5, "train", *kinds, zipped=zipped)
    make_mnist(tmp_path / "data" / sub, 3, "t10k", *kinds, zipped=zipped)
    data = load("mnist", folder=tmp_path / "data", download=False)
    assert data.inputs.shape == (5, 1, 28, 28)
    assert np.array_equal(mnist_pixels(data.inputs)[:, 0], x)
    assert data.targets.tolist() == y.tolist()
    assert len(load("mnist", "test", folder=tmp_path / "data")) == 3
    assert len(load("mnist", "train", folder=tmp_path / "data", limit=2)) == 2


def test_standardization_is_the_published_one(tmp_path):
    x, y = cifar_arrays()
    (tmp_path / "test_batch.bin").write_bytes(cifar_binary(x, y))
    data = load("cifar10", "test", folder=tmp_path)
    for channel, (mean, std) in enumerate([(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]):
        expected = (x[:, channel] / 255.0 - mean) / std
        assert np.abs(data.inputs[:, channel].numpy() - expected).max() < 1e-6


def test_places_are_searched_in_order(tmp_path, monkeypatch, cache):
    make_mnist(cache / "mnist", 2)
    assert len(load("mnist")) == 2
    make_mnist(tmp_path / "named", 3)
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path / "named"))
    assert len(load("mnist")) == 3
    make_mnist(tmp_path / "given", 4)
    assert len(load("mnist", folder=tmp_path / "given")) == 4
    (tmp_path / "empty").mkdir()
    assert len(load("mnist", folder=tmp_path / "empty")) == 3


def test_missing_folders_are_errors(tmp_path, monkeypatch, cache):
    make_mnist(cache, 2)
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"LANDSCAPE_DATA names .*nowhere"):
        load("mnist")
    monkeypatch.delenv("LANDSCAPE_DATA")
    with pytest.raises(FileNotFoundError, match=r"folder.* names .*elsewhere"):
        load("mnist", folder=tmp_path / "elsewhere")
    assert len(load("mnist")) == 2


@pytest.mark.parametrize("sub", ["cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_cifar10_binary_layouts(tmp_path, sub, zipped, caplog):
    folder = tmp_path / sub
    folder.mkdir(parents=True, exist_ok=True)
    parts = [cifar_arrays(n, seed=n) for n in (3, 4, 2)]
    for i, part in zip((1, 3, 4), parts, strict=True):  # only some batches are there
        content = cifar_binary(*part)
        (folder / f"data_batch_{i}.bin{'.gz' if zipped else ''}").write_bytes(
            gzip.compress(content) if zipped else content
        )
    with caplog.at_level(logging.INFO):
        data = load("cifar10", folder=tmp_path)
    assert "3 of the 5" in caplog.text
    assert np.array_equal(cifar_pixels(data.inputs), np.concatenate([x for x, _ in parts]))
    assert data.targets.tolist() == np.concatenate([y for _, y in parts]).tolist()
    (folder / f"data_batch_4.bin{'.gz' if zipped else ''}").write_bytes(b"damaged")
    assert load("cifar10", folder=tmp_path, limit=5).targets.tolist() == data.targets[:5].tolist()


@pytest.mark.parametrize("sub", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "."])
@pytest.mark.parametrize("by_columns", [False, True])
def test_cifar10_official_pickles(tmp_path, sub, by_columns):
    folder = tmp_path / sub
    folder.mkdir(parents=True, exist_ok=True)
    parts = [cifar_arrays(3, seed=i) for i in range(5)]
    for i, part in enumerate(parts, 1):
        content = cifar_python2_pickle(*part, by_columns)
        real = pickle.loads(content, encoding="bytes")  # the fixture is what Python itself reads so
        assert np.array_equal(real[b"data"], part[0].reshape(3, PIXELS))
        assert real[b"labels"] == part[1].tolist()
        (folder / f"data_batch_{i}").write_bytes(content)
    data = load("cifar10", folder=tmp_path)
    assert np.array_equal(cifar_pixels(data.inputs), np.concatenate([x for x, _ in parts]))
    assert data.targets.tolist() == np.concatenate([y for _, y in parts]).tolist()


@pytest.mark.parametrize(("protocol", "key"), [(2, "text"), (3, "text"), (3, "bytes"), (4, "text"), (4, "bytes")])
def test_cifar10_pickles_of_python_3(tmp_path, protocol, key):
    x, y = cifar_arrays(1200)  # more labels than one APPENDS takes
    long = "x" * 64500  # protocol 4 starts a new frame after 65536 bytes: within the labels
    content = {"batch_label": long, "labels": y.tolist(), "data": x.reshape(-1, PIXELS)}
    content |= {"filenames": ["a.png"] * 1200, "last": [1, 2, 3]}
    if key == "bytes":
        content = {name.encode(): value for name, value in content.items()}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol))
    data = load("cifar10", "test", folder=tmp_path)
    assert np.array_equal(cifar_pixels(data.inputs), x)
    assert data.targets.tolist() == y.tolist()


def test_a_pickle_is_not_carried_out(tmp_path):
    flag = tmp_path / "ran"
    x, y = cifar_arrays()
    bomb = b"cos\nmkdir\n(U" + bytes([len(str(flag))]) + str(flag).encode() + b"tR0"
    content = cifar_python2_pickle(x, y)
    content = content[:2] + bomb + content[2:]
    (tmp_path / "test_batch").write_bytes(content)
    assert len(load("cifar10", "test", folder=tmp_path)) == 4
    assert not flag.exists()
    pickle.loads(content, encoding="bytes")
    assert flag.exists()  # it would have done it


def damaged(tmp_path: Path, case: str) -> tuple[str, str]:
    """Write a damaged file; return the data set and what the error should say."""
    make_mnist(tmp_path / "mnist", 5)
    images, labels = (tmp_path / "mnist" / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    x, y = cifar_arrays()
    batch = tmp_path / "cifar10" / "data_batch_1.bin"
    batch.parent.mkdir()
    match case:
        case "idx truncated":
            images.write_bytes(images.read_bytes()[:-1])
            return "mnist", "5x28x28 bytes, but 3919 follow"
        case "idx too long":
            images.write_bytes(images.read_bytes() + b"0")
            return "mnist", "5x28x28 bytes, but 3921 follow"
        case "idx header cut":
            images.write_bytes(images.read_bytes()[:9])
            return "mnist", "expected an IDX file"
        case "idx empty":
            images.write_bytes(b"")
            return "mnist", "got 0 bytes"
        case "idx labels for images":
            images.write_bytes(labels.read_bytes())
            return "mnist", "in 3 dimensions, which starts with 00000803"
        case "idx other size":
            images.write_bytes(idx(np.zeros((5, 8, 8), np.uint8)))
            return "mnist", "28x28"
        case "idx counts differ":
            labels.write_bytes(idx(np.zeros(4, np.uint8)))
            return "mnist", "5 images, but .* has 4 labels"
        case "idx label":
            labels.write_bytes(idx(np.array([0, 1, 11, 2, 3], np.uint8)))
            return "mnist", "0 to 11"
        case "idx no samples":
            images.write_bytes(idx(np.zeros((0, 28, 28), np.uint8)))
            labels.write_bytes(idx(np.zeros(0, np.uint8)))
            return "mnist", "no samples"
        case "gzip truncated":
            images.write_bytes(gzip.compress(images.read_bytes())[:-20])
            return "mnist", "truncated or damaged gzip"
        case "gzip damaged":
            content = bytearray(gzip.compress(images.read_bytes()))
            content[-5] ^= 255
            images.write_bytes(content)
            return "mnist", "truncated or damaged gzip"
        case "cifar truncated":
            batch.write_bytes(cifar_binary(x, y)[:-1])
            return "cifar10", "records of 3073 bytes, got 12291"
        case "cifar empty":
            batch.write_bytes(b"")
            return "cifar10", "no samples"
        case "cifar label":
            batch.write_bytes(cifar_binary(x, y + 10))
            return "cifar10", "labels are 0 to 9"
        case "pickle truncated":
            batch.with_suffix("").write_bytes(cifar_python2_pickle(x, y)[:5000])
            return "cifar10", "not a batch of CIFAR-10"
        case "pickle counts differ":
            batch.with_suffix("").write_bytes(cifar_python2_pickle(x, y[:3]))
            return "cifar10", r"arrays of \[4\] images and 3 labels"
        case "pickle label":
            batch.with_suffix("").write_bytes(cifar_python2_pickle(x, y + 10))
            return "cifar10", "labels are 0 to 9"
        case "pickle of something else":
            batch.with_suffix("").write_bytes(pickle.dumps({"fine_labels": [1, 2]}, 2))
            return "cifar10", r"arrays of \[\] images"
        case "pickle of a newer protocol":
            batch.with_suffix("").write_bytes(pickle.dumps({"labels": y.tolist()}, 5))
            return "cifar10", "protocol 5"
        case "not a pickle":
            batch.with_suffix("").write_bytes(b"hello")
            return "cifar10", "not a batch of CIFAR-10"
        case "archive truncated":
            (tmp_path / "cifar-10-binary.tar.gz").write_bytes(archive()[:3000])
            return "cifar10", "truncated or damaged"
        case "archive without a batch":
            (tmp_path / "cifar-10-binary.tar.gz").write_bytes(archive(range(1, 5)))
            return "cifar10", "has no data_batch_5.bin"
    raise NotImplementedError(case)


CASES = """idx truncated, idx too long, idx header cut, idx empty, idx labels for images, idx other size,
idx counts differ, idx label, idx no samples, gzip truncated, gzip damaged, cifar truncated, cifar empty, cifar label,
pickle truncated, pickle counts differ, pickle label, pickle of something else, pickle of a newer protocol,
not a pickle, archive truncated, archive without a batch"""


@pytest.mark.parametrize("case", CASES.replace("\n", " ").split(", "))
def test_damaged_files_are_named(tmp_path, case):
    name, message = damaged(tmp_path, case)
    with pytest.raises(ValueError, match=message) as caught:
        load(name, folder=tmp_path, download=False)
    assert str(tmp_path) in str(caught.value)


def test_half_of_mnist_is_an_error(tmp_path):
    make_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="add the other"):
        load("mnist", folder=tmp_path)


# --- download ---


def archive(batches=range(1, 6)) -> bytes:
    """A small cifar-10-binary.tar.gz, its members in another order than the batches."""
    files = [("test_batch.bin", cifar_arrays(2, seed=99)), ("readme.html", None)]
    files += [(f"data_batch_{i}.bin", cifar_arrays(2, seed=i)) for i in reversed(batches)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, arrays in files:
            content = cifar_binary(*arrays) if arrays else b"<html>"
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def serve(monkeypatch, contents: dict[str, bytes]) -> list[str]:
    """Let pooch download from memory; return the list of addresses it asked for."""
    asked: list[str] = []

    def download(self, url, output_file, pooch):
        asked.append(url)
        Path(output_file).write_bytes(contents[url.rsplit("/", 1)[1]])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    return asked


def test_mnist_is_downloaded_once(tmp_path, monkeypatch, cache):
    x, _ = make_mnist(tmp_path / "server", 6, zipped=True)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "server").iterdir()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr("landscape.data.files._MNIST_MD5", md5)
    asked = serve(monkeypatch, contents)
    data = load("mnist")
    assert np.array_equal(mnist_pixels(data.inputs)[:, 0], x)
    assert all(url.startswith("https://ossci-datasets.s3.amazonaws.com/mnist/") for url in asked)
    assert len(asked) == 2
    assert load("mnist", download=False).fingerprint == data.fingerprint
    assert len(asked) == 2
    assert {path.name for path in (cache / "mnist").iterdir()} == set(contents)


def test_cifar10_is_downloaded_once(monkeypatch, cache):
    content = archive()
    monkeypatch.setattr("landscape.data.files._CIFAR10_MD5", hashlib.md5(content).hexdigest())
    asked = serve(monkeypatch, {"cifar-10-binary.tar.gz": content})
    data = load("cifar10")
    parts = [cifar_arrays(2, seed=i) for i in range(1, 6)]
    assert np.array_equal(cifar_pixels(data.inputs), np.concatenate([x for x, _ in parts]))
    assert load("cifar10", "test").targets.tolist() == cifar_arrays(2, seed=99)[1].tolist()
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_network_the_remedy_is_named(tmp_path, monkeypatch, cache, name):
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Set LANDSCAPE_DATA to a folder that holds") as caught:
        load(name)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert str(cache) in message
    assert "ConnectionError: no network for https://" in message
    assert {"mnist": "train-images-idx3-ubyte.gz", "cifar10": "data_batch_1.bin"}[name] in message
    with pytest.raises(FileNotFoundError, match="downloading is switched off"):
        load(name, download=False)


def test_a_wrong_checksum_is_not_used(monkeypatch, cache):
    serve(monkeypatch, {"cifar-10-binary.tar.gz": archive()})
    with pytest.raises(FileNotFoundError, match="does not match the known hash"):
        load("cifar10")
    assert not (cache / "cifar-10-binary.tar.gz").exists()


def test_addresses_are_encrypted():
    from landscape.data import files

    assert files._MNIST_URL.startswith("https://")
    assert files._CIFAR10_URL.startswith("https://")


# --- the real files ---


def real(name, split):
    if REAL is None:
        pytest.skip("LANDSCAPE_DATA is not set: no real files")
    try:
        return load(name, split, folder=REAL, download=False)
    except FileNotFoundError as error:
        pytest.skip(f"LANDSCAPE_DATA: {error}")


@pytest.mark.parametrize(
    ("split", "n", "images_md5", "labels_md5"),
    [
        ("train", 60000, "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
        ("test", 10000, "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    ],
)
def test_real_mnist(split, n, images_md5, labels_md5):
    data = real("mnist", split)
    images = np.concatenate([mnist_pixels(part)[:, 0] for part in data.inputs.split(5000)])
    assert hashlib.md5(idx(images)).hexdigest() == images_md5
    assert hashlib.md5(idx(data.targets.numpy().astype(np.uint8))).hexdigest() == labels_md5
    assert len(data) == n


def test_real_cifar10():
    data = real("cifar10", "test")
    assert data.inputs.shape == (10000, 3, 32, 32)
    assert torch.bincount(data.targets).tolist() == [1000] * 10
    # standardized by the training set's constants, so nearly standard on the test set
    assert data.inputs.mean((0, 2, 3)).abs().max() < 0.02
    assert data.inputs.std((0, 2, 3)).sub(1).abs().max() < 0.02


# --- collect: what data may be ---

X = torch.arange(60.0).reshape(20, 3)
Y = torch.arange(20) % 4


class Sized(TorchDataset):
    def __init__(self, transform=lambda x: x):
        self.transform = transform

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.transform(X[i]), Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Again:
    """A source that can be iterated again: `make(k)` gives the batches of the k-th pass."""

    def __init__(self, make):
        self.make, self.passes = make, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.make(self.passes))


def pairs(size=6, order=slice(None)):
    return list(zip(X[order].split(size), Y[order].split(size), strict=True))


SOURCES = {
    "Dataset": lambda: Dataset("toy", "train", X, Y, 4),
    "pair": lambda: (X, Y),
    "list of two": lambda: [X, Y],
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "list of batches": pairs,
    "list of one batch": lambda: [(X, Y)],
    "list batches": lambda: [list(pair) for pair in pairs()],
    "iterator": lambda: iter(pairs()),
    "generator": lambda: (pair for pair in pairs(7)),
    "re-iterable": lambda: Again(lambda k: pairs()),
    "TensorDataset": lambda: TensorDataset(X, Y),
    "torch Dataset": lambda: Sized(),
    "IterableDataset": lambda: Stream(),
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=8),
    "DataLoader of samples": lambda: DataLoader(TensorDataset(X, Y), batch_size=1),
    "Batches": lambda: collect(pairs(9)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_all_kinds_of_sources_give_the_same_data(kind):
    batches = collect(SOURCES[kind]())
    x, y = next(batches.chunks(100))
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert batches.n_samples == sum(batches.sizes) == 20
    assert batches.stackable
    assert [len(item[0]) for item in batches.items] == list(batches.sizes)
    assert batches.fingerprint == collect((X, Y)).fingerprint == Dataset("", "train", X, Y, 4).fingerprint


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("limit", [1, 7, 12, 100])
def test_limit_takes_the_first_samples(kind, limit):
    batches = collect(SOURCES[kind](), limit=limit)
    x, y = next(batches.chunks(100))
    assert torch.equal(x, X[:limit])
    assert torch.equal(y, Y[:limit])
    assert batches.n_samples == min(limit, 20)


def test_limit_reads_no_more_than_it_needs():
    def endless():
        while True:
            yield X, Y

    source = endless()
    assert collect(source, limit=40).sizes == (20, 20)
    assert collect(Again(lambda k: endless()), limit=30).sizes == (20, 10)


def test_items_are_as_given():
    items = collect(pairs(6)).items
    for (x, y), (expected_x, expected_y) in zip(items, pairs(6), strict=True):
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)
    assert [len(x) for x, _ in collect(pairs(6)).chunks(None)] == [6, 6, 6, 2]


def test_data_are_copied():
    x, y = X.clone().requires_grad_(), Y.numpy().copy()
    batches = collect((x, y))
    before = batches.items[0][0].clone()
    x.data.add_(1)
    y += 1
    assert torch.equal(batches.items[0][0], before)
    assert torch.equal(batches.items[0][1], Y)
    assert not batches.items[0][0].requires_grad


def test_a_reused_buffer_is_copied():
    def source():
        buffer = np.zeros((2, 3))
        for i in range(3):
            buffer[:] = i
            yield buffer, np.arange(2)

    assert [float(x[0, 0]) for x, _ in collect(source()).items] == [0, 1, 2]


def test_mappings_nested_tuples_and_none():
    Named = namedtuple("Named", "image label")
    batch = UserDict(ids=np.arange(12).reshape(4, 3), mask=None, more=[X[:4], (Y[:4], X[:4].double())])
    whole = collect(batch)
    assert whole.sizes == (4,)
    item = whole.items[0]
    assert type(item) is dict
    assert item["mask"] is None
    assert torch.equal(item["ids"], torch.arange(12).reshape(4, 3))
    assert item["more"][1][1].dtype == torch.float64
    assert [batch_size(chunk) for chunk in whole.chunks(3)] == [3, 1]
    assert collect([batch, batch]).stackable
    assert torch.equal(collect([Named(X, Y)]).items[0].label, Y)
    assert collect(X).items[0].shape == X.shape


def test_batch_encoding_of_transformers():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": torch.arange(6).reshape(2, 3), "labels": torch.tensor([0, 1])})
    for data in (encoding, [encoding], iter([encoding, encoding])):
        item = collect(data).items[0]
        assert set(item) == {"input_ids", "labels"}
        assert torch.equal(item["input_ids"], encoding["input_ids"])


@pytest.mark.parametrize(
    "other",
    [(X[:3, :2], Y[:3]), (X[:3].double(), Y[:3]), (X[:3], Y[:3], Y[:3]), {"x": X[:3], "y": Y[:3]}, (X[:3], None)],
)
def test_batches_that_differ_are_kept_as_they_are(other):
    batches = collect([(X[:5], Y[:5]), other])
    assert not batches.stackable
    assert batches.sizes == (5, 3)
    assert len(list(batches.chunks(None))) == 2
    with pytest.raises(ValueError, match=r"use chunks\(None\)"):
        batches.chunks(4)
    assert batches.fingerprint != collect([(X[:5], Y[:5])]).fingerprint
    assert batches.to(dtype=torch.float64).sizes == (5, 3)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 40), st.booleans())
def test_chunks_round_trip(sizes, size, mapping):
    n = sum(sizes)
    x, y = torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(n)), torch.arange(n)
    items = list(zip(x.split(sizes), y.split(sizes), strict=True))
    if mapping:
        items = [{"y": b, "x": (a, None)} for a, b in items]
    batches = collect(items)
    chunks = list(batches.chunks(size))
    assert [batch_size(chunk) for chunk in chunks] == [min(size, n - i) for i in range(0, n, size)]
    parts = [(chunk["x"][0], chunk["y"]) if mapping else chunk for chunk in chunks]
    assert torch.equal(torch.cat([a for a, _ in parts]), x)
    assert torch.equal(torch.cat([b for _, b in parts]), y)
    assert batches.sizes == tuple(sizes)
    assert collect(chunks).fingerprint == batches.fingerprint


def test_chunks_are_views():
    batches = collect(pairs())
    storage = {x.untyped_storage().data_ptr() for x, _ in [*batches.chunks(7), *batches.chunks(3), *batches.items]}
    assert len(storage) == 1


def test_chunk_size_must_be_positive():
    with pytest.raises(ValueError, match="size=0"):
        collect((X, Y)).chunks(0)


def test_fingerprint_tells_data_apart():
    swapped = X.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    variants = [
        (X, Y),
        (swapped, Y),
        (X, Y + 1),
        (X, Y.int()),
        (X.reshape(20, 3, 1), Y),
        (X.double(), Y),
        (X, Y, Y),
        {"x": X, "y": Y},
        {"x": X, "z": Y},
        [(X, (Y,))],
        [(X, Y, None)],
        X,
        (X[:19], Y[:19]),
    ]
    assert len({collect(data).fingerprint for data in variants}) == len(variants)
    assert collect({"y": Y, "x": X}).fingerprint == collect({"x": X, "y": Y}).fingerprint
    strided = X.T.contiguous().T
    assert collect((strided, Y)).fingerprint == collect((X, Y)).fingerprint
    every_second = Dataset("", "train", X, Y.repeat_interleave(2)[::2], 4)
    assert every_second.fingerprint == collect((X, Y)).fingerprint
    read_only = X.numpy().copy()
    read_only.flags.writeable = False
    assert collect((read_only, Y)).fingerprint == collect((X, Y)).fingerprint
    big_endian = X.numpy().astype(">f4")
    assert collect((big_endian, Y)).fingerprint == collect((X, Y)).fingerprint
    assert collect((X.bfloat16(), Y > 1)).fingerprint != collect((X.half(), Y > 1)).fingerprint


def test_to_changes_floating_point_tensors_only():
    batches = collect({"x": X, "y": Y, "nothing": None}, name="toy")
    moved = batches.to(dtype=torch.float64)
    assert moved.items[0]["x"].dtype == torch.float64
    assert moved.items[0]["y"].dtype == torch.int64
    assert moved.items[0]["nothing"] is None
    assert batches.items[0]["x"].dtype == torch.float32
    assert (moved.name, moved.sizes, moved.stackable) == ("toy", (20,), True)
    assert next(moved.chunks(4))["x"].dtype == torch.float64
    assert batches.to("meta").items[0]["y"].device.type == "meta"
    with pytest.raises(ValueError, match="floating-point"):
        batches.to(dtype=torch.int64)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (lambda: load("digits", limit=2), "digits/train"),
        (lambda: (X, Y), "tensors"),
        (lambda: {"x": X}, "dict"),
        (lambda: DataLoader(TensorDataset(X), batch_size=3), "TensorDataset"),
        (lambda: iter(pairs()), "batches"),
    ],
)
def test_data_have_a_name(data, name):
    assert collect(data()).name == name
    assert collect(data(), name="mine").name == "mine"


# --- collect: what is refused ---


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
        lambda: DataLoader(TensorDataset(X, Y), sampler=torch.utils.data.SubsetRandomSampler(range(5))),
        lambda: DataLoader(TensorDataset(X, Y), sampler=torch.utils.data.WeightedRandomSampler([0.1] * 20, 20)),
        lambda: DataLoader(
            TensorDataset(X, Y),
            batch_sampler=torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(X), 4, False),
        ),
    ],
)
def test_random_samplers_are_refused_at_once(make):
    with pytest.raises(ValueError, match=r"random order .*shuffle=False"):
        collect(make())


class HiddenShuffle(torch.utils.data.Sampler):
    def __len__(self):
        return len(X)

    def __iter__(self):
        return iter(torch.randperm(len(X)).tolist())


def test_hidden_shuffling_is_found_and_named():
    loader = DataLoader(TensorDataset(X, Y), batch_size=6, sampler=HiddenShuffle())
    with pytest.raises(ValueError, match=r"differ from batch 0 on.* another order .*shuffle=False"):
        collect(loader)
    late = Again(lambda k: pairs() if k == 1 else pairs(order=[*range(12), *range(19, 11, -1)]))
    with pytest.raises(ValueError, match=r"differ from batch 2 on.* another order"):
        collect(late)


def test_augmentation_is_found_and_named():
    for source in (
        Sized(lambda x: x + torch.randn(())),
        DataLoader(Sized(lambda x: x + torch.randn(())), batch_size=6),
        Again(lambda k: [(X + (k == 2) * (X == 59), Y)]),
    ):
        with pytest.raises(ValueError, match=r"samples themselves differ.*without random transforms"):
            collect(source)


def test_a_second_pass_of_another_length():
    once = iter(pairs())
    with pytest.raises(ValueError, match=r"gave only 0 batches, the first 4.* iter\(data\)"):
        collect(Again(lambda k: once))
    with pytest.raises(ValueError, match="gave more than 4 batches"):
        collect(Again(lambda k: pairs() * k))


def test_missing_values_are_not_a_difference():
    x = X.clone()
    x[3, 1] = torch.nan
    assert collect(Again(lambda k: [(x, Y)])).n_samples == 20


def test_random_generators_are_left_alone():
    own = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X, Y), batch_size=6, generator=own)
    states = torch.get_rng_state(), own.get_state()
    collect(loader)
    collect(DataLoader(TensorDataset(X, Y), batch_size=6))
    collect(TensorDataset(X, Y))
    with pytest.raises(ValueError, match="two passes"):
        collect(Sized(lambda x: x + torch.randn(())))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(own.get_state(), states[1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: 3, TypeError, "iterable of batches, got int"),
        (lambda: pairs, TypeError, "got function"),
        (lambda: "digits", TypeError, "batch 0 is a str"),
        (lambda: [], ValueError, "empty"),
        (lambda: iter(()), ValueError, "empty"),
        (lambda: (X[:0], Y[:0]), ValueError, "no samples"),
        (lambda: [(X, Y), (X[:0], Y[:0])], ValueError, "batch 1 has no samples"),
        (lambda: (X, Y[:-1]), ValueError, r"equal length, got shapes \[\(20, 3\), \(19,\)\]"),
        (lambda: (X, torch.tensor(1)), ValueError, "equal length"),
        (lambda: ((X, X), Y), ValueError, r"a tuple of tuple, Tensor can be one batch or several.*\[batch\]"),
        (lambda: [(X, Y), (X, Y[:7])], ValueError, r"batch 1 have different numbers.*'batch 1.1': 7"),
        (lambda: {"x": X, "y": Y[:3]}, ValueError, r"batch 0\['y'\]"),
        (lambda: {"x": X, "text": ["a"] * 20}, TypeError, r"batch 0\['text'\]\[0\] is a str"),
        (lambda: {"x": X, "text": "a"}, TypeError, r"batch 0\['text'\] is a str"),
        (lambda: {"x": X, "n": torch.tensor(3)}, ValueError, r"batch 0\['n'\] is a single number"),
        (lambda: {"x": X, "n": 3}, TypeError, r"batch 0\['n'\] is a int"),
        (lambda: TensorDataset(X, Y)[0], ValueError, "equal length"),
        (lambda: [TensorDataset(X, Y)[0]], ValueError, "single number.*DataLoader"),
        (lambda: {"x": None}, ValueError, "holds no tensor"),
        (lambda: [()], ValueError, "holds no tensor"),
        (lambda: (np.array([None, 1]), np.arange(2)), TypeError, "dtype object"),
        (lambda: (np.array(["a", "b"]), np.arange(2)), TypeError, "dtype <U1"),
        (lambda: (X.to_sparse(), Y), TypeError, "layout"),
        (lambda: torch.nn.Sequential(torch.nn.ReLU()), TypeError, "batch 0 is a ReLU"),
        (lambda: DataLoader(["a", "b"], batch_size=2), TypeError, r"batch 0\[0\] is a str"),
    ],
)
def test_bad_data_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        collect(make())


def test_samples_of_different_length_need_padding():
    class Ragged(Sized):
        def __getitem__(self, i):
            return X[: i + 1], Y[i]

    with pytest.raises(ValueError, match="collate_fn that pads"):
        collect(Ragged())
    assert not collect(DataLoader(Ragged(), batch_size=1)).stackable


def test_limit_is_checked():
    with pytest.raises(ValueError, match="1 or more"):
        collect((X, Y), limit=0)


# --- split_batch and batch_size ---


def test_split_batch():
    assert split_batch((1, 2)) == (1, 2)
    assert split_batch([1, 2]) == (1, 2)
    assert split_batch((1, 2, 3)) == ((1, 2), 3)
    assert split_batch(((1, 2), 3)) == ((1, 2), 3)
    assert split_batch((1,)) == (1, 1)
    assert split_batch(X) == (X, X)
    mapping = UserDict(x=X)
    assert split_batch(mapping) == (mapping, mapping)
    with pytest.raises(ValueError, match="empty"):
        split_batch(())


def test_batch_size():
    assert batch_size((X, Y)) == batch_size({"a": [X, None]}) == batch_size(X) == 20
    with pytest.raises(ValueError, match="different numbers"):
        batch_size((X, Y[:2]))
    with pytest.raises(ValueError, match="no tensor"):
        batch_size({})
