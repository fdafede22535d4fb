"""Stop long jobs by SIGTERM and Ctrl-C at random moments, and see how soon they end, what they say and what they keep.

The jobs of `kill.py`, each stopped after a time drawn uniformly from zero to its own duration, and started again, until
there were `--stops` of each kind. Every second one is SIGTERM to the main process, the others Ctrl-C as a terminal
sends it: SIGINT to the whole process group. States are written every minute, so that what is stored is what the stop
has stored. Counted are the seconds until the last process of the job is gone. Asked of each stop: the exit code
128 + the signal, one line at the end that says how to go on, no traceback, no temporary file and no lock, every file
readable. The values at the end of the last life are compared, bit for bit, with those of a job that was never stopped.

    python scripts/reliability/stop.py [--stops 20] [--only train surface] [--out results/reliability]
"""

import argparse
import json
import mmap
import os
import re
import shutil
import signal
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kill
import numpy as np
import torch

from landscape import storage

_LAST = re.compile(
    r"stopped; what is done is stored(?: in \S+: run the same command again to go on|: the same command goes on)"
)
_NOTHING = re.compile(r"stopped before anything was stored: run the same command again")
_FIRST = 0.3  # seconds until a forked process has come to the command


@dataclass
class Stops:
    """What the stops of one kind showed.

    Attributes:
        seconds: Until the last process was gone, of each.
        lost: Seconds of work before each stop that the next start does again, of those that had anything to store.
        wrong: What was not as it should be, in words.
    """

    seconds: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def stop_often(kind: kill.Kind, n_stops: int, root: Path, seed: int) -> Stops:
    """Stop jobs of one kind."""
    generator = np.random.default_rng(seed)
    (root / "prepared").mkdir()
    (root / "temporary").mkdir()
    kind.prepare(root / "prepared")
    folder = kill.begin(kind, root)
    since = time.monotonic()
    kill.in_folder(folder, kind.words)
    duration, whole, whole_names = time.monotonic() - since, kind.result(folder), kill.names(folder)
    found, memory, folder = Stops(), mmap.mmap(-1, 16), kill.begin(kind, root)
    while len(found.seconds) < n_stops:
        (root / "log").unlink(missing_ok=True)
        process = kill.start(folder, kind.words, memory, kind.continued)
        code = kill.wait(process, generator.uniform(_FIRST, duration))
        if code is None:
            number = signal.SIGINT if len(found.seconds) % 2 else signal.SIGTERM
            name, begin = f"stop {len(found.seconds) + 1} ({number.name})", time.monotonic()
            (os.killpg if number == signal.SIGINT else os.kill)(process, number)
            code = kill.wait(process, kill.GONE)
            while kill.members(process) and time.monotonic() - begin < kill.GONE:
                time.sleep(0.01)
            seconds = time.monotonic() - begin
            if code != 128 + number and kill.names(folder) == whole_names:  # it had just come to its end by itself
                found.wrong += differing(kind, folder, whole, root)
                folder = kill.begin(kind, root)
                continue
            found.seconds.append(seconds)
            text = (root / "log").read_text()
            kept, started = struct.unpack_from("dd", memory)
            if kept > started:
                found.lost.append(max(0.0, begin - kept))
            found.wrong += [f"{name}: {problem}" for problem in problems(folder, code, number, text)]
        elif code:
            found.wrong.append(f"exit code {code}: {(root / 'log').read_text()[-500:]}")
        else:
            found.wrong += differing(kind, folder, whole, root)
            folder = kill.begin(kind, root)
    kill.in_folder(folder, kind.words)
    found.wrong += differing(kind, folder, whole, root)
    return found


def problems(folder: Path, code: int | None, number: int, text: str) -> list[str]:
    """Return what is wrong with a stop."""
    # The tracker speaks of semaphores since this job, forked as it is, ends without what the end of Python does.
    lines = [line for line in text.strip().splitlines() if "resource_tracker" not in line]
    found = [] if code == 128 + number else [f"exit code {code}: {text[-500:]}"]
    if not lines or not (_LAST.search(lines[-1]) or _NOTHING.search(lines[-1])) or "Traceback" in text:
        found.append(f"said: {text[-500:]}")
    found += [f"left: {path.name}" for path in folder.rglob(".*")]
    return found + kill.unreadable(folder)


def differing(kind: kill.Kind, folder: Path, whole: dict[str, Any], root: Path) -> list[str]:
    """Return the names of values that a job that was never stopped has otherwise."""
    names = kill.differences(kind.result(folder), whole)
    if names and kind.result is kill.surface_result:
        names = kill.differences(kind.result(folder), kill.whole_again(folder, root, kind))
    return [f"{name} differs" for name in names]


def main() -> None:
    """Stop the jobs, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=20, help="of each kind of job")
    parser.add_argument("--only", nargs="+", choices=list(kill.KINDS), help="these kinds; others keep their results")
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), help="folder for the results")
    chosen = parser.parse_args()
    out = chosen.out.absolute()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in the background ignore it
    kill.INTERVALS.update(dict.fromkeys(kill.INTERVALS, 60.0))
    file = out / "stop.json"
    jobs = json.loads(file.read_text(encoding="utf-8"))["jobs"] if chosen.only and file.exists() else {}
    for i, (name, kind) in enumerate(kill.KINDS.items()):
        if chosen.only and name not in chosen.only:
            continue
        root = Path(tempfile.mkdtemp(prefix="stop-"))
        try:
            jobs[name] = vars(stop_often(kind, chosen.stops, root, i))
        finally:
            shutil.rmtree(root, ignore_errors=True)
        print(f"{name}: {len(jobs[name]['seconds'])} stops, {max(jobs[name]['seconds']):.2f} s at most", flush=True)
        print("".join(f"  {line}\n" for line in jobs[name]["wrong"]), end="", flush=True)
    content = {"command": f"python scripts/reliability/stop.py --stops {chosen.stops}", "jobs": jobs}
    with storage.replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
