"""The command line: parse, call one public function, say where the result is.

Exit code 0: done. 1: a fault of the machine or of landscape. 2: a mistake in the call, said in one line with the
remedy. 130: interrupted, state saved. A traceback only with `--debug`.
"""

import argparse
import logging
import re
import signal
import sys
from collections.abc import Sequence

import landscape
from landscape.cli import files, networks, studies, topology

_MISTAKES = (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError, ImportError, IsADirectoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `landscape ARGUMENTS` and return its exit code."""
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else arguments
    # argparse takes the range -1:1 for an option, unless it begins with a space
    options = parser.parse_args([f" {word}" if re.fullmatch(r"-[\d.][^:]*:.+", word) else word for word in words])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("kaleido", "choreographer", "logistro"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("interrupted; what was done is saved: run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"landscape {options.command}: {text}", file=sys.stderr)
        return 2 if isinstance(error, _MISTAKES) else 1
    finally:
        signal.signal(signal.SIGTERM, previous)
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


def _interrupt(number: int, frame: object) -> None:
    """Let SIGTERM save what was done, like Ctrl-C."""
    raise KeyboardInterrupt
