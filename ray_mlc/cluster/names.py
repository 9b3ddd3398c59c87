"""What names, references and times of clusters may look like.

Settings end up in manifests, in commands that the launcher pastes together, and in `#SBATCH`
lines. Each kind of value is checked against what its consumer accepts, so that nothing that means
something to a shell, to YAML or to Slurm gets that far.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Annotated
from zoneinfo import available_timezones

from pydantic import AfterValidator

from ray_mlc.errors import ConfigError

LONGEST_NAME = 30
"""Characters of a cluster's name: KubeRay adds to it, and allows a RayJob 47 in all."""
_DNS = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)


def _matching(pattern: str, expected: str, longest: int = 253) -> Callable[[str], str]:
    """A check that a whole text matches; `expected` says what a good one looks like."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if len(value) > longest or compiled.fullmatch(value) is None:
            raise ValueError(f"expected {expected}")
        return value

    return check


def _not_a_token(value: str) -> str:
    # what `openssl rand -hex` and Ray make; as the name of a Secret it would pass unnoticed
    if re.fullmatch(r"[0-9a-f-]{32,}", value):
        raise ConfigError(
            "a Secret's name looks like a token: name the Secret that holds it; a token itself "
            "belongs into no file"
        )
    return value


ClusterName = Annotated[
    str,
    AfterValidator(
        _matching(
            "[a-z](?:[-a-z0-9]*[a-z0-9])?",
            "a DNS-1123 label that begins with a letter: a-z, 0-9 and -, at most "
            f"{LONGEST_NAME} characters",
            LONGEST_NAME,
        )
    ),
]
DnsLabel = Annotated[
    str, AfterValidator(_matching(_DNS, "a DNS-1123 label: a-z, 0-9 and -, at most 63", 63))
]
DnsName = Annotated[
    str, AfterValidator(_matching(rf"{_DNS}(?:\.{_DNS})*", "a DNS-1123 name: a-z, 0-9, - and ."))
]
SecretName = Annotated[DnsName, AfterValidator(_not_a_token)]
LabelKey = Annotated[
    str,
    AfterValidator(
        _matching(
            rf"(?:{_DNS}(?:\.{_DNS})*/)?{_QUALIFIED}", "a Kubernetes label key such as team", 317
        )
    ),
]
LabelValue = Annotated[
    str, AfterValidator(_matching(rf"(?:{_QUALIFIED})?", "a Kubernetes label value", 63))
]
ImageReference = Annotated[
    str,
    AfterValidator(
        _matching(
            r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?(?::\d+)?(?:/[a-z0-9][a-z0-9._-]*)*"
            r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|(?::[A-Za-z0-9_.-]+)?@sha256:[0-9a-f]{64})",
            "an image with a tag or a digest, such as registry.example.com/ray-mlc:1.0-cpu",
            500,
        )
    ),
]
RayVersion = Annotated[
    str,
    AfterValidator(_matching(r"2\.6[0-3]\.\d{1,2}", "a Ray from 2.60 to before 2.64: 2.60.0", 10)),
]
HostName = Annotated[
    str, AfterValidator(_matching(r"[A-Za-z0-9](?:[-A-Za-z0-9.:]*[A-Za-z0-9])?", "a host or IP"))
]
Word = Annotated[
    str, AfterValidator(_matching(r"[A-Za-z0-9][-A-Za-z0-9_.]*", "letters, digits, -, _ and .", 63))
]
CloudName = Annotated[
    str,
    AfterValidator(
        _matching(r"[A-Za-z0-9](?:[-A-Za-z0-9_.:/@+=]*[A-Za-z0-9])?", "a name of the cloud")
    ),
]
AbsolutePath = Annotated[
    str,
    AfterValidator(
        _matching(
            r"(?!.*(?:^|/)\.\.?(?:/|$))/[A-Za-z0-9_.@+-]+(?:/[A-Za-z0-9_.@+-]+)*",
            "an absolute path without spaces, . and ..",
            200,
        )
    ),
]
HomePath = Annotated[
    str, AfterValidator(_matching(r"(?:~/|/)[A-Za-z0-9_.@+/-]+", "a path from / or ~/", 200))
]
Location = Annotated[
    str,
    AfterValidator(
        _matching(
            r"(?:[a-z0-9]+:/)?(?:/[A-Za-z0-9_.@+=-]+)+/?", "a bucket's URI or an absolute path", 500
        )
    ),
]
NfsExport = Annotated[
    str,
    AfterValidator(
        _matching(
            r"[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?:(?:/|(?:/[A-Za-z0-9_.@+-]+)+)",
            "a server and a folder, such as nfs.example.com:/models",
        )
    ),
]
Endpoint = Annotated[
    str,
    AfterValidator(
        _matching(
            r"https?://[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?(?::\d{1,5})?",
            "a URL such as https://minio.example.com:9000",
        )
    ),
]


def _schedule(value: str) -> str:
    fields = value.split(" ")
    if len(fields) != len(_CRON):
        raise ValueError("expected five fields of cron such as 0 22 * * *")
    for text, (name, low, high, names) in zip(fields, _CRON, strict=True):
        for item in text.split(","):
            if not _is_cron_item(item, low, high, names):
                raise ValueError(f"expected {low} to {high}, a range, a list or * as {name}")
    return value


def _is_cron_item(item: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    span, slash, step = item.partition("/")
    if slash and not (re.fullmatch(r"[0-9]{1,3}", step) and int(step) > 0):
        return False
    if span == "*":
        return True
    ends: list[int] = []
    for end in span.split("-"):
        if end.lower() in names:
            ends.append(names.index(end.lower()) + low)
        elif re.fullmatch(r"[0-9]{1,2}", end):
            ends.append(int(end))
        else:
            return False
    return len(ends) <= 2 and low <= ends[0] <= ends[-1] <= high


@cache
def _known_zones() -> frozenset[str]:
    return frozenset(available_timezones())  # looks through hundreds of files


def _time_zone(value: str) -> str:
    known = _known_zones()
    fits = re.fullmatch(r"[A-Za-z]+(?:/[A-Za-z0-9_+-]+)*", value) is not None
    # a machine without zone files knows none: the cluster will say so
    if not fits or (known and value not in known):
        raise ValueError("expected a time zone such as Europe/Berlin or Etc/UTC")
    return value


Schedule = Annotated[str, AfterValidator(_schedule)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
