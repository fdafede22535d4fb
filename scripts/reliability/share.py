"""Start second jobs on the files of running ones, and read these files all the while.

Each of the jobs of `kill.py` runs; meanwhile the same command is given again and again from another process, and
between that the files are read, where there are any yet (minima are told apart when all runs have ended). A second job
must end with one line that names process and host of the first; what is read must be whole. Each kind is begun anew
until there were `--attempts` of second jobs. The first one's values are compared, bit for bit, with those of a job that
ran undisturbed.

    python scripts/reliability/share.py [--attempts 50] [--out results/reliability]
"""

import argparse
import json
import mmap
import os
import platform
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

import kill
import torch
from disk import command
from stop import JOBS, differing

from landscape import Study, Surface, Trajectory, storage
from landscape.catalog import Catalog

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "train": ("run/trajectory.h5", Trajectory.load),
    "surface": ("surface.h5", Surface.load),
    "surface, 2 workers": ("surface.h5", Surface.load),
    "restarts": ("study.h5", Study.load),
    "minima": ("minima.h5", Catalog.load),
}
_READS = 20  # between two second jobs


@dataclass
class Shared:
    """What second jobs and readers met.

    Attributes:
        refused: Second jobs that were refused with the first one's process and host.
        reads: Files read whole.
        wrong: Everything else, in words.
    """

    refused: int = 0
    reads: int = 0
    wrong: list[str] = field(default_factory=list)


def share(name: str, attempts: int, root: Path) -> Shared:
    """Disturb jobs of one kind."""
    kind, (file, read) = kill.KINDS[name], READERS[name]
    (root / "prepared").mkdir()
    (root / "temporary").mkdir()
    kind.prepare(root / "prepared")
    folder = kill.begin(kind, root)
    kill.in_folder(folder, kind.words)
    whole, found, second = kind.result(folder), Shared(), command(kind.words)
    while found.refused < attempts and len(found.wrong) < attempts:
        folder = kill.begin(kind, root)
        memory = mmap.mmap(-1, 16)
        process = kill.start(folder, kind.words, memory, kind.continued)
        while not list(folder.rglob(".*.holder")):
            time.sleep(0.01)
        while (code := kill.wait(process, 0)) is None:
            with chdir(folder):
                error = second()
            who = f"is being written by process {process} on {platform.node()} since "
            if error and who in error:
                found.refused += 1
            elif error is None:  # the first job had written all, and was about to end
                since = time.monotonic()
                code = kill.wait(process, None)
                if struct.unpack_from("d", memory)[0] > since:
                    found.wrong.append("both jobs wrote")
                break
            else:
                found.wrong.append(f"second job: {error}")
            for _ in range(_READS):
                try:
                    read(folder / file)
                    found.reads += 1
                except FileNotFoundError:  # nothing stored yet
                    break
                except Exception as failure:
                    if "is not finished: run the same command again" in str(failure):  # a catalog of minima
                        break
                    found.wrong.append(f"reader: {failure}")
        if code:
            found.wrong.append(f"the first job ended with {code}: {(root / 'log').read_text()[-500:]}")
            continue
        found.wrong += differing(kind, folder, whole, root)
    return found


def main() -> None:
    """Disturb the jobs, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=50, help="second jobs of each kind")
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), help="folder for the results")
    chosen = parser.parse_args()
    out = chosen.out.absolute()
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    jobs = {}
    for name in JOBS:
        root = Path(tempfile.mkdtemp(prefix="share-"))
        try:
            jobs[name] = vars(share(name, chosen.attempts, root))
        finally:
            shutil.rmtree(root, ignore_errors=True)
        print(f"{name}: {jobs[name]}"[:2000], flush=True)
    content = {"command": f"python scripts/reliability/share.py --attempts {chosen.attempts}", "jobs": jobs}
    with storage.replacing(out / "share.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
