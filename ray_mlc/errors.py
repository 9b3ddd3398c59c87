"""What can go wrong, and with which exit code a command says so.

    RayMlcError                 1  failed; safe to run again
    ├── UsageError              2  wrong usage, config or input
    │   ├── ConfigError            a job file or option
    │   ├── DataError              examples or a corpus
    │   ├── ModelError             a model folder or an encoder
    │   ├── RunMismatchError       the output holds another run
    │   └── ResourceError          the machine or cluster is too small for what was asked
    ├── StorageError            1  a disk or an object store refused
    ├── LeaseError              1  another command writes to the same output
    ├── LimitError              3  finished, but more rows or files set aside than `limits` allow
    ├── GateError               4  `verify` or `compare` did not hold
    └── InterruptedRunError   130  Ctrl-C or SIGTERM

Every message is one line: what, where, what to do. The CLI prints it and exits with `exit_code`;
anything that is not a `RayMlcError` is a bug and keeps its traceback.
"""


class RayMlcError(Exception):
    """Base of all errors that `ray_mlc` raises on purpose."""

    exit_code = 1


class UsageError(RayMlcError):
    """The command, its job file or its input is wrong: running it again changes nothing."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or value of a job file or option is wrong."""


class DataError(UsageError):
    """Examples or a corpus cannot be used as asked."""


class ModelError(UsageError):
    """A model folder or encoder cannot be used as asked."""


class RunMismatchError(UsageError):
    """The output folder holds a run that differs from the command."""


class ResourceError(UsageError):
    """The machine or cluster has less than the job asks for."""


class StorageError(RayMlcError):
    """A disk or an object store refused a read or a write."""


class LeaseError(RayMlcError):
    """Another command writes to the same output."""


class LimitError(RayMlcError):
    """The run is finished, but more was set aside than `limits` allow."""

    exit_code = 3


class GateError(RayMlcError):
    """A check that the user asked for did not hold."""

    exit_code = 4


class InterruptedRunError(RayMlcError):
    """The run was interrupted; the same command continues it."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line that is short enough for ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
