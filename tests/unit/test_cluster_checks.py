"""What the doctor makes of what nodes say; each finding says what to do. No Ray is started."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.errors import RayMlcError, ResourceError
from ray_mlc.runtime import nodes
from ray_mlc.runtime.cluster_checks import (
    _answer_without_token,
    check_answers,
    check_cluster,
    check_gpus,
    check_room,
    check_token,
    check_versions,
)
from ray_mlc.runtime.nodes import NodeFacts, exists, refuse_unshared
from ray_mlc.runtime.session import NodeResources

VERSIONS = {
    "python": "3.11",
    "ray-mlc": "0.1.0",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}


def node(**more: Any) -> NodeFacts:
    known = {"versions": VERSIONS, "gpus_present": 0, "cuda": "", "cuda_works": True}
    return NodeFacts(**{**known, "gpus": 0.0, "cpus": 8.0, **more})


def test_nodes_that_are_alike_are_said_to_be() -> None:
    check = check_versions({"a": node(), "b": node()})
    assert check.state == "ok"
    assert "alike on 2 node(s): ray-mlc 0.1.0, ray 2.60.0" in check.finding


@pytest.mark.parametrize("package", VERSIONS)
def test_the_odd_node_is_named_not_the_others(package: str) -> None:
    odd = node(versions={**VERSIONS, package: "9.9"})
    check = check_versions({"a": node(), "odd": odd, "c": node()})
    assert check.state == "fails"
    assert f"{package} is {VERSIONS[package]}, but odd has 9.9: install the same" in check.finding


def test_a_package_that_one_node_lacks_is_found() -> None:
    more = node(versions={**VERSIONS, "tokenizers": "0.23"})
    check = check_versions({"a": node(), "b": more, "c": more})
    assert "a has absent" in check.finding


def test_a_node_that_runs_nothing_fails_the_cluster_by_name() -> None:
    silent = RayMlcError("No module named 'ray_mlc'")
    check = check_answers("h:1", {"a": node(), "b": silent, "c": silent}, 1.0)
    assert check.state == "fails"
    assert "node b (and 1 more) runs no tasks: No module named 'ray_mlc'" in check.finding
    assert "2 node(s), 16 CPUs" in check_answers("h:1", {"a": node(), "b": node()}, 1.0).finding


def test_a_gpu_that_pytorch_does_not_find_and_one_that_ray_does_not_count() -> None:
    broken = node(gpus=1.0, gpus_present=1, cuda="torch 2+cpu finds no CUDA", cuda_works=False)
    (check,) = check_gpus({"a": node(), "b": broken})
    assert (check.state, "b: torch 2+cpu finds no CUDA" in check.finding) == ("fails", True)
    (check,) = check_gpus({"a": node(gpus_present=2)})
    assert (check.state, "--num-gpus" in check.finding) == ("warning", True)
    (check,) = check_gpus({"a": node(gpus=1.0, gpus_present=1, cuda="H100"), "b": node()})
    assert (check.state, check.finding) == ("ok", "H100 on 1 node(s)")


def test_room_for_reading_beside_the_actors() -> None:
    nodes = [NodeResources(8, 0)]
    assert check_room(nodes, NodeResources(8, 0)).state == "ok"
    taken = check_room(nodes, NodeResources(1, 0))
    assert taken.state == "fails"
    assert "or wait for what runs there" in taken.finding
    coming = check_room([NodeResources(0, 0)], NodeResources(0, 0), grows=True)
    assert coming.state == "ok"
    assert "the cluster starts others" in coming.finding
    tight = check_room([NodeResources(4, 4)], NodeResources(4, 4))
    assert tight.state == "warning"
    assert "add CPU nodes" in tight.finding


@pytest.mark.parametrize(
    ("mode", "answer", "state", "words"),
    [
        ("token", 401, "ok", "refuses who has none"),
        ("token", 403, "warning", "is not known"),  # a proxy's, not the head's
        ("token", 302, "warning", "is not known"),
        ("token", 200, "fails", "answers without a token all the same"),
        ("token", None, "warning", "is not known"),
        ("disabled", 200, "warning", "no token is asked for"),
    ],
)
def test_whether_a_token_is_asked_for_is_tried_without_one(
    monkeypatch: pytest.MonkeyPatch, mode: str, answer: int | None, state: str, words: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    found = check_token(answer)
    assert found.state == state
    assert words in found.finding
    assert "RAY_AUTH_MODE=token" in found.finding or state == "ok"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 401),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", 302),
        (b"\x15\x03\x03\x00\x02\x02F", None),  # a TLS alert
        (b"", None),
    ],
)
def test_a_dashboard_is_asked_directly_whatever_it_answers(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, status: int | None
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert _answer_without_token(f"127.0.0.1:{server.getsockname()[1]}") == status
        thread.join()
    assert _answer_without_token(None) is None


@pytest.mark.parametrize("address", ["http://head:8265", "https://head"])
def test_the_address_for_jobs_is_told_from_that_for_drivers(address: str) -> None:
    (check,) = check_cluster(address, None)
    assert check.state == "fails"
    assert "on a node of the cluster, with --address auto" in check.finding


@pytest.mark.parametrize(
    ("path", "found"),
    [("in", True), ("in/*.parquet", True), ("in/x.parquet", False), ("no", False)],
)
def test_a_glob_is_looked_for_where_it_begins(tmp_path: Path, path: str, found: bool) -> None:
    (tmp_path / "in").mkdir()
    assert exists(str(tmp_path / path)) is found


class Elsewhere:
    """Two nodes, of which the second has other local folders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.lacks = 2, set[str]()
        self.wrong: RayMlcError | None = None
        self.asked: list[str] = []
        names = {"1": "a", "2": "b"}
        monkeypatch.setattr(nodes, "node_names", lambda: dict(list(names.items())[: self.count]))
        monkeypatch.setattr(nodes, "on_every_node", self._missing)
        monkeypatch.setattr(nodes, "write_from_every_node", self._write)

    def _missing(self, look: Any) -> dict[str, Any]:
        return {"a": look(), "b": [*look(), *self.lacks]}

    def _write(self, output: str) -> dict[str, Any]:
        self.asked.append(output)
        return {"a": None, "b": self.wrong}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    return Elsewhere(monkeypatch)


def test_an_input_that_another_node_lacks_is_refused_with_advice(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    refuse_unshared({"model": "some/hub-id", "input.path": str(tmp_path)}, {})
    elsewhere.lacks = {"input.path"}
    with pytest.raises(ResourceError, match="node b has no such path: name a folder on storage"):
        refuse_unshared({"model": "some/hub-id", "input.path": str(tmp_path)}, {})


def test_an_output_that_nodes_do_not_share_is_refused_and_a_bucket_not_tried(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    elsewhere.wrong = RayMlcError("writes there what other nodes do not see")
    refuse_unshared({"input.path": "s3://b/in"}, {"output.path": "s3://b/out"})
    assert elsewhere.asked == []
    with pytest.raises(ResourceError, match=r"output.path .* node b writes there what other nodes"):
        refuse_unshared({}, {"output.path": str(tmp_path)})


def test_a_node_that_goes_away_meanwhile_refuses_nothing(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.wrong = RayMlcError("NodeDiedError: gone")
    living = [{"1": "a", "2": "b"}, {"1": "a"}]
    monkeypatch.setattr(nodes, "node_names", lambda: living.pop(0))
    refuse_unshared({}, {"output.path": str(tmp_path)})


def test_on_one_node_any_path_will_do(elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.count, elsewhere.lacks = 1, {"input.path"}
    elsewhere.wrong = RayMlcError("no")
    refuse_unshared({"input.path": str(tmp_path)}, {"output.path": str(tmp_path)})
    assert elsewhere.asked == []


# Nodes that come and go


def test_nodes_that_come_and_go_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    living = [{"1": "a", "2": "b"}, {"1": "a"}, {"1": "a"}, {"1": "a", "3": "c"}]
    monkeypatch.setattr(nodes, "node_names", lambda: living.pop(0))
    roll = nodes.Roll()
    assert roll.changes() == ["node b is gone: 1 node(s) now; what it was doing is done again"]
    assert roll.changes() == []
    assert roll.changes() == ["node c has joined: 2 node(s) now"]
