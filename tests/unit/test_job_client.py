"""The client against a small server that talks as Ray's dashboard does, and misbehaves as networks.

The real dashboard is in `tests/integration/test_jobs_on_ray.py`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ray_mlc.config import EvaluateJob, ScoreJob
from ray_mlc.errors import (
    ConfigError,
    InterruptedRunError,
    JobFailedError,
    RayMlcError,
    ResourceError,
    UsageError,
    redact,
)
from ray_mlc.job_files import load_job
from ray_mlc.runtime import job_client, jobs
from ray_mlc.runtime.job_client import JobClient, choose_address
from ray_mlc.runtime.job_ids import PASSED

# Ray's client leaves the closing of a stream that is given up to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TOKEN = "a-token-that-nobody-may-see-1234"


@dataclass
class Dashboard:
    """As much of Ray's dashboard as the Jobs API needs."""

    ray_version: str = "2.60.0"
    token: str | None = None
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_ready: int = 0
    """Submits that find no agent."""
    cut_after: list[int] = field(default_factory=list)
    """Characters after which the next streams of logs break off."""
    streams: int = 0
    on_stream: Callable[[int], None] = lambda _: None
    on_submit: Callable[[dict[str, Any]], None] = lambda _: None
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    packages: list[bytes] = field(default_factory=list)
    port: int = 0
    tls: ssl.SSLContext | None = None

    @property
    def address(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def add(self, id: str, status: str = "RUNNING", log: str = "", **more: Any) -> None:
        self.jobs[id] = {
            "type": "SUBMISSION",
            "submission_id": id,
            "entrypoint": "x",
            "status": status,
            "log": log,
            **more,
        }

    @web.middleware
    async def _door(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        self.headers.append(dict(request.headers))
        given = request.headers.get("Authorization")
        if self.token is not None and given is None:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if self.token is not None and given != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": self.ray_version})

    def _shown(self, job: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in job.items() if key != "log"}

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response([self._shown(job) for job in self.jobs.values()])

    async def _info(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.Response(status=404, text=f"Job {request.match_info['id']} does not exist")
        return web.json_response(self._shown(job))

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.jobs[request.match_info["id"]]["log"]})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        """The whole log from its beginning, in pieces, until the job is over or the net breaks."""
        self.streams += 1
        self.on_stream(self.streams)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        limit = self.cut_after.pop(0) if self.cut_after else None
        job, sent = self.jobs[request.match_info["id"]], 0
        while True:
            piece = job["log"][sent : sent + 7]
            if limit is not None and sent + len(piece) >= limit:
                await socket.send_str(piece[: limit - sent])
                assert request.transport is not None
                request.transport.abort()  # type: ignore[attr-defined]
                return socket
            if piece:
                await socket.send_str(piece)
                sent += len(piece)
            elif job["status"] != "RUNNING":
                await socket.close()
                return socket
            await asyncio.sleep(0.001)

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.on_submit(asked)
        if self.not_ready:
            self.not_ready -= 1
            return web.Response(status=500, text="No available agent to submit job, try later.")
        if asked["submission_id"] in self.jobs:
            id = asked["submission_id"]  # what Ray answers: a traceback, to its last line break
            text = f"Traceback:\n  x\nValueError: Job with submission_id {id} already exists. Or\n"
            return web.Response(status=400, text=text)
        log = f"Runtime env is setting up.{PASSED}scored\n"
        told = ("entrypoint", "metadata", "runtime_env")
        told += ("entrypoint_num_cpus", "entrypoint_num_gpus")
        more = {key: asked.get(key) for key in told}
        self.add(asked["submission_id"], "SUCCEEDED", log, **more, driver_exit_code=0)
        return web.json_response({"job_id": "x", "submission_id": asked["submission_id"]})

    async def _stop(self, request: web.Request) -> web.Response:
        self.jobs[request.match_info["id"]]["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def _package(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.packages.append(await request.read())
            return web.Response()
        return web.Response(status=404)

    async def serve(self, ready: threading.Event, done: asyncio.Event) -> None:
        app = web.Application(middlewares=[self._door])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{id}", self._info)
        app.router.add_get("/api/jobs/{id}/logs", self._logs)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        app.router.add_post("/api/jobs/{id}/stop", self._stop)
        app.router.add_route("*", "/api/packages/{protocol}/{name}", self._package)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        ready.set()
        await done.wait()
        await runner.cleanup()


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A server in a thread, and nothing else that would wait."""
    with serving(Dashboard(), monkeypatch) as found:
        yield found


@contextmanager
def serving(found: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_HEADERS", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(job_client, "POLL_S", 0.01)
    ready = threading.Event()
    loop, done = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(found.serve(ready, done)))
    thread.start()
    assert ready.wait(30)
    yield found
    for job in found.jobs.values():  # ends the streams that are still open
        job["status"] = "STOPPED"
    loop.call_soon_threadsafe(done.set)
    thread.join(30)
    loop.close()
    gc.collect()  # here, where it may warn


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    places = {"model": "/m", "input": "/in", "output": "/out"}
    return load_job(ScoreJob, options=places)


@pytest.mark.parametrize(
    ("given", "variable", "file", "found"),
    [
        ("http://a", "http://b", "http://c", "http://a"),
        (None, "http://b", "http://c", "http://b"),
        (None, None, "http://c", "http://c"),
    ],
)
def test_the_option_counts_for_more_than_the_environment_and_that_than_the_job_file(
    given: str | None,
    variable: str | None,
    file: str,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert choose_address(given, file) == found


def test_no_cluster_is_looked_for_that_nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="no cluster is named"):
        choose_address(None)


def test_an_address_that_is_given_wins_over_the_environment_and_that_stays(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert JobClient(dashboard.address).attempts() == []
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"


def test_a_job_is_shipped_with_its_stop_wait_and_nothing_of_the_machine(
    dashboard: Dashboard, job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    done = jobs.submit(job, JobClient(dashboard.address), say=lambda _: None)
    assert (done.plan.action, done.plan.id) == ("submitted", f"{done.run}-1")
    shipped = dashboard.jobs[done.plan.id]
    assert shipped["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    assert shipped["runtime_env"]["working_dir"].startswith("gcs://")
    assert "exec ray-mlc score ray_mlc_job.yaml --address auto" in shipped["entrypoint"]
    assert TOKEN not in json.dumps(shipped)
    assert not any(TOKEN.encode() in package for package in dashboard.packages)
    assert jobs.wait_until_begun(JobClient(dashboard.address), done).status == "SUCCEEDED"


def test_an_evaluation_is_given_its_cpus_and_gpus(dashboard: Dashboard) -> None:
    options = {"model": "s3://b/m", "examples": "s3://b/t", "output": "s3://b/f.json", "gpus": 1}
    job = load_job(EvaluateJob, options=options)
    done = jobs.submit(job, JobClient(dashboard.address), say=lambda _: None)
    shipped = dashboard.jobs[done.plan.id]
    assert shipped["entrypoint"].endswith("exec ray-mlc evaluate ray_mlc_job.yaml")
    assert (shipped["entrypoint_num_cpus"], shipped["entrypoint_num_gpus"]) == (1, 1)
    # what it measures may be another model by now
    again = jobs.submit(job, JobClient(dashboard.address), say=lambda _: None)
    assert (again.plan.action, again.plan.number) == ("submitted", 2)


def test_what_can_be_refused_of_an_evaluation_needs_no_cluster() -> None:
    options = {"model": "s3://b/m", "examples": "s3://b/t"}
    for more, said in (({}, "output is missing"), ({"device": "cuda"}, "gpus is 0")):
        job = load_job(EvaluateJob, options=options | more)
        with pytest.raises(ConfigError, match=said):
            jobs.submit(job, None, say=print)  # type: ignore[arg-type]


def test_a_night_is_submitted_as_one(dashboard: Dashboard, job: ScoreJob) -> None:
    done = jobs.submit(job, JobClient(dashboard.address), add_new=True, say=lambda _: None)
    assert "exec ray-mlc nightly " in dashboard.jobs[done.plan.id]["entrypoint"]
    again = jobs.submit(job, JobClient(dashboard.address), add_new=True, say=lambda _: None)
    assert again.plan.number == 2


def test_a_head_that_has_just_started_is_waited_for(
    dashboard: Dashboard, job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    dashboard.not_ready, said = 3, list[str]()
    done = jobs.submit(job, JobClient(dashboard.address), say=said.append)
    assert done.attempt.status == "SUCCEEDED"
    assert said == ["the cluster accepts no jobs yet: trying for a minute"]


def test_a_head_that_never_takes_jobs_is_told_from_one_that_is_not_there(
    dashboard: Dashboard, job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mlc.runtime.job_client.AGENT_WAIT_S", 0.0)
    dashboard.not_ready = 100
    with pytest.raises(RayMlcError, match=r"takes no jobs.*--dashboard-agent-listen-port"):
        jobs.submit(job, JobClient(dashboard.address), say=lambda _: None)


def test_of_two_submits_at_one_moment_one_wins_and_the_other_attaches(
    dashboard: Dashboard, job: ScoreJob
) -> None:
    def overtaken(asked: dict[str, Any]) -> None:
        more = {"metadata": asked["metadata"]}
        dashboard.jobs.setdefault(asked["submission_id"], {})
        dashboard.add(asked["submission_id"], "RUNNING", PASSED, **more)

    dashboard.on_submit = overtaken
    done = jobs.submit(job, JobClient(dashboard.address), say=lambda _: None)
    assert (done.plan.action, done.attempt.status) == ("attached", "RUNNING")
    assert list(dashboard.jobs) == [f"{done.run}-1"]


def test_a_log_is_followed_over_broken_connections_without_a_line_twice_or_lost(
    dashboard: Dashboard,
) -> None:
    log = "".join(f"line {number}: größer\n" for number in range(30))
    dashboard.add("j", log=log[:200])
    dashboard.cut_after = [10, 10, 95, 3, 200]
    seen: list[str] = []

    def write(text: str) -> None:
        seen.append(text)
        if len("".join(seen)) >= 190:  # the job goes on while the connection breaks again
            dashboard.jobs["j"] |= {"log": log, "status": "SUCCEEDED"}

    attempt = JobClient(dashboard.address).follow("j", write)
    assert "".join(seen) == log
    assert attempt.status == "SUCCEEDED"
    assert dashboard.streams >= 5


def test_a_stream_that_died_without_a_word_is_opened_anew(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_client, "SILENCE_S", 0.05)
    dashboard.add("j", log="one\n")
    seen: list[str] = []

    def later(streams: int) -> None:
        if streams == 3:
            dashboard.jobs["j"] |= {"log": "one\ntwo\n", "status": "SUCCEEDED"}

    dashboard.on_stream = later
    JobClient(dashboard.address).follow("j", seen.append)
    assert "".join(seen) == "one\ntwo\n"
    assert dashboard.streams == 3


def test_a_job_that_failed_gives_its_exit_code_and_its_own_words(dashboard: Dashboard) -> None:
    message = (
        "Job entrypoint command failed with exit code 3, last available logs:\n"
        "score: 10 of 10\nerror: 5 rows set aside, more than limits.bad_rows\n"
    )
    dashboard.add("j", "FAILED", message, message=message, driver_exit_code=3)
    with pytest.raises(JobFailedError, match="j failed with exit code 3: 5 rows set") as caught:
        jobs.check(jobs.follow(JobClient(dashboard.address), "j", lambda _: None))
    assert caught.value.exit_code == 3


def test_a_job_that_was_killed_and_one_that_was_stopped_may_be_run_again(
    dashboard: Dashboard,
) -> None:
    client = JobClient(dashboard.address)
    dashboard.add("k", "FAILED", message="Job supervisor actor died", driver_exit_code=-9)
    with pytest.raises(JobFailedError, match=r"killed by signal 9\)") as caught:
        jobs.check(jobs.follow(client, "k", lambda _: None))
    assert caught.value.exit_code == 1
    dashboard.add("s", "STOPPED")
    with pytest.raises(JobFailedError, match="submit the job again to continue") as caught:
        jobs.check(jobs.follow(client, "s", lambda _: None))
    assert caught.value.exit_code == 130


def test_a_reader_that_goes_away_ends_the_following(dashboard: Dashboard) -> None:
    """As in `jobs logs j --follow | head`: only the stream is opened again when it breaks."""
    dashboard.add("j", log="one\n")

    def gone(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        jobs.follow(JobClient(dashboard.address), "j", gone)
    assert dashboard.streams == 1


def test_ctrl_c_detaches_and_says_how_to_attach_and_how_to_stop(dashboard: Dashboard) -> None:
    dashboard.add("j", log="one\n")

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match=r"jobs logs j --follow.*jobs stop j") as caught:
        jobs.follow(JobClient(dashboard.address), "j", interrupted)
    assert caught.value.exit_code == 130
    assert dashboard.jobs["j"]["status"] == "RUNNING"


def test_stopping_waits_for_the_end_and_what_is_over_stays(dashboard: Dashboard) -> None:
    dashboard.add("j")
    client, said = JobClient(dashboard.address), list[str]()
    assert jobs.stop(client, client.attempt("j"), wait=True, say=said.append).status == "STOPPED"
    assert jobs.stop(client, client.attempt("j"), wait=True, say=said.append).status == "STOPPED"
    assert said[-1] == "j is STOPPED already"
    assert dashboard.requests.count("POST /api/jobs/j/stop") == 1


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_missing_and_a_wrong_token_are_told_apart_and_never_shown(
    dashboard: Dashboard, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.token = TOKEN
    monkeypatch.setenv("RAY_JOB_HEADERS", json.dumps(headers))
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN_PATH") as caught:
        JobClient(dashboard.address)
    assert ("does not accept the token" if headers else "none was sent") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Bearer" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "token", "file", "found"),
    [
        (None, None, False, None),
        (None, TOKEN, False, "token"),
        (None, None, True, "token"),
        ("disabled", TOKEN, True, "disabled"),
    ],
)
def test_a_token_is_used_where_there_is_one_unless_the_user_has_decided(
    mode: str | None,
    token: str | None,
    file: bool,
    found: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text(TOKEN)
    job_client._use_token_if_there_is_one()
    assert os.environ.get("RAY_AUTH_MODE") == found


def test_headers_of_the_environment_are_sent_and_wrong_ones_not_repeated(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Proxy": "let me in"}')
    JobClient(dashboard.address)
    assert dashboard.headers[-1]["X-Proxy"] == "let me in"
    monkeypatch.setenv("RAY_JOB_HEADERS", "X-Proxy: secret")
    with pytest.raises(ConfigError, match="RAY_JOB_HEADERS is no JSON object") as caught:
        JobClient(dashboard.address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("version", "code"), [("2.40.0", 2), ("3.1.0", 2), ("2.61.1", 0)])
def test_a_cluster_of_another_ray_is_refused_before_anything_is_sent(
    dashboard: Dashboard, job: ScoreJob, version: str, code: int
) -> None:
    dashboard.ray_version, said = version, list[str]()
    if code:
        with pytest.raises(ResourceError, match=f"runs Ray {version}, expected 2.60 up to"):
            jobs.submit(job, JobClient(dashboard.address), say=said.append)
        assert not dashboard.jobs
        assert not dashboard.packages
    else:
        jobs.submit(job, JobClient(dashboard.address), say=said.append)
        assert any(f"runs Ray {version}" in line for line in said)


def test_nobody_there_and_an_unknown_job_are_one_line_each(dashboard: Dashboard) -> None:
    with pytest.raises(RayMlcError, match="no Ray cluster answers there") as caught:
        JobClient("http://127.0.0.1:9")
    assert caught.value.exit_code == 1
    with pytest.raises(ConfigError, match="foo://x: expected http://HEAD:8265"):
        JobClient("foo://x")
    with pytest.raises(UsageError, match="Job nope does not exist"):
        JobClient(dashboard.address).attempt("nope")
    with pytest.raises(ConfigError, match="no such file or folder of certificates"):
        JobClient(dashboard.address, verify="/nope.pem")


def test_a_job_whose_cluster_was_started_anew_is_to_be_submitted_again(
    dashboard: Dashboard,
) -> None:
    with pytest.raises(
        RayMlcError, match=r"does not know gone-1 any more.*submit the job"
    ) as caught:
        jobs.follow(JobClient(dashboard.address), "gone-1", lambda _: None)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("text", [f"Bearer {TOKEN}", f"?token={TOKEN}"])
def test_a_token_of_the_environment_is_redacted_from_errors(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert TOKEN not in redact(text)


def test_what_travels_along_is_checked(dashboard: Dashboard, job: ScoreJob, tmp_path: Path) -> None:
    client = JobClient(dashboard.address)
    with pytest.raises(ConfigError, match="there is no such folder"):
        jobs.submit(job, client, working_dir=tmp_path / "none", say=lambda _: None)
    (tmp_path / "ray_mlc_job.yaml").touch()
    with pytest.raises(ConfigError, match="a name of ours"):
        jobs.submit(job, client, working_dir=tmp_path, say=lambda _: None)
    assert not dashboard.jobs


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_an_https_address_is_trusted_by_its_certificate_only_and_followed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "server.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                *names,
                "-keyout",
                str(pem),
                "-out",
                str(tmp_path / "ca.pem"),
            ),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", pem)
    with serving(Dashboard(tls=context), monkeypatch) as dashboard:
        dashboard.add("j", "SUCCEEDED", "one\ntwo\n")
        with pytest.raises(UsageError, match="its certificate is not trusted: give --verify FILE"):
            JobClient(dashboard.address)
        seen: list[str] = []
        JobClient(dashboard.address, verify=str(tmp_path / "ca.pem")).follow("j", seen.append)
        assert "".join(seen) == "one\ntwo\n"
        assert dashboard.streams == 1  # the stream was trusted too
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        assert [item.id for item in JobClient(dashboard.address).attempts()] == ["j"]
