"""A cluster's Jobs API: found, asked, followed; what goes wrong said in one line.

Ray's own client does the talking, so that tokens (`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`,
`~/.ray/auth_token`), https, and headers (`RAY_JOB_HEADERS`) work as they do for `ray job`. No token
is ever read here: only whether there is one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from ray_mlc.errors import ConfigError, RayMlcError, ResourceError, UsageError, first_line
from ray_mlc.runtime.job_ids import Attempt
from ray_mlc.runtime.session import set_environment, stderr_closed

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where Ray looks for an address; both would win over one that is given to its client."""
_NO_AGENT = "No available agent"
"""What a head says whose agent has not begun to listen, or could not."""
AGENT_WAIT_S = 60.0
"""Longest time that a head, just started, may take until it accepts jobs."""
AWAY_S = 300.0
"""Longest time that a cluster may be away while a job is followed."""
SILENCE_S = 60.0
"""A stream of logs that is silent for so long is opened anew: it may be dead."""
TALKATIVE = (
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray's client, each with a level of its own: of uploads and closed streams."""
POLL_S = 1.0
CLOSING_S = 0.1
Answer = TypeVar("Answer")


class AlreadySubmittedError(RayMlcError):
    """Somebody else has submitted this attempt."""


class UnknownJobError(UsageError):
    """The cluster has no job of that name."""


def choose_address(given: str | None, job: str | None = None) -> str:
    """The cluster to use: the option, the environment, the job file.

    Raises:
        ConfigError: If nothing names one. Ray would take any that it finds on this machine.
    """
    named = (given, *(os.environ.get(name) for name in ADDRESS_VARIABLES), job)
    for address in named:
        if address:
            return address
    raise ConfigError(
        "no cluster is named: give --address http://HEAD:8265, or set RAY_ADDRESS or ray.address"
    )


class JobClient:
    """The Jobs API of one cluster."""

    def __init__(self, address: str, *, verify: str | None = None) -> None:
        """Connect.

        Args:
            address: `http://HEAD:8265`, `https://…`, `HEAD:6379`, or `auto`.
            verify: File or folder of certificates to trust, or `false`; None: those of
                `REQUESTS_CA_BUNDLE`, else of the system.

        Raises:
            UsageError: If the cluster refuses the token, or there is none.
            RayMlcError: If it does not answer.
        """
        self.address = address
        headers = _headers(os.environ.get("RAY_JOB_HEADERS"))
        trusted = _verify(verify or os.environ.get("REQUESTS_CA_BUNDLE"))
        set_environment()
        _use_token_if_there_is_one()
        from ray.job_submission import JobSubmissionClient

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        # for any address but the dashboard's, Ray's C++ side looks for one, and talks
        quiet = nullcontext() if "://" in address else stderr_closed()
        with self._asking(), _without(ADDRESS_VARIABLES), quiet:
            self._client = JobSubmissionClient(address, headers=headers, verify=trusted)

    @property
    def ray_version(self) -> str:
        """Version of the Ray that the cluster runs."""
        from ray_mlc.runtime.ray_private import server_version

        return server_version(self._client)

    def attempts(self) -> list[Attempt]:
        """All submissions that the cluster remembers."""
        with self._asking():
            found = self._client.list_jobs()
        return [attempt_of(details) for details in found if details.submission_id]

    def attempt(self, id: str) -> Attempt:
        """One submission, as it is now."""
        with self._asking():
            return attempt_of(self._client.get_job_info(id))

    def log(self, id: str) -> str:
        """All that the job has printed."""
        with self._asking():
            return str(self._client.get_job_logs(id))

    def submit(
        self,
        id: str,
        entrypoint: str,
        *,
        folder: Path,
        metadata: Mapping[str, str],
        environment: Mapping[str, str],
        resources: Mapping[str, float],
        say: Callable[[str], None],
    ) -> None:
        """Submit, and wait for a head that has only just started.

        Args:
            id: Submission id.
            entrypoint: Shell line.
            folder: What travels with it, and is its working folder.
            metadata: What everybody may see of it.
            environment: Variables of the job and of its supervisor.
            resources: What the process itself takes: `entrypoint_num_cpus`, `entrypoint_num_gpus`.
            say: Told when there is something to wait for.

        Raises:
            AlreadySubmittedError: If that id is taken.
        """
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

        told: list[str] = []

        def wait(state: Any) -> None:
            del state
            if not told:
                told.append("the cluster accepts no jobs yet: trying for a minute")
                say(told[0])

        attempts = Retrying(
            retry=retry_if_exception(lambda error: _NO_AGENT in str(error)),
            stop=stop_after_delay(AGENT_WAIT_S),
            wait=wait_fixed(2),
            before_sleep=wait,
            reraise=True,
        )
        with self._asking():
            attempts(
                self._client.submit_job,
                entrypoint=entrypoint,
                submission_id=id,
                runtime_env={"working_dir": str(folder), "env_vars": dict(environment)},
                metadata=dict(metadata),
                **resources,
            )

    def stop(self, id: str) -> None:
        """Ask a job to stop."""
        with self._asking():
            self._client.stop_job(id)

    def wait(self, id: str, until: Callable[[Attempt], bool], *, timeout_s: float) -> Attempt:
        """Poll a job until a condition holds or the time is over; how it is then."""
        deadline = time.monotonic() + timeout_s

        def look() -> tuple[Attempt, bool]:
            found = self.attempt(id)
            return found, until(found)

        while True:
            attempt, holds = self._patiently(look)
            if holds or time.monotonic() > deadline:
                return attempt
            time.sleep(POLL_S)

    def follow(self, id: str, write: Callable[[str], None]) -> Attempt:
        """Pass on what a job prints until it has ended; how it ended.

        A dropped connection is opened again; what was passed on is not repeated.

        Raises:
            RayMlcError: If the cluster is away for longer than `AWAY_S`.
        """
        seen = 0

        def pass_on(text: str) -> None:
            nonlocal seen
            write(text)
            seen += len(text)

        while True:
            asyncio.run(self._tail(id, seen, pass_on))
            attempt = self._patiently(lambda: self.attempt(id))
            if attempt.over:
                with suppress(RayMlcError):  # its node, and with it the log, may be gone
                    write(self.log(id)[seen:])
                return attempt
            time.sleep(POLL_S)

    async def _tail(self, id: str, seen: int, pass_on: Callable[[str], None]) -> None:
        """Read the stream once, from the beginning of the log, and leave out what was seen."""
        import aiohttp

        position = 0
        try:
            async with aclosing(self._client.tail_job_logs(id)) as stream:
                while True:
                    text = None
                    # only the stream may break: where nobody takes the log any more, that is all
                    with suppress(RuntimeError, OSError, aiohttp.ClientError):
                        text = await asyncio.wait_for(anext(stream, None), SILENCE_S)
                    if text is None:
                        return
                    skip = min(len(text), max(0, seen - position))
                    position += len(text)
                    if skip < len(text):
                        pass_on(text[skip:])
        finally:
            # aiohttp closes connections, above all those of TLS, in later turns of the loop
            await asyncio.sleep(CLOSING_S)

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again while the cluster does not answer: a network drops, a head restarts."""
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return ask()
            except UsageError:
                raise
            except RayMlcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(2 * POLL_S)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what Ray's client raises into one line."""
        try:
            yield
        except RayMlcError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise self._error(error) from None
        except Exception as error:
            from ray.exceptions import RayError

            if not isinstance(error, RayError):
                raise
            raise self._error(error) from None

    def _error(self, error: Exception) -> RayMlcError:
        from ray.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError):
            return _refused(self.address, str(error))
        text = _last_line(str(error))
        chain = f"{error!r} {error.__context__!r}"
        if "SSLError" in chain or "CERTIFICATE_VERIFY_FAILED" in chain:
            return UsageError(
                f"{self.address}: its certificate is not trusted: give --verify FILE with the one "
                "that signed it, or set REQUESTS_CA_BUNDLE"
            )
        if _NO_AGENT in str(error):
            return RayMlcError(
                f"{self.address}: its head takes no jobs, although it answers: where another Ray "
                "runs on that machine it may hold the port that jobs need, 52365; start the head "
                "with --dashboard-agent-listen-port PORT, or after the other has ended"
            )
        if "submission_id" in str(error) and "already exists" in str(error):
            return AlreadySubmittedError(f"{self.address}: {text}")
        if "does not exist" in text and "status code 404" in str(error):
            return UnknownJobError(f"{self.address}: {text}: see `ray-mlc jobs list`")
        if "parsed from address" in text:
            return ConfigError(
                f"{self.address}: expected http://HEAD:8265, https://…, HEAD:6379 or auto"
            )
        if isinstance(error, OSError) or "waiting for GCS" in text:
            return RayMlcError(
                f"{self.address}: no Ray cluster answers there: is the address that of the "
                "dashboard (http://HEAD:8265), and does its port answer from here?"
            )
        return RayMlcError(f"{self.address}: the cluster refused: {text}")


def attempt_of(details: Any) -> Attempt:
    """A submission as Ray's `JobDetails` has it."""
    known = details.metadata or {}
    run = known.get("ray_mlc.run", details.submission_id)
    number, wait = known.get("ray_mlc.attempt", ""), known.get("ray_mlc.stop_wait", "")
    return Attempt(
        id=details.submission_id,
        run=run,
        job=known.get("ray_mlc.job", run),
        number=int(number) if number.isdigit() else 0,
        kind=known.get("ray_mlc.kind", ""),
        output=known.get("ray_mlc.output", ""),
        status=str(getattr(details.status, "value", details.status)),
        started_s=(details.start_time or 0) / 1000,
        ended_s=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
        stop_wait_s=float(wait) if wait.isdigit() else 0.0,
    )


def check_ray_version(client: JobClient) -> str | None:
    """A sentence if the cluster's Ray is not that of this machine.

    Raises:
        ResourceError: If `ray_mlc` does not run on it.
    """
    import ray

    from ray_mlc.runtime.ray_private import TESTED

    found = client.ray_version
    digits = [int(part) for part in found.split(".")[:2] if part.isdigit()]
    if len(digits) == 2 and not TESTED[0] <= (digits[0], digits[1]) < TESTED[1]:
        low, high = (".".join(map(str, bound)) for bound in TESTED)
        raise ResourceError(
            f"{client.address} runs Ray {found}, expected {low} up to before {high}: upgrade Ray "
            "on the cluster"
        )
    if found and found != ray.__version__:
        return f"the cluster runs Ray {found}, this machine has {ray.__version__}"
    return None


def _refused(address: str, text: str) -> UsageError:
    where = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    if "invalid" in text or "failed" in text:
        return UsageError(
            f"{address} does not accept the token: put the cluster's into {where} (on its head: "
            "`ray get-auth-token`)"
        )
    return UsageError(
        f"{address} asks for a token, and none was sent: put the cluster's into {where} (on its "
        "head: `ray get-auth-token`), and leave RAY_AUTH_MODE unset or `token`"
    )


def _use_token_if_there_is_one() -> None:
    """Let Ray's client send the token to the address that it is given.

    Ray 2.60 does so only if `RAY_AUTH_MODE` says so, and reads that when it is imported. Whoever
    has set it is left alone. Not for drivers: one that asks for a token is not heard by the workers
    of a cluster without.
    """
    named = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" in os.environ:
        return
    file = Path(os.environ.get("HOME", "/")) / ".ray" / "auth_token"  # where Ray looks
    if any(os.environ.get(name) for name in named) or file.is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


def _headers(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        # without the value: it may well be a secret
        raise ConfigError('RAY_JOB_HEADERS is no JSON object such as {"Cookie": "…"}')
    return {str(name): str(value) for name, value in headers.items()}


def _verify(text: str | None) -> str | bool:
    if text is None or text.lower() == "true":
        return True
    if text.lower() == "false":
        return False
    if not Path(text).exists():
        raise ConfigError(f"{text}: there is no such file or folder of certificates")
    return text


def _last_line(text: str) -> str:
    """The line of a server's traceback that says what happened; Ray's client adds a dot to it."""
    lines = [line for line in text.splitlines() if line.strip(" .")]
    return first_line(RuntimeError(lines[-1])) if lines else "without a reason"


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Hide variables for the block."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
