"""The `ray-mlc` command line.

Commands parse, hand over and print; what they call is in `runtime` and below. Heavy imports are
inside the commands, so that `--help` answers at once. Data goes to stdout, talk to stderr.
"""

from __future__ import annotations

import atexit
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line; errors of ours become one line and an exit code."""
    from ray_mlc.errors import RayMlcError, redact
    from ray_mlc.model.engines.kernels import keep_few_kernels

    signal.signal(signal.SIGTERM, _interrupt)
    keep_few_kernels()
    try:
        from ray_mlc.cli.app import app

        # the parser turns Ctrl-C and exits into a number that it returns
        result = app(standalone_mode=False)
        if result == 130:
            raise KeyboardInterrupt
        if isinstance(result, int) and result:
            sys.exit(result)
    except RayMlcError as error:
        _fail(redact(str(error)), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again", 130)
    except BrokenPipeError:  # `ray-mlc … | head`
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        code = _usage_exit_code(error)
        if code is None:
            raise  # a bug keeps its traceback
        sys.exit(code)
    finally:
        _forget_unhandled_interrupt()
        # all is said: Ctrl-C while libraries clear up, for seconds, would print their traces
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _forget_unhandled_interrupt() -> None:
    """Let the exit code be the one that was chosen.

    An interrupt that leaves an `exec` of a text, as importing a module with dataclasses or named
    tuples runs them, is noted by CPython as handled by nobody: `python -m` then ends by SIGINT at
    the very end, whatever was handled since. Only another text that is run clears the note.
    """
    exec("pass")


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does."""
    del signal_number, frame
    raise KeyboardInterrupt


def _fail(message: str, exit_code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    # in the log of a job on a cluster, the command is not what its user typed
    if exit_code == 130:
        from ray_mlc.runtime.job_ids import is_submitted

        if not is_submitted():
            sys.stderr.write(f"continue with: {_command()}\n")
    sys.stderr.flush()
    sys.exit(exit_code)


def _command() -> str:
    """The command as it was typed."""
    import shlex

    return shlex.join(["ray-mlc", *sys.argv[1:]])


def _usage_exit_code(error: Exception) -> int | None:
    """Exit code of what the option parser raised, after printing it; None for other errors."""
    import typer
    from typer.exceptions import TyperException

    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, TyperException):
        message = error.format_message().replace("\n", " ")
        if message:  # help was asked for by giving nothing
            sys.stderr.write(f"error: {message}\n")
        context = getattr(error, "ctx", None)
        if context is not None:
            sys.stderr.write(f"see: {context.command_path} --help\n")
        return 2
    return None
