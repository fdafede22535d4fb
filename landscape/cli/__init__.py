"""The command line: parse, call one public function, say where the result is.

Exit code 0: done. 1: a fault of the machine or of landscape. 2: a mistake in the call, said in one line with the
remedy. 130: stopped by Ctrl-C, 143: by SIGTERM, 129: by the end of the terminal; what was done is stored. A traceback
only with `--debug`.
"""

import argparse
import logging
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import landscape
from landscape.cli import files, networks, studies, topology
from landscape.cli.texts import Printable
from landscape.interruption import Stopped, stoppable

_CONTINUED = ("demo", "train", "surface", "restarts", "minima")  # by the same command
_NO_MEMORY = re.compile("can't allocate memory|cannot allocate memory|out of memory", re.IGNORECASE)
_MISTAKES = (
    *(ValueError, TypeError, ImportError, FileNotFoundError, FileExistsError, IsADirectoryError),
    *(NotADirectoryError, PermissionError),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `landscape ARGUMENTS` and return its exit code."""
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else arguments
    # argparse takes the range -1:1 for an option, unless it begins with a space
    options = parser.parse_args([f" {word}" if re.fullmatch(r"-[\d.][^:]*:.+", word) else word for word in words])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("kaleido", "choreographer", "logistro"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with stoppable(lambda number: _say_stopped(options)) as signals:
            return _run(options, signals)
    except KeyboardInterrupt as error:  # out here: it may come at the very beginning and end, too
        _say_stopped(options)
        return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def _run(options: argparse.Namespace, signals: Sequence[int]) -> int:
    """Run a command, say what went wrong, and return the exit code; `signals` are those received so far."""
    try:
        with redirect_stdout(Printable(sys.stdout)):  # type: ignore[type-var]
            options.run(options)
    except Exception as error:
        if signals:  # compiled code may turn an interruption into an error of its own
            _say_stopped(options)
            return 128 + signals[0]
        if options.debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        no_memory = isinstance(error, MemoryError) or _NO_MEMORY.search(text) is not None
        if no_memory:
            text = (
                f"not enough memory ({text}): free some, or let less be held at once (--memory, --chunk-size, "
                "--batch-size, --limit, --workers); what was stored is intact"
            )
        elif not isinstance(error, (*_MISTAKES, OSError)):
            text = f"{type(error).__name__}: {text} (--debug shows where)"
        print(f"landscape {options.command}: {text}", file=Printable(sys.stderr))
        return 2 if isinstance(error, _MISTAKES) and not no_memory else 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands and options."""
    parser = argparse.ArgumentParser(
        prog="landscape", description=landscape.__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"landscape {landscape.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (networks, studies, files, topology):
        for name, (summary, add_options, run) in module.COMMANDS.items():
            command = commands.add_parser(
                name,
                help=summary,
                description=f"{summary[0].upper()}{summary[1:]}.",
                allow_abbrev=False,
                formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            )
            add_options(command)
            command.add_argument("--debug", action="store_true", help="show the traceback of an error")
            command.set_defaults(run=run)
    return parser


def _say_stopped(options: argparse.Namespace) -> None:
    """Say in one line what a stopped command leaves, and how to go on."""
    out = getattr(options, "out", None)
    if options.command not in _CONTINUED:
        text = "stopped: run the same command again"
    elif out is None or not (out.exists() or Path(f"{out}.parts").exists()):
        text = "stopped before anything was stored: run the same command again"
    else:
        text = f"stopped; what is done is stored in {out}: run the same command again to go on"
    print(f"\n{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)  # not behind a progress bar
