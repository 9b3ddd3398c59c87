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
    ├── JobFailedError             a job on a cluster: its own exit code
    ├── LimitError              3  finished, but more rows or files set aside than `limits` allow
    ├── GateError               4  `verify` or `compare` did not hold
    └── InterruptedRunError   130  Ctrl-C or SIGTERM

Every message is one line: what, where, what to do. The CLI prints it and exits with `exit_code`;
anything that is not a `RayMlcError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote

SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RAY_AUTH_TOKEN",
)
"""Environment variables whose values no error text may show."""
SECRET_PARAMETER = re.compile(
    r"([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|sig"
    r"|(?:aws_)?(?:access_key(?:_id)?|secret_key|secret_access_key|session_token)|account_key"
    r"|sas_token|token)=)([^&\s\"'<>]+)",
    re.IGNORECASE,
)
"""A parameter of a URL that grants access, and its value."""
LONGEST = 590
"""Characters of a message: what is wrong stands at its beginning, what to do at its end."""
SECRET_USER_INFO = re.compile(r"(://)[^\s@/:]+:(?!\d+/)[^\s@]+(@)")
"""A name and a password before the host of a URL."""


class RayMlcError(Exception):
    """Base of all errors that `ray_mlc` raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        """Take a message; names of files and columns in it may hold anything."""
        super().__init__(as_line(message))


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


class JobFailedError(RayMlcError):
    """A job on a cluster did not succeed; its exit code is passed on."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """Take a message, and the exit code of the command on the cluster."""
        super().__init__(message)
        self.exit_code = exit_code


class LimitError(RayMlcError):
    """The run is finished, but more was set aside, or has drifted, than `limits` allow."""

    exit_code = 3


class GateError(RayMlcError):
    """A check that the user asked for did not hold."""

    exit_code = 4


class InterruptedRunError(RayMlcError):
    """The run was interrupted; the same command continues it."""

    exit_code = 130


def as_line(message: str) -> str:
    """A message without line breaks and other marks that do not print; its middle cut if long."""
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in message
    )
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 205]} … {line[-200:]}"


def redact(text: str) -> str:
    """`text` with `***` in the place of secrets: of the environment, and of URLs."""
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 8:  # a shorter one is a stand-in, and would be found inside of words
            text = text.replace(value, "***").replace(quote(value, safe=""), "***")
    text = SECRET_PARAMETER.sub(r"\1***", text)
    return SECRET_USER_INFO.sub(r"\1***\2", text)


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line that is short enough for ours."""
    return redact(str(error).strip() or type(error).__name__).splitlines()[0][:300]
