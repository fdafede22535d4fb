"""Files that are damaged, of another kind or made to harm: each reader says so in one line, or reads them right.

What is tried runs in a process of its own with 5 s of the processor per file and 1 GiB more than Python and torch need,
so that a crash, a hang or a file that unfolds in memory fails the test, but not a busy machine. These processes are
forked from one that has imported everything. Files of format 1 have no checksum: they test what lies behind it.
"""

import atexit
import faulthandler
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import traceback
import zipfile
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from landscape.storage import read_hdf5, write_hdf5

SAMPLES = Path(__file__).parent / "files" / "v1"
SECONDS, BYTES = 5, 2**30
SAID = ("ValueError", "FileNotFoundError", "TypeError")


class Hang(BaseException):
    pass


# ---------------------------------------------------------------- the readers, in a process of their own


def use_surface(path):
    from landscape.figures import figures_of
    from landscape.report import surface_sections
    from landscape.sanity import findings
    from landscape.surface import Surface

    surface = Surface.load(path, vectors=True)
    findings(surface)
    if surface.done.size < 10_000:
        surface_sections(surface)
        figures_of(surface)


def use_trajectory(path):
    from landscape.trajectory import Trajectory

    trajectory = Trajectory.load(path)
    for i in range(min(3, len(trajectory))):
        trajectory.theta(i)
        trajectory.buffers(i)
    trajectory.columns(0, min(3, trajectory.p))


def use_study(path):
    from landscape.study import Study

    study = Study.load(path)
    study.groups()
    study.initial()
    study.thetas()
    study.buffers()


def use_minima(path):
    from landscape.catalog import Catalog

    catalog = Catalog.load(path)
    catalog.table()
    catalog.describe()
    catalog.thetas()


def use_barriers(path):
    from landscape.barriers import Barriers

    found = Barriers.load(path)
    assert found.barriers.shape == found.heights.shape == found.distances.shape
    assert found.losses.shape == found.distances.shape[:1]


def use_checkpoint(path):
    from landscape.checkpoint import read

    state = read(path).state
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def use_state(path):
    from landscape.training import read_history

    folder = Path(f"{path}.run")
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "state.pt")
    read_history(folder)


def use_li_surface(path):
    from landscape.interchange import read_li_surface

    read_li_surface(path)


def use_li_directions(path):
    from landscape.interchange import read_li_directions

    read_li_directions(path, [("weight", (2, 3)), ("bias", (2,))])


def use_li_projection(path):
    from landscape.interchange import read_li_projection

    read_li_projection(path)


def use_info(path):
    from landscape.cli import main

    code = main(["info", str(path)])
    assert code in (0, 2), f"exit status {code}"


def in_folder(names):
    def prepare(path):
        folder = Path(f"{path}.data")
        folder.mkdir(exist_ok=True)
        for name in names:
            shutil.copy(path, folder / name)
        return folder

    return prepare


def use_idx(path):
    from landscape.data.formats import parse_idx, read_plain

    parse_idx(read_plain(path), 3, path)


def use_cifar(path):
    from landscape.data.formats import parse_cifar10, read_plain

    parse_cifar10(read_plain(path), path)


def use_cifar_pickle(path):
    from landscape.data.formats import parse_cifar10_pickle, read_plain

    parse_cifar10_pickle(read_plain(path), path)


def use_cifar_archive(path):
    from landscape.data.formats import read_members

    read_members(path, ["data_batch_1.bin"])


USES = {name.removeprefix("use_"): use for name, use in list(globals().items()) if name.startswith("use_")}


def outcome(kind, path):
    """Read a file, and say how it went: "right", or the type of the error and its text."""

    def stop(number, frame):
        raise Hang

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # it waits, or is in compiled code that does not return
    try:
        USES[kind](path)
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    return "right"


def flipped(content, random_bits):
    content = bytearray(content)
    place = random_bits.randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8
    return bytes(content)


def child(job):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    for kind, path in job["files"]:
        print(json.dumps([kind, path, outcome(kind, Path(path))]), flush=True)
    if flips := job.get("flips"):
        path = Path(flips["path"])
        content, random_bits = path.read_bytes(), random.Random(0)
        for _ in range(flips["n"]):
            path.write_bytes(flipped(content, random_bits))
            found = outcome(flips["kind"], path)
            print(json.dumps([flips["kind"], str(path), found]), flush=True)


def fork_children():
    """Do each job that comes, in a process of its own; answer with exit code, output and errors."""
    import landscape.catalog
    import landscape.checkpoint
    import landscape.figures
    import landscape.report  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            if (process := os.fork()) == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                code = 1
                try:
                    child(json.loads(line))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            texts = [Path(f"/proc/self/fd/{file.fileno()}").read_text(errors="replace") for file in (out, err)]
            print(json.dumps([code, *texts]), flush=True)


@cache
def forker():
    """The process that children are forked from: importing everything takes longer than most of what they do."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )

    def end():
        process.stdin.close()
        process.wait()
        process.stdout.close()

    atexit.register(end)
    return process


def results(files=(), flips=None):
    """Return what reading each file came to, `[kind, path, text]`."""
    job = {"files": [[kind, str(path)] for kind, path in files], "flips": flips}
    process = forker()
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    code, out, err = json.loads(process.stdout.readline())
    found = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    expected = len(job["files"]) + (flips["n"] if flips else 0)
    assert code == 0, f"crashed ({code}) after {found[-1:]}: {err[-2000:]}"
    assert len(found) == expected
    return found


def is_said(text):
    """Whether an outcome is right, or an error of one line that a user can read."""
    return text == "right" or (text.startswith(SAID) and "\n" not in text and 20 < len(text) < 1500)


# ---------------------------------------------------------------- samples of every kind


def make_samples(folder):
    """Write a good file of every kind into a folder; return them by reader."""
    from landscape.interchange import write_li_directions, write_li_projection, write_li_surface
    from landscape.surface import Surface

    shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
    surface = Surface.load(folder / "surface.h5")
    write_li_surface(surface, folder / "li.h5")
    write_li_directions(folder / "li_directions.h5", np.ones((2, 8)), [("weight", (2, 3)), ("bias", (2,))])
    write_li_projection(folder / "li_projection.h5", np.ones((4, 2)))
    state = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "zip.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).tobytes()
    idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 28, 28) + images
    (folder / "idx").write_bytes(idx)
    (folder / "idx.gz").write_bytes(gzip.compress(idx))
    record = bytes([3]) + bytes(range(256)) * 12
    (folder / "cifar.bin").write_bytes(record * 2)
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}
    (folder / "cifar.pickle").write_bytes(pickle.dumps(batch, protocol=3))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar.bin", "cifar-10-batches-bin/data_batch_1.bin")
    return {
        **{"surface": folder / "surface.h5", "trajectory": folder / "trajectory.h5", "study": folder / "growing.h5"},
        **{"minima": folder / "minima.h5", "barriers": folder / "barriers.h5", "state": folder / "run/state.pt"},
        **{"checkpoint": folder / "checkpoint.safetensors", "checkpoint zip": folder / "zip.pt"},
        **{"checkpoint legacy": folder / "legacy.pt", "li_surface": folder / "li.h5"},
        **{"li_directions": folder / "li_directions.h5", "li_projection": folder / "li_projection.h5"},
        **{"idx": folder / "idx", "idx gz": folder / "idx.gz", "cifar": folder / "cifar.bin"},
        **{"cifar_pickle": folder / "cifar.pickle", "cifar_archive": folder / "cifar.tar.gz"},
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples"))


KINDS = (
    *("surface", "trajectory", "study", "minima", "barriers", "state", "checkpoint", "checkpoint zip"),
    *("checkpoint legacy", "li_surface", "li_directions", "li_projection", "idx", "idx gz", "cifar", "cifar_pickle"),
    "cifar_archive",
)


def reader(kind):
    return kind.split(" ")[0]


def test_good_files_are_read(samples):
    assert tuple(sorted(samples)) == tuple(sorted(KINDS))
    found = results([(reader(kind), path) for kind, path in samples.items()])
    assert [text for _, _, text in found] == ["right"] * len(KINDS)


def test_truncated_empty_and_other_files(samples, tmp_path):
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    text = b"just some text\n" * 20
    files, must_fail = [], set()
    for kind, path in samples.items():
        content = path.read_bytes()
        cuts = sorted({0, 1, 7, 8, 9, 16, 100, 511, 512, 513, *(len(content) * i // 12 for i in range(1, 12))})
        cuts += [len(content) - 1]
        variants = {f"cut{n}": content[:n] for n in cuts if n < len(content)}
        variants |= {"png": png, "text": text, "zeros": bytes(len(content)), "doubled": content[:50] + content}
        for name, variant in variants.items():
            bad = tmp_path / f"{kind}.{name}{path.suffix}"
            bad.write_bytes(variant)
            files.append((reader(kind), bad))
            if name != "cut0" and (kind, name) != (
                "cifar_pickle",
                "doubled",
            ):  # of NumPy 1 one that leaves something over
                must_fail.add(str(bad))
            if path.suffix in (".h5", ".pt", ".safetensors") and kind != "state":
                files.append(("info", bad))
    found = results(files)
    assert len(found) > 350
    assert [one for one in found if not is_said(one[2])] == []
    # an empty CIFAR-10 batch is no images, which `check_labels` refuses later; a cut at a whole record is a shorter one
    wrong = [one for one in found if one[1] in must_fail and one[2] == "right" and one[0] != "info"]
    assert {one[0] for one in wrong} <= {"cifar", "cifar_archive"}, wrong


def test_folders_and_missing_files(samples, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "folder.pt").mkdir()
    kinds = [
        reader(kind) for kind in KINDS if kind.startswith(("surf", "traj", "study", "min", "barr", "check", "li_"))
    ]
    files = [(kind, tmp_path / name) for kind in kinds for name in ("folder.h5", "folder.pt", "missing.h5")]
    for kind, path, text in results(files):
        assert text.startswith(("ValueError", "FileNotFoundError")), (kind, path, text)


def read_flipped(kind, sample, folder, n):
    """Flip a bit of a copy of a sample, n times; return what reading it came to."""
    path = folder / sample.name
    shutil.copy(sample, path)
    parts = sample.with_name(f"{path.name}.parts")
    if parts.exists():
        shutil.copytree(parts, folder / parts.name, dirs_exist_ok=True)
    return results(flips={"kind": reader(kind), "path": str(path), "n": n})


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits(kind, samples, tmp_path):
    found = read_flipped(kind, samples[kind], tmp_path, 40 if kind == "surface" else 100)
    assert [one for one in found if not is_said(one[2])] == []
    # a flip in a number of a file without a checksum cannot be seen, one in its structure is
    assert kind in ("idx", "cifar", "cifar_archive") or any(text != "right" for _, _, text in found)


# ---------------------------------------------------------------- HDF5 files made to harm


def put(path, **data):
    """Replace data sets of a file."""
    with h5py.File(path, "r+") as file:
        for name, value in data.items():
            place = name.replace("__", "/")
            if place in file:
                del file[place]
            if callable(value):
                value(file, place)
            else:
                file[place] = value


def external_link(target):
    return lambda file, place: file.__setitem__(place, h5py.ExternalLink(str(target), "/loss"))


def soft_link(file, place):
    file[place] = h5py.SoftLink("/x")


def stored_elsewhere(target):
    def make(file, place):
        file.create_dataset(place, (6, 5), np.float64, external=[(str(target), 0, 240)])

    return make


def virtual(target, maxshape=False):
    def make(file, place):
        layout = h5py.VirtualLayout((6, 5), np.float64)
        layout[:] = h5py.VirtualSource(str(target), "loss", shape=(6, 5))
        file.create_virtual_dataset(place, layout)

    return make


def without_storage(file, place):
    file.create_dataset(place, (10**6, 10**6), np.float64)


def chunked_without_storage(file, place):
    file.create_dataset(place, (10**6, 10**6), np.float64, chunks=(1000, 1000))


def compressed(file, place):
    file.create_dataset(place, data=np.zeros((2000, 2000)), compression="gzip")


def of_type(dtype, value=None):
    def make(file, place):
        file.create_dataset(place, (6, 5) if value is None else np.shape(value), dtype, data=value)

    return make


def references(file, place):
    file.create_dataset(place, data=[file["x"].ref] * 3, dtype=h5py.ref_dtype)


def ragged(file, place):
    data = file.create_dataset(place, (3,), h5py.vlen_dtype(np.float64))
    data[0] = [1, 2, 3]


def records(file, place):
    file[place] = np.zeros(3, [("a", "f8"), ("b", "i4")])


def opaque(file, place):
    file.create_dataset(place, data=np.zeros(3, "V16"))


def second_name(file, place):
    file[place] = file["x"]


def ring(file, place):
    file[place] = file["/"]


def nothing(file, place):
    file[place] = h5py.Empty("f8")


def deep(file, place):
    file.create_dataset(place, data="[" * 10**6, dtype=h5py.string_dtype())


def deep_right(file, place):
    file.create_dataset(place, data='{"a":' * 900 + "1" + "}" * 900, dtype=h5py.string_dtype())


def text(value):
    return lambda file, place: file.create_dataset(place, data=value, dtype=h5py.string_dtype())


def attribute(name, value):
    def make(file, place):
        file.attrs[name] = value

    return make


SURFACES = {
    "external link": {"loss": "external"},
    "external link beside": {"note": "external"},
    "external link within": {"trajectories__note": "external"},
    "soft link": {"loss": soft_link},
    "external storage": {"loss": "storage"},
    "virtual": {"loss": "virtual"},
    "no storage": {"loss": without_storage},
    "no chunks": {"loss": chunked_without_storage},
    "compressed": {"loss": compressed},
    "references": {"note": references},
    "ragged": {"note": ragged},
    "records": {"note": records},
    "opaque": {"note": opaque},
    "complex": {"loss": of_type("c16")},
    "second name": {"note": second_name},
    "ring": {"trajectories__note": ring},
    "null": {"note": nothing},
    "named type": {"note": lambda file, place: file.__setitem__(place, np.dtype("f8"))},
    "other shape": {"loss": np.zeros((5, 6))},
    "more axes": {"loss": np.zeros((6, 5, 2))},
    "scalar": {"x": 1.0},
    "empty axis": {"x": np.zeros(0)},
    "text as values": {"loss": of_type(h5py.string_dtype(), [["a"] * 5] * 6)},
    "mask of numbers": {"done": np.ones((6, 5), np.uint8)},
    "mask of sevens": {"done": of_type(np.bool_, np.full((6, 5), 7, np.uint8).view(np.bool_))},
    "group as values": {"loss": lambda file, place: file.create_group(place)},
    "provenance no JSON": {"record__provenance": text("{")},
    "provenance a list": {"record__provenance": text("[1]")},
    "provenance deep": {"record__provenance": deep},
    "provenance nested": {"record__provenance": deep_right},
    "provenance a number": {"record__provenance": 3},
    "provenance many digits": {"record__provenance": text('{"seconds": 1' + "0" * 4000 + "}")},
    "provenance of other types": {"record__provenance": text('{"settings": 5}')},
    "provenance plan": {"record__provenance": text('{"plan": {"notes": [1]}}')},
    "provenance axes": {"record__provenance": text('{"axes": [{"label": "x"}]}')},
    "provenance gram": {"record__provenance": text('{"gram": [[1], [2]]}')},
    "provenance audit": {"record__provenance": text('{"audit": {"text": 1, "exceeded": true}}')},
    "provenance not UTF-8": {"record__provenance": text(b'{"a": "\xff\xfe"}')},
    "fingerprint a list": {"record__fingerprint": text("[]")},
    "axes a number": {"note": attribute("axes", 5)},
    "axes no list": {"note": attribute("axes", '{"x": 1}')},
    "axes twice": {"note": attribute("axes", '["x", "x"]')},
    "axes none": {"note": attribute("axes", "[]")},
    "axes unknown": {"note": attribute("axes", '["x", "q"]')},
    "axes of numbers": {"note": attribute("axes", "[1, 2]")},
    "axes a group": {"note": attribute("axes", '["x", "trajectories"]')},
    "axes a path": {"note": attribute("axes", '["x", "../x"]')},
    "axes deep": {"note": attribute("axes", "[" * 10**4)},
    "metrics none": {"note": attribute("metrics", "[]")},
    "metrics done": {"note": attribute("metrics", '["loss", "done"]')},
    "metrics reference": {"note": lambda file, place: file.attrs.__setitem__("metrics", file["x"].ref)},
    "kind a number": {"note": attribute("landscape_kind", 5)},
    "kind texts": {"note": attribute("landscape_kind", ["surface", "surface"])},
    "format a text": {"note": attribute("landscape_format", "1")},
    "format a fraction": {"note": attribute("landscape_format", 1.5)},
    "format newer": {"note": attribute("landscape_format", 99)},
    "format lost checksum": {"note": attribute("landscape_format", 2)},
    "trajectory lacks a part": {"trajectories__run__loss": lambda file, place: None},
    "trajectory short": {"trajectories__run__loss": np.zeros(1)},
    "trajectory of one axis": {"trajectories__run__coordinates": np.zeros((3, 1))},
    "trajectories data": {"trajectories": 3},
    "directions short": {"slice__directions": np.zeros((1, 3))},
    "origin long": {"slice__origin": np.zeros(10**4)},
}


def test_surfaces_made_to_harm(samples, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # whoever opens it waits for ever
    makers = {"external": external_link(pipe), "storage": stored_elsewhere(pipe), "virtual": virtual(pipe)}
    files = []
    for name, changes in SURFACES.items():
        path = tmp_path / f"{name}.h5"
        shutil.copy(samples["surface"], path)
        put(path, **{place: makers[v] if isinstance(v, str) else v for place, v in changes.items()})
        files += [("surface", path), ("info", path)]
    found = results(files)
    assert len(found) == 2 * len(SURFACES) > 110
    assert [one for one in found if not is_said(one[2])] == []
    assert [Path(path).stem for kind, path, text in found if kind == "surface" and text == "right"] == []


def test_the_secret_of_another_file_is_not_read(samples, tmp_path):
    """Each way to reach another file works in plain h5py, and not here."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["loss"] = np.full((6, 5), 42.0)
    (tmp_path / "raw").write_bytes(np.full((6, 5), 42.0).tobytes())
    makers = [external_link(secret), stored_elsewhere(tmp_path / "raw"), virtual(secret)]
    for i, make in enumerate(makers):
        path = tmp_path / f"{i}.h5"
        shutil.copy(samples["surface"], path)
        put(path, loss=make)
        with h5py.File(path) as file:
            assert (file["loss"][()] == 42).all()
        with pytest.raises(ValueError, match=r"link to another place|stored in another file"), read_hdf5(path):
            pass
        shutil.copy(samples["li_surface"], tmp_path / f"li{i}.h5")
        put(tmp_path / f"li{i}.h5", train_loss=make)
        from landscape.interchange import read_li_surface

        with pytest.raises(ValueError, match=r"link to another place|stored in another file"):
            read_li_surface(tmp_path / f"li{i}.h5")


def test_a_file_with_a_right_checksum_is_looked_at_all_the_same(tmp_path):
    path = tmp_path / "a.h5"
    with write_hdf5(path, "surface") as file:
        file.attrs["axes"], file.attrs["metrics"] = '["x"]', '["loss"]'
        file["x"] = np.arange(3.0)
        file["loss"] = h5py.ExternalLink("other.h5", "/loss")
    assert "link to another place" in results([("surface", path)])[0][2]


OTHERS = {
    "trajectory": {
        "layout no JSON": {"record__layout": text("nothing")},
        "layout short": {"record__layout": text('{"names": ["a"], "shapes": []}')},
        "layout negative": {"record__layout": text('{"names": ["a"], "shapes": [[-1]]}')},
        "layout absurd": {"record__layout": text('{"names": ["a"], "shapes": [[10000000000, 10000000000]]}')},
        "layout of another": {"record__layout": text('{"names": ["a"], "shapes": [[2]]}')},
        "layout fractions": {"record__layout": text('{"names": ["a"], "shapes": [[1.5]]}')},
        "theta of integers": {"theta": np.zeros((4, 13), int)},
        "theta short": {"theta": np.zeros((2, 13), np.float32)},
        "theta half": {"theta": np.zeros((4, 13), np.float16)},
        "theta absurd": {"theta": without_storage},
        "steps of numbers": {"step": np.zeros(4)},
        "no steps": {"step": np.zeros(0, int)},
        "metric long": {"metrics__loss": np.zeros(9)},
        "metric text": {"metrics__loss": text("a")},
        "metrics data": {"metrics": 3},
        "info a list": {"record__info": text("[]")},
    },
    "study": {
        "settings a text": {"record__shared": text('{"settings": "a", "provenance": {}, "fingerprint": {}}')},
        "settings unnamed": {"record__shared": text('{"settings": [{}], "provenance": {}, "fingerprint": {}}')},
        "no settings": {"record__shared": text('{"settings": [], "provenance": {}, "fingerprint": {}}')},
        "setting too high": {"setting": lambda file, place: file.__setitem__(place, np.full(N_RUNS, 77))},
        "column short": {"seed": np.zeros(1, int)},
        "column text": {"gradient_norm": lambda file, place: file.__setitem__(place, ["a"] * N_RUNS)},
        "column scalar": {"seed": 5},
        "columns a text": {"note": attribute("columns", "seed")},
        "columns unknown": {"note": attribute("columns", ["a", "b"])},
        "curve flat": {"curve__loss": lambda file, place: file.__setitem__(place, np.zeros(N_RUNS))},
        "next part a text": {"note": attribute("next_part", "many")},
    },
    "minima": {
        "labels of another": {"record__shared": text('{"settings": [], "provenance": {}, "identification": {}}')},
        "identification a text": {"record__shared": text('{"settings": [], "provenance": {}, "identification": "a"}')},
        "kind a number": {"kind": np.zeros(3)},
        "loss a text": {"loss": text("low")},
    },
    "barriers": {
        "profiles of others": {"profiles": np.zeros((9, 9, 9))},
        "no networks": {"distances": np.zeros((0, 0)), "profiles": np.zeros((0, 0, 3))},
        "distances not square": {"distances": np.zeros((2, 3))},
        "aligned a text": {"record__settings": text('{"aligned": "yes"}')},
        "settings a list": {"record__settings": text("[]")},
    },
    "li_surface": {
        "text": {"xcoordinates": text("a")},
        "absurd": {"xcoordinates": without_storage},
        "of no length": {"xcoordinates": np.zeros(0)},
        "not finite": {"xcoordinates": np.array([0, np.nan])},
        "compressed": {"train_loss": compressed},
        "complex": {"train_loss": of_type("c16")},
        "dir_file absurd": {"dir_file": chunked_without_storage},
        "ring": {"note": ring},
    },
    "li_directions": {
        "data": {"xdirection": 3},
        "other names": {"xdirection__7": np.zeros(2)},
        "tensor a group": {"xdirection__0": lambda file, place: file.create_group(place)},
        "tensor text": {"xdirection__0": text("a")},
    },
    "li_projection": {
        "scalar": {"proj_xcoord": 1.0},
        "lengths": {"proj_xcoord": np.zeros(9)},
        "group": {"proj_ycoord": lambda file, place: file.create_group(place)},
    },
}
N_RUNS = 0


def test_other_hdf5_made_to_harm(samples, tmp_path, monkeypatch):
    with h5py.File(samples["study"]) as file:
        monkeypatch.setitem(globals(), "N_RUNS", len(file["seed"]))
    files = []
    for kind, cases in OTHERS.items():
        for name, changes in cases.items():
            path = tmp_path / f"{kind} {name}.h5"
            shutil.copy(samples[kind], path)
            put(path, **changes)
            files.append((kind, path))
    found = results(files)
    assert [one for one in found if not is_said(one[2])] == []
    assert [Path(path).stem for _, path, text in found if text == "right"] == []


def test_texts_that_are_one_text_many_times(samples, tmp_path):
    """A column of 300,000 references to one text of 100 kB, 30 GB of text in a file of 5 MB."""
    path = tmp_path / "minima.h5"
    shutil.copy(samples["minima"], path)
    with h5py.File(path, "r+") as file:
        n = len(file["run"])
        for name in list(map(str, file.attrs["columns"])):
            values = file[name][()]
            del file[name]
            file[name] = np.repeat(values[:1], 300_000, axis=0) if name != "kind" else np.zeros(300_000, int)
        del file["kind"]
        kinds = file.create_dataset("kind", (300_000,), h5py.string_dtype())
        kinds[0] = "x" * 100_000
        address = kinds.id.get_offset()
    assert n
    content = bytearray(path.read_bytes())
    reference = bytes(content[address : address + 16])
    content[address : address + 16 * 300_000] = reference * 300_000
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert len(file["kind"][299_999]) == 100_000
    text = results([("minima", path)])[0][2]
    assert text.startswith("ValueError")
    assert "bytes of text" in text


def test_text_heaps_without_end(samples, tmp_path):
    """libhdf5 2.0 reads a text for ever where an entry of no size comes before it."""
    content = samples["surface"].read_bytes()
    place = content.index(b"GCOL\x01") + 16
    cases = {
        "none": content[:place] + bytes(16) + content[place + 16 :],
        "beyond": content[:place] + b"\x01\x00" + bytes(6) + b"\xff" * 8 + content[place + 16 :],
        "heap": content[: place - 8] + b"\xff" * 7 + b"\x00" + content[place:],
    }
    for name, bad in cases.items():
        (tmp_path / f"{name}.h5").write_bytes(bad)
    for _, path, text in results([("surface", tmp_path / f"{name}.h5") for name in cases]):
        assert text.startswith("ValueError"), (path, text)
        assert "text heap" in text


# ---------------------------------------------------------------- checkpoints and data made to harm


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def tuples(levels):
    """A pickle of a dictionary whose key is a tuple of tuples ...: its hash takes 2^levels steps."""
    text = b"\x80\x02}X\x01\x00\x00\x00aq\x00h\x00\x86q\x01"
    for i in range(1, levels):
        text += b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    return text + b"Ns."


def test_checkpoints_made_to_harm(tmp_path):
    harm, files = tmp_path / "harmed", []

    def case(name, content=None, **saving):
        path = tmp_path / name
        if content is not None:
            torch.save(content, path, **saving)
        files.append(("checkpoint", path))
        files.append(("info", path))
        if path.suffix == ".pt":
            files.append(("state", path))
        return path

    good = {"weight": torch.ones(3)}
    case("harm.pt", {**good, "x": Harm(harm)})
    case("legacy_harm.pt", {**good, "x": Harm(harm)}, _use_new_zipfile_serialization=False)
    case("plain_harm.pt").write_bytes(pickle.dumps(Harm(harm)))
    case("harm.ckpt").write_bytes(pickle.dumps({"state_dict": Harm(harm)}, protocol=2))
    case("harm.safetensors").write_bytes(pickle.dumps(Harm(harm)))
    case("harm.h5").write_bytes(pickle.dumps(Harm(harm)))
    case("expanded.pt", {"weight": torch.ones(1).expand(10**12)})
    case("half_expanded.pt", {"weight": torch.ones(1).expand(10**9)})
    case("many_expanded.pt", {f"w{i}": torch.ones(1).expand(1, 10**7, 1)[:, i:] for i in range(50)})
    case("sparse.pt", {"weight": torch.eye(3).to_sparse()})
    case("meta.pt", {"weight": torch.ones(3, device="meta")})
    case("numbers.pt", {1: torch.ones(3), ("a",): torch.ones(2)})
    case("module.pt", torch.nn.Linear(2, 2))
    case("tuple.pt", (torch.ones(3),))
    case("list.pt", [1] * 1000)
    case("legacy_tuples.pt", good, _use_new_zipfile_serialization=False)
    case("tuples.pt", good)
    bomb = case("bomb.pt", good)
    content = bomb.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(tmp_path / "tuples.pt", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, tuples(60) if entry.filename.endswith(".pkl") else source.read(entry))
    legacy = (tmp_path / "legacy_tuples.pt").read_bytes()
    place = 0
    for _ in range(3):  # its magic number, version and machine come before the content
        place = legacy.index(b".", place) + 1
    (tmp_path / "legacy_tuples.pt").write_bytes(legacy[:place] + tuples(60) + legacy[place:])
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for entry in source.infolist():
            inflated = entry.filename.endswith("/data/0")
            with target.open(entry.filename, "w", force_zip64=True) as file:
                if inflated:
                    for _ in range(1200):
                        file.write(bytes(2**20))
                else:
                    file.write(source.read(entry))
    assert bomb.stat().st_size < 2**24
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    case("absurd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    case("header.safetensors").write_bytes(struct.pack("<Q", 2**62) + header + bytes(4))
    for name, record in {
        **{"list": "[]", "deep": "[" * 10**5, "types": '{"info": 3}', "name": '{"name": 3}', "text": "no JSON"},
        **{"order": '{"order": [[1]]}', "nested": '{"info":' * 500 + "{}" + "}" * 500, "version": '{"format": "1"}'},
    }.items():
        meta = {"__metadata__": {"landscape": record}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        header = json.dumps(meta).encode()
        path = case(f"record_{name}.safetensors")
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    found = results(files)
    assert not harm.exists()
    assert [one for one in found if not is_said(one[2])] == []
    right = {Path(path).name for kind, path, text in found if kind == "checkpoint" and text == "right"}
    assert right == set()
    pickle.loads(pickle.dumps(Harm(harm)))  # the harm is real
    assert harm.exists()


def test_data_files_made_to_harm(tmp_path):
    zeros = tmp_path / "zeros.gz"
    with gzip.open(zeros, "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(bytes(2**20))
    assert zeros.stat().st_size < 2**20
    huge = tmp_path / "huge"
    huge.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(100))
    archive = tmp_path / "bomb.tar.gz"
    with gzip.open(archive, "wb") as file:
        member = tarfile.TarInfo("other.bin")
        member.size = 2**31
        file.write(member.tobuf())
        for _ in range(300):
            file.write(bytes(2**20))
    headers = tmp_path / "headers.tar.gz"
    with gzip.open(headers, "wb") as file:
        member = tarfile.TarInfo("x")
        member.type, member.size = tarfile.XHDTYPE, 2**31
        file.write(member.tobuf())
        for _ in range(300):
            file.write(bytes(2**20))
    steps = tmp_path / "steps.gz"
    steps.write_bytes(gzip.compress(b"\x80\x02" + b"N0" * 5_000_000 + b"."))
    harm = tmp_path / "harmed"
    harmful = tmp_path / "harm.pickle"
    harmful.write_bytes(pickle.dumps({b"labels": [1], b"data": Harm(harm)}, protocol=2))
    files = [("idx", zeros), ("cifar", zeros), ("cifar_pickle", zeros), ("idx", huge)]
    files += [("cifar_archive", archive), ("cifar_archive", headers), ("cifar_pickle", steps)]
    files += [("cifar_pickle", harmful)]
    found = results(files)
    assert not harm.exists()
    for kind, path, text in found:
        assert text.startswith("ValueError"), (kind, path, text)
        assert is_said(text), (kind, path, text)


def test_the_judge_can_fail(tmp_path):
    assert is_said("right")
    assert is_said("ValueError: x.h5 is damaged: something")
    assert not is_said("KeyError: 'x' is not there at all")
    assert not is_said("Hang: it took more than five seconds")
    assert not is_said("ValueError: first line of it\nand a second")
    assert not is_said("ValueError: ")


if __name__ == "__main__":
    fork_children()
