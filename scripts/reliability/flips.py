"""Flip single bits of files of every kind, 1,000 times each, and read them.

- Files of the present format have a checksum: each flip must be refused by an error that names the file.
- Files of format 1 and of other programs have none (but those of zip and gzip): reading them must end within 5 s and
  1 GiB, in a process of its own, with a right result or an error of one line. A flip in a number cannot be seen there.

The files and the judges are those of `tests/test_storage.py` and `tests/test_bad_files.py`, which flip fewer bits.

    python scripts/reliability/flips.py [--flips 1000] [--out results/reliability]
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from landscape.storage import replacing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import test_bad_files
import test_storage


def main() -> None:
    """Flip, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000, help="of each kind of file")
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), help="folder for the results")
    chosen = parser.parse_args()
    n, out = chosen.flips, chosen.out.absolute()
    sealed, open_ = {}, {}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "written").mkdir()
        for kind, (path, read) in test_storage.write_all(Path(name) / "written").items():
            bits = random.Random(kind).choices(range(8 * path.stat().st_size), k=n)
            sealed[kind] = {"flips": n, "unnoticed": test_storage.unnoticed_flips(path, read, bits)}
            print(f"{kind}: {len(sealed[kind]['unnoticed'])} of {n} unnoticed", flush=True)
    with tempfile.TemporaryDirectory() as name:
        samples = test_bad_files.make_samples(Path(name) / "samples")
        for kind, sample in samples.items():
            (folder := Path(name) / kind).mkdir()
            found = [text for _, _, text in test_bad_files.read_flipped(kind, sample, folder, n)]
            wrong = [text for text in found if not test_bad_files.is_said(text)]
            open_[kind] = {"flips": n, "refused": n - found.count("right") - len(wrong), "wrong": wrong}
            print(f"{kind} without a checksum: {open_[kind]}", flush=True)
    command = f"python scripts/reliability/flips.py --flips {n}"
    with replacing(out / "flips.json") as temporary:
        content = {"command": command, "with a checksum": sealed, "without": open_}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
