"""Feed the readers with mutated files, guided by the code they reach: `scripts/reliability/fuzz.py --seconds 60`.

Atheris (`pip install atheris`, CPython up to 3.13 on Linux and macOS) keeps what reaches new code and mutates it
further. A reader may return, or raise a ValueError, TypeError or FileNotFoundError of one line. Anything else, a crash
of a library below, more than 5 s or more than 2 GiB is a finding: the file is kept, and the run goes on.

Files of format 1 are the corpus: they have no checksum, so that mutations reach what lies behind it. All readers share
one corpus; the first byte of an input chooses the reader.
"""

import argparse
import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "landscape"
SAMPLES = HERE.parents[1] / "tests" / "files" / "v1"
RESULTS = HERE.parents[1] / "results" / "reliability"
SECONDS, MEGABYTES = 5, 2048
FIXED = (
    "A text heap of HDF5 with an entry of no size kept libhdf5 2.0 busy for ever (3 inputs, any kind of HDF5 file): "
    "`contents.check_hdf5` looks through the heaps first.",
    "Damaged attributes raised RuntimeError where they were only looked for (6 inputs): `contents.has_attribute`.",
    "Damaged numbers and texts of Li et al.'s files raised OSError (2 inputs): they are read by `contents` now.",
    "An error that quoted 9,000 bytes of a CIFAR-10 pickle (1 input, the finding of the run of 600 s): cut.",
)
"""What earlier runs found; each is a test now."""
SAID = (ValueError, TypeError, FileNotFoundError)
MODULES = (
    *("contents", "storage", "rows", "surface", "sanity", "study", "catalog", "barriers", "interchange", "shards"),
    *("trajectory", "checkpoint", "session", "data/formats"),
)


def readers() -> dict[str, Callable[[Path], object]]:
    """Return what reads each kind of file, by name."""
    from landscape.barriers import Barriers
    from landscape.catalog import Catalog
    from landscape.checkpoint import read
    from landscape.data import formats
    from landscape.interchange import read_li_directions, read_li_projection, read_li_surface
    from landscape.sanity import findings
    from landscape.session import read_state
    from landscape.study import Study
    from landscape.surface import Surface
    from landscape.trajectory import Trajectory

    def trajectory(path: Path) -> object:
        found = Trajectory.load(path)
        return [found.theta(0), found.buffers(0), found.columns(0, 1)]

    def study(path: Path) -> object:
        found = Study.load(path)
        return [found.groups(), found.initial(), found.thetas()]

    def minima(path: Path) -> object:
        found = Catalog.load(path)
        return [found.table(), found.describe(), found.thetas()]

    return {
        "surface": lambda path: findings(Surface.load(path, vectors=True)),
        "trajectory": trajectory,
        "study": study,
        "minima": minima,
        "barriers": lambda path: Barriers.load(path).barriers,
        "checkpoint": read,
        "state": read_state,
        "li_surface": read_li_surface,
        "li_directions": lambda path: read_li_directions(path, [("weight", (2, 3)), ("bias", (2,))]),
        "li_projection": read_li_projection,
        "idx": lambda path: formats.parse_idx(formats.read_plain(path), 3, path),
        "cifar": lambda path: formats.parse_cifar10(formats.read_plain(path), path),
        "cifar_pickle": lambda path: formats.parse_cifar10_pickle(formats.read_plain(path), path),
        "cifar_archive": lambda path: formats.read_members(path, ["data_batch_1.bin"]),
    }


def make_corpus(folder: Path) -> None:
    """Write a good file for every reader, behind the byte that chooses it."""
    import gzip
    import pickle
    import tarfile

    import numpy as np
    import torch

    from landscape import interchange
    from landscape.surface import Surface

    made = folder / "made"
    made.mkdir(parents=True)
    surface = Surface.load(SAMPLES / "surface.h5")
    interchange.write_li_surface(surface, made / "li.h5")
    interchange.write_li_directions(made / "directions.h5", np.ones((2, 8)), [("weight", (2, 3)), ("bias", (2,))])
    interchange.write_li_projection(made / "projection.h5", np.ones((4, 2)))
    state = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, made / "zip.pt")
    torch.save(state, made / "legacy.pt", _use_new_zipfile_serialization=False)
    idx = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(16)
    (made / "idx").write_bytes(idx)
    (made / "idx.gz").write_bytes(gzip.compress(idx))
    (made / "cifar.bin").write_bytes(bytes(3073))
    batch = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}
    (made / "cifar.pickle").write_bytes(pickle.dumps(batch, protocol=3))
    with tarfile.open(made / "cifar.tar.gz", "w:gz") as archive:
        archive.add(made / "cifar.bin", "batches/data_batch_1.bin")
    files = [
        *(("surface", SAMPLES / "surface.h5"), ("trajectory", SAMPLES / "trajectory.h5")),
        *(("study", SAMPLES / "growing.h5"), ("minima", SAMPLES / "minima.h5"), ("barriers", SAMPLES / "barriers.h5")),
        *(("checkpoint", SAMPLES / "checkpoint.safetensors"), ("checkpoint", made / "zip.pt")),
        *(("checkpoint", made / "legacy.pt"), ("state", SAMPLES / "run" / "state.pt"), ("li_surface", made / "li.h5")),
        *(("li_directions", made / "directions.h5"), ("li_projection", made / "projection.h5")),
        *(("idx", made / "idx"), ("idx", made / "idx.gz"), ("cifar", made / "cifar.bin")),
        *(("cifar_pickle", made / "cifar.pickle"), ("cifar_archive", made / "cifar.tar.gz")),
    ]
    names = list(readers())
    for i, (kind, path) in enumerate(files):
        (folder / f"{i:02d}_{kind}").write_bytes(bytes([names.index(kind)]) + path.read_bytes())
    shutil.rmtree(made)


def judge(use: Callable[[Path], object], path: Path) -> str | None:
    """Read a file; return what is wrong with how that went, or None."""
    try:
        use(path)
    except SAID as error:
        text = str(error)
        if "\n" in text or not 10 < len(text) < 2000:
            return f"{type(error).__name__} of {len(text)} characters, not one line: {text[:80]!r} at {_place(error)}"
        return None
    except Exception as error:  # a finding, whatever it is
        return f"{type(error).__name__}: {str(error)[:120]} at {_place(error)}"
    return None


def _place(error: BaseException) -> str:
    """Return the line of the package that an error came through last."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(PACKAGE) in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside of the package"


def fuzz(work: Path, seconds: int) -> None:
    """Run Atheris in this process: libFuzzer ends it at a crash, a hang, or the end of the time."""
    import atheris

    with atheris.instrument_imports(include=["landscape"]):
        uses = list(readers().items())
    target, found = work / "input.h5", work / "found"
    seen = {path.name.partition("_")[0] for path in found.iterdir()}
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    def test(content: bytes) -> None:
        if not content:
            return
        name, use = uses[content[0] % len(uses)]
        target.write_bytes(content[1:])
        problem = judge(use, target)
        if problem is not None:
            plain = re.sub(r"0x[0-9a-f]+|[0-9]+", "", problem.rpartition(" at ")[0])[:60] + problem[-30:]
            key = hashlib.sha256(plain.encode()).hexdigest()[:12]
            if key not in seen:
                seen.add(key)
                (found / f"{key}_{name}").write_bytes(content)
                (found / f"{key}_{name}.txt").write_text(problem)
                print(f"FINDING {name}: {problem}", flush=True)

    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", "-rss_limit_mb=0", "-max_len=40000", "-seed=1"]
    options += [f"-artifact_prefix={work}/crash_", "-print_final_stats=1", "-verbosity=1", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options, str(work / "corpus")], test)
    atheris.Fuzz()


def lines_covered(corpus: Path) -> dict[str, tuple[int, int]]:
    """Return lines reached by a corpus and all lines, by module: each input is read once more, and traced."""
    reached: dict[str, set[int]] = {}
    uses, target = list(readers().values()), corpus.with_name("again.h5")
    paths = {str(PACKAGE / f"{module}.py"): module for module in MODULES}

    def trace(frame, event, argument):  # type: ignore[no-untyped-def]
        if frame.f_code.co_filename not in paths:
            return None
        reached.setdefault(paths[frame.f_code.co_filename], set()).add(frame.f_lineno)
        return trace

    for path in sorted(corpus.iterdir()):
        content = path.read_bytes()
        if content:
            target.write_bytes(content[1:])
            sys.settrace(trace)
            try:
                judge(uses[content[0] % len(uses)], target)
            finally:
                sys.settrace(None)
    return {module: (len(reached.get(module, ())), _lines(PACKAGE / f"{module}.py")) for module in MODULES}


def _lines(path: Path) -> int:
    """Count the lines of code of all functions of a module."""
    stack, lines = [compile(path.read_text(), str(path), "exec")], set()
    while stack:
        code = stack.pop()
        stack += [part for part in code.co_consts if hasattr(part, "co_lines")]
        if code.co_name != "<module>":
            lines |= {line for _, _, line in code.co_lines() if line}
    return len(lines)


def main() -> None:
    """Fuzz in processes that may crash until the time is over; write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long in total")
    parser.add_argument("--work", type=Path, help="folder for corpus and findings; what is there is continued")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        fuzz(chosen.work, chosen.child)
        return
    work = chosen.work or Path(tempfile.mkdtemp(prefix="landscape_fuzz_"))
    if not (work / "corpus").exists():
        make_corpus(work / "corpus")
    (work / "found").mkdir(exist_ok=True)
    n_seeds, executions, crashes = len(list((work / "corpus").iterdir())), 0, Counter()
    edges, end = 0, time.monotonic() + chosen.seconds
    while (left := int(end - time.monotonic())) > 0:
        command = [sys.executable, __file__, "--work", str(work), "--child", str(left)]
        log = work / "log.txt"
        with open(log, "w", encoding="utf-8", errors="replace") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        text = log.read_text(encoding="utf-8", errors="replace")
        print("\n".join(line for line in text.splitlines() if line.startswith("FINDING")), flush=True)
        counts = [int(n) for n in re.findall(r"^#(\d+)\t", text, re.MULTILINE)]
        executions += max([*counts, *map(int, re.findall(r"number_of_executed_units: (\d+)", text))], default=0)
        edges = max([edges, *map(int, re.findall(r"cov: (\d+)", text))])
        if code and time.monotonic() < end:
            kind = next(iter(re.findall(r"ERROR: libFuzzer: (\w[\w ]*)|==ERROR: (.*)", text)), ("exit", ""))
            crashes[" ".join(kind).strip() or f"exit {code}"] += 1
            print(f"ended with {code}: {kind}\n{text[-1500:]}", flush=True)
            if not counts:
                raise SystemExit("the fuzzer does not start; see above")
    findings = {path.stem: path.with_suffix(".txt").read_text() for path in (work / "found").glob("*.txt")}
    covered = lines_covered(work / "corpus")
    result = {
        "seconds": chosen.seconds, "executions": executions, "seeds": n_seeds, "edges": edges,
        "corpus": len(list((work / "corpus").iterdir())), "lines": covered, "crashes": dict(crashes),
        "findings": findings, "fixed": FIXED, "tool": "atheris", "python": sys.version.split()[0],
    }  # fmt: skip
    write(result, chosen.out)
    print(json.dumps({**result, "work": str(work)}, indent=1))


def write(result: dict, folder: Path) -> None:
    """Write the result as fuzz.json and fuzz.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fuzz.json").write_text(json.dumps(result, indent=1) + "\n")
    rows = "\n".join(f"| {module} | {n} | {total} |" for module, (n, total) in result["lines"].items())
    n_crashes = sum(result["crashes"].values())
    found = "\n".join(f"- {text}" for text in result["findings"].values()) or "None."
    (folder / "fuzz.md").write_text(
        f"# Fuzzing the readers\n\n`python scripts/reliability/fuzz.py --seconds {result['seconds']}` with "
        f"{result['tool']} on Python {result['python']}: {result['executions']:,} executions from {result['seeds']} "
        f"good files of {len(readers())} readers; {result['corpus']:,} inputs that reach new code, "
        f"{result['edges']:,} edges of it; {n_crashes} crashes or hangs, {len(result['findings'])} errors that were "
        "not said in one line.\n\n"
        f"| module | lines reached | lines of functions |\n|---|---|---|\n{rows}\n\n"
        f"## Findings of this run\n\n{found}\n\n"
        "## Found by earlier runs, and fixed\n\n" + "\n".join(f"- {text}" for text in FIXED) + "\n"
    )


if __name__ == "__main__":
    main()
