"""The command line: mtljax train | evaluate | ablate | report | analyze | plan | methods."""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from mtljax.commands.output import INTERRUPTED
from mtljax.commands.parser import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: the words after `mtljax`; None takes them from the command line.

    Returns:
      The exit status: 0; 1 when a run failed; 2 on bad input, after one sentence on standard error; 128 plus the
      signal's number when a signal ended a run that saved and can be resumed.
    """
    words = parser()
    options, overrides = words.parse_known_args(arguments)
    if overrides and not hasattr(options, "takes_overrides"):
        words.error(f"unrecognized arguments: {' '.join(overrides)}")
    _quiet_backends()
    from mtljax.errors import CompilerError
    from mtljax.training import NonFiniteLossError
    from mtljax.training.processes import StoppedElsewhereError

    try:
        status = _command(options.run)(options, overrides)
        sys.stdout.flush()  # here, where a reader who has left is understood
        return status
    except (ValueError, FileNotFoundError) as error:
        return _fail(error, 2)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (CompilerError, NonFiniteLossError, StoppedElsewhereError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED["SIGINT"])


def _command(path: str) -> Callable[..., int]:
    """The function of a command, given as module:name."""
    module, name = path.split(":")
    return getattr(importlib.import_module(f"mtljax.commands.{module}"), name)


def _fail(message: object, status: int) -> int:
    from mtljax.training import processes

    which = f"process {processes.index()}: " if processes.joined() else ""
    print(f"mtljax: {which}{message}", file=sys.stderr)
    return status


def _quiet_backends() -> None:
    """Keeps chatter of jax's backends out of the output, and orbax's tracebacks of failed saves, which we report."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
