"""Gather what the scripts of this folder measured into `results/reliability.md`.

With --tests the tests that are named there are run first, and how many passed is stored.

    python scripts/reliability/summary.py [--tests] [--results results/reliability]
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kill import lost_later

from landscape.storage import replacing

TESTS = {
    "folders and memory": "tests/test_full_disk.py",
    "locks": "tests/test_lock.py",
    "signals": "tests/test_kill.py tests/test_workers.py",
    "bad files": "tests/test_bad_files.py",
    "bad input": "tests/test_bad_input.py tests/test_bad_commands.py",
    "security": "tests/test_security.py",
    "versions": "tests/test_versions.py",
}

Row = tuple[str, str, str]
"""A promise, what was measured, and the command that measured it."""


def run_tests() -> dict[str, int]:
    """Run the tests; return how many passed.

    Raises:
        RuntimeError: One failed.
    """
    passed = {}
    for name, files in TESTS.items():
        words = [sys.executable, "-m", "pytest", *files.split()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        found = re.search(r"(\d+) passed", done.stdout)
        if done.returncode or not found:
            raise RuntimeError(f"{files}: {done.stdout[-2000:]}")
        passed[name] = int(found[1])
        print(f"{name}: {passed[name]} tests passed", flush=True)
    return passed


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def killed(found: dict[str, Any]) -> tuple[Row, str]:
    """Describe what `kill.py` found."""
    jobs = found["results"]
    lost = np.concatenate([job["lost"] for job in jobs.values()])
    wrong = sum(len(job[key]) for job in jobs.values() for key in ("unreadable", "differing", "left", "failed"))
    later = max(lost_later(job) for job in jobs.values())
    summary = (
        f"{len(lost)} kills of {len(jobs)} kinds of job: {wrong} files unreadable or left behind, values different or "
        f"jobs failed; {np.median(lost):.1f} s of work lost in the median, {later:.1f} s at most once a state is stored"
    )
    rows = [
        [
            *(name, f"{job['seconds']:.1f}", str(len(job["lost"]))),
            str(sum(len(job[key]) for key in ("unreadable", "differing", "left", "failed"))),
            *(f"{seconds:.2f}" for seconds in (np.median(job["lost"]), lost_later(job), max(job["lost"]))),
        ]
        for name, job in jobs.items()
    ]
    head = ["job", "its seconds", "kills", "wrong", "seconds lost, median", "at most, once something is stored"]
    text = f"""![seconds lost](reliability/kill.png)

{table([*head, "at most"], rows)}

"Wrong" counts unreadable files, bits that differ from a job that was never killed, files and processes left behind, and
jobs that failed. More than the interval between two states (0.2 s here, 2 to 5 s by default) is lost by kills in the
first seconds of a start, in which there is nothing to store yet: data are loaded, a plan is chosen and stored, and
worker processes, which import torch, begin. That takes the longer the more else a machine does. The lecture's page
stores each figure, and the studies and surfaces that it is made of. More: [kill.md](reliability/kill.md)."""
    return ("SIGKILL at any moment", summary, found["command"]), text


def stopped(found: dict[str, Any], passed: int) -> tuple[Row, str]:
    """Describe what `stop.py` found."""
    jobs = found["jobs"]
    seconds = np.concatenate([job["seconds"] for job in jobs.values()])
    wrong = sum(len(job["wrong"]) for job in jobs.values())
    within = int((seconds < 2).sum())
    summary = (
        f"{len(seconds)} stops: {within} ended within 2 s, {seconds.max():.2f} s at most; {wrong} without the state, "
        "the message or the same bits at the end"
    )
    rows = [
        [
            *(name, str(len(job["seconds"])), f"{np.median(job['seconds']):.2f}", f"{max(job['seconds']):.2f}"),
            *(f"{max(job['lost']):.2f}" if job["lost"] else "not seen", str(len(job["wrong"]))),
        ]
        for name, job in jobs.items()
    ]
    head = ["job", "stops", "seconds to the end, median", "at most", "seconds of work lost, at most", "wrong"]
    text = f"""{table(head, rows)}

Half are SIGTERM, half Ctrl-C. The processes that make the lecture's page are not watched as they store. A job ends
with `stopped; what is done is stored in ...: run the same command again to go on`. Further tests ({passed}):
`python -m pytest {TESTS["signals"]}`."""
    return ("SIGTERM and Ctrl-C", summary, found["command"]), text


def full(found: dict[str, Any], passed: int) -> tuple[list[Row], str]:
    """Describe what `disk.py` found."""
    jobs = found["jobs"]
    stopped_, wrong = (sum(map(count, jobs.values())) for count in (lambda j: j["stopped"], lambda j: len(j["wrong"])))
    n = found["trials"] * len(jobs)
    rows = [
        [name, f"{job['size'] / 1000:,.0f}", str(found["trials"]), str(job["stopped"]), str(len(job["wrong"]))]
        for name, job in jobs.items()
    ]
    text = f"""{table(["job", "kB", "trials", "stopped by the full disk", "wrong"], rows)}

Each trial leaves another part of the room that the job needs. Wrong would be another error than one line that says what
to do, a temporary file left, a file unreadable, or another bit at the end, after room was made. Read-only folders and
disks, folders removed in mid-run and too little memory (`RLIMIT_AS`) are tests: `python -m pytest
{TESTS["folders and memory"]}`."""
    tests = f"{passed} tests passed: a line that says what is wrong; what was stored stays; the job goes on"
    return [
        ("full disk", f"{n} trials, {stopped_} stopped by it: {wrong} wrong", found["command"]),
        ("read-only or removed folder, full memory", tests, f"python -m pytest {TESTS['folders and memory']}"),
    ], text


def shared(found: dict[str, Any], passed: int) -> tuple[Row, str]:
    """Describe what `share.py` found."""
    jobs = found["jobs"]
    refused, reads = (sum(job[key] for job in jobs.values()) for key in ("refused", "reads"))
    wrong = sum(len(job["wrong"]) for job in jobs.values())
    rows = [[name, str(job["refused"]), f"{job['reads']:,}", str(len(job["wrong"]))] for name, job in jobs.items()]
    text = f"""{table(["job", "second jobs refused", "files read meanwhile", "wrong"], rows)}

A refusal names the first one's process, host and command. The lock of a dead process is taken over, and the operating
system releases it with the process, however that ends; {passed} tests on that: `python -m pytest {TESTS["locks"]}`."""
    summary = (
        f"{refused} second jobs refused with the owner's process and host, {reads:,} reads meanwhile: {wrong} wrong"
    )
    return ("two jobs on one file, and readers", summary, found["command"]), text


def damaged(flips: dict[str, Any], fuzz: dict[str, Any], passed: int) -> tuple[list[Row], str]:
    """Describe what `flips.py` and `fuzz.py` found."""
    sealed, others = flips["with a checksum"], flips["without"]
    n, unnoticed = (
        sum(job["flips"] for job in sealed.values()),
        sum(len(job["unnoticed"]) for job in sealed.values()),
    )
    n_others, wrong = sum(job["flips"] for job in others.values()), sum(len(job["wrong"]) for job in others.values())
    rows: list[Row] = [
        ("a flipped bit in a stored file", f"{n:,} flips, {n - unnoticed:,} noticed", flips["command"]),
        (
            "a flipped bit in a file without a checksum (format 1, other programs')",
            f"{n_others:,} flips: {wrong} crashes, hangs or errors of more than a line",
            flips["command"],
        ),
        (
            "coverage-guided fuzzing of the readers",
            f"{fuzz['executions']:,} files in {fuzz['seconds']} s: {len(fuzz['crashes'])} crashes or hangs",
            f"python scripts/reliability/fuzz.py --seconds {fuzz['seconds']}",
        ),
        (
            "files made to harm: links, bombs, pickles, absurd sizes and types",
            f"{passed} tests passed",
            f"python -m pytest {TESTS['bad files']}",
        ),
    ]
    sealed_names, other_names = (", ".join(jobs) for jobs in (sealed, others))
    text = f"""With a checksum: {sealed_names}.

Without: {other_names}. These are read in a process of its own, with 5 s and 1 GiB.

The fuzzer's findings, all of them mended, are in [fuzz.md](reliability/fuzz.md)."""
    return rows, text


def long_runs(found: dict[str, Any]) -> tuple[list[Row], str]:
    """Describe what `long_runs.py` found."""
    jobs, overhead = found["jobs"], found["overhead"]
    rows = [
        [name, f"{job['total']:,}"]
        + [f"{job[f'memory {when}, MB']:.0f}" for when in ("after 20 %", "at the end", "at most")]
        + [f"{job[what]['after 20 %']}, {job[what]['end']}" for what in ("open files", "threads")]
        for name, job in jobs.items()
    ]
    grown = ", ".join(
        f"{job['memory at the end, MB'] - job['memory after 20 %, MB']:+.1f} MB ({name}, {job['total']:,})"
        for name, job in jobs.items()
    )
    share, added = overhead["in the recorder, percent"], overhead["added, percent"]
    head = ["job", "points, steps, calls", "MB after 20 %", "at the end", "at most"]
    text = f"""![memory](reliability/long_runs.png)

{table([*head, "open files after 20 %, at the end", "threads, likewise"], rows)}

The lecture's network, {overhead["epochs"]} epochs of {overhead["steps per epoch"]} steps, recorded every epoch: the
whole training takes from {added["min"]:.2f} to {added["max"]:.2f} % longer in {len(overhead["seconds with"])} rounds,
of which the recorder's methods are {share["min"]:.2f} to {share["max"]:.2f} %.
More: [long_runs.md](reliability/long_runs.md)."""
    return [
        ("memory, files and threads of long jobs", f"from 20 % of the work to the end {grown}", found["command"]),
        (
            "time that recording every epoch adds",
            f"{added['median']:.2f} % of the training, {share['median']:.2f} % in the recorder's methods",
            found["command"],
        ),
    ], text


def main() -> None:
    """Write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="run the tests that are named")
    parser.add_argument("--results", type=Path, default=Path("results/reliability"), help="folder of the measurements")
    chosen = parser.parse_args()
    if chosen.tests:
        passed = run_tests()
        with replacing(chosen.results / "tests.json") as temporary:
            temporary.write_text(json.dumps(passed, indent=1) + "\n", encoding="utf-8")
    names = ("kill", "stop", "disk", "share", "flips", "fuzz", "long_runs", "tests")
    found = {name: json.loads((chosen.results / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    passed = found["tests"]
    kill_row, kill_text = killed(found["kill"])
    stop_row, stop_text = stopped(found["stop"], passed["signals"])
    disk_rows, disk_text = full(found["disk"], passed["folders and memory"])
    share_row, share_text = shared(found["share"], passed["locks"])
    file_rows, file_text = damaged(found["flips"], found["fuzz"], passed["bad files"])
    long_rows, long_text = long_runs(found["long_runs"])
    tests: list[Row] = [
        (promise, f"{passed[name]} tests passed", f"python -m pytest {TESTS[name]}")
        for promise, name in (
            ("bad input to every public function and command", "bad input"),
            ("no code run, no network but named downloads, text from files escaped", "security"),
            ("files of older versions open, newer ones are refused", "versions"),
        )
    ]
    rows = [kill_row, stop_row, *disk_rows, share_row, *file_rows, tests[0], *long_rows, *tests[1:]]
    parts = [
        "# Nothing lost, nobody let in",
        table(["promise", "measured", "command"], [[row[0], row[1], f"`{row[2]}`"] for row in rows]),
        "Made by `python scripts/reliability/summary.py --tests` out of what the scripts wrote when each was run; the "
        f"kills: {found['kill']['machine']}, some of them with other work beside them.",
        *("## Killed", kill_text, "## Stopped", stop_text, "## A full disk", disk_text),
        *("## Two jobs on one file", share_text, "## Damaged files", file_text, "## Long runs", long_text),
    ]
    with replacing(chosen.results.with_suffix(".md")) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
