"""The long form: a cluster that loses a node in the middle of a training, a scoring, one to S3.

    PYTHONPATH=tests python -m cluster.run

A head and three workers are started by `ray start`, with a token, each in a process group and,
where this process may make them, in a network namespace of its own. Prints a protocol in Markdown;
ends with 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from support.job_site import Site
from support.network import SUBNET, Network, network
from support.object_store import (
    list_objects,
    make_bucket,
    moto_server,
    read_object,
    s3_environment,
)
from support.ray_cluster import RayCluster, ray_cluster
from support.tls import tls_environment

from cluster.scenes import BrokenPromiseError, Played, Scene, expect, write_job
from ray_mlc import synthetic
from ray_mlc.scoring.identity import versions

CORPUS_ROWS = 97_916
"""Of the corpus in RAY_MLC_DATA, and so of the synthetic one where that is not there."""
TLS_ROWS = 5_000
UNIT_ROWS = 512
BUCKET, CHECKPOINTS = "tags", "checkpoints"
EPOCHS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all scenes; 1 if one of them did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="keep the folder of jobs and logs")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no node is left
    folder = Path(tempfile.mkdtemp(prefix="cluster-test-"))
    started = time.monotonic()
    say(f"# A cluster that loses nodes, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n")
    say(f"{platform.platform()}, {os.cpu_count()} cores. {describe_versions()}.\n")
    try:
        play(folder)
    except BrokenPromiseError as error:
        say(f"\n**Does not hold** after {time.monotonic() - started:.0f} s: {error}")
        say(f"Jobs and logs are in {folder}.")
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    say(f"\nAll of it held, in {time.monotonic() - started:.0f} s.")
    return 0


def play(folder: Path) -> None:
    """All scenes: on one cluster, and the last on one with TLS."""
    corpus, rows = find_corpus(folder)
    write_jobs(folder, corpus)
    with ExitStack() as stack:
        place = stack.enter_context(network())
        endpoint = start_store(stack, place)
        cluster = stack.enter_context(
            ray_cluster(cpus=0, workers=3, network=place, extra=s3_environment(endpoint))
        )
        tell_cluster(cluster)
        scene = Scene(Site(cluster, folder), lambda text: say(f"- {text}"))

        say("\n## Without a token\n")
        protocol(scene.refuse_without_token("score.yaml"))

        say("\n## A training of two workers\n")
        checkpoints = folder / "model/_checkpoints"
        lose_while_training(scene, "train.yaml", "model", partial(books_in, checkpoints))
        expect(not checkpoints.exists(), f"{checkpoints} is still there")
        replace_node(cluster)

        say("\n## A training of one to three workers, one a node, with checkpoints on S3\n")
        books = partial(books_in_store, cluster, endpoint)
        lose_while_training(scene, "train-elastic.yaml", "model-elastic", books)
        expect(not (folder / "model-elastic/_checkpoints").exists(), "checkpoints in the folder")
        replace_node(cluster)

        say(f"\n## Scoring {rows:,} documents\n")
        parts = partial(count_parts, folder / "tags")
        protocol(lose_while_scoring(scene, "score.yaml", parts, rows))
        say(f"- {scene.verify('tags', rows, '--deep')}")
        replace_node(cluster)

        say(f"\n## Scoring {rows:,} documents to S3\n")
        parts = partial(count_in_store, cluster, endpoint)
        protocol(lose_while_scoring(scene, "score-s3.yaml", parts, rows))
        say(f"- {scene.verify(f's3://{BUCKET}/tags', rows)}")
    play_tls(folder)


def play_tls(folder: Path) -> None:
    """A cluster whose processes speak TLS to each other scores some documents."""
    say("\n## TLS between all processes of Ray\n")
    if shutil.which("openssl") is None:
        say("- not played: there is no openssl to make a certificate")
        return
    addresses = [f"{SUBNET}.{number}" for number in range(10, 13)]
    extra = tls_environment(folder / "tls", addresses)
    with (
        network() as place,
        ray_cluster(cpus=0, workers=2, network=place, extra=extra) as cluster,
    ):
        tell_cluster(cluster)
        scene = Scene(Site(cluster, folder), lambda text: say(f"- {text}"))
        protocol(scene.run_to_its_end("score-tls.yaml"))
        say(f"- {scene.verify('tags-tls', TLS_ROWS)}")


def lose_while_training(
    scene: Scene, job: str, output: str, books: Callable[[], Iterable[bytes]]
) -> None:
    """Kill a node when there are checkpoints; each epoch has to be there once all the same."""
    model = scene.site.folder / output
    played = scene.lose_a_node(
        job,
        process="RayTrainWorker",
        when=lambda: any(map(names_a_checkpoint, books())),
        keys=(
            "is gone: ",
            "worker(s)",
            "2 worker(s) continue from",
            "epoch 1: train",
            f"epoch {EPOCHS}: train",
        ),
    )
    protocol(played)
    lines = (model / "history.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    expect(epochs == list(range(1, EPOCHS + 1)), f"{model}/history.jsonl has epochs {epochs}")
    say(f"- {output}/history.jsonl has each of {EPOCHS} epochs once")


def books_in(checkpoints: Path) -> Iterator[bytes]:
    """What Ray Train has written of its checkpoints."""
    for path in checkpoints.glob("*/checkpoint_manager_*.json"):
        with suppress(FileNotFoundError):  # it is replaced at this moment
            yield path.read_bytes()


def books_in_store(cluster: RayCluster, endpoint: str) -> list[bytes]:
    """The same, of checkpoints in the bucket."""
    with cluster.entered():
        names = list_objects(endpoint, BUCKET, prefix=f"{CHECKPOINTS}/")
        books = [name for name in names if "/checkpoint_manager_" in name]
        return [read_object(endpoint, BUCKET, name) or b"" for name in books]


def names_a_checkpoint(book: bytes) -> bool:
    """Whether a book of Ray Train's names a checkpoint; one that is there may not be in it yet."""
    try:
        return bool(json.loads(book)["checkpoint_results"])
    except json.JSONDecodeError:
        return False  # it is being written


def lose_while_scoring(scene: Scene, job: str, parts: Callable[[], int], rows: int) -> Played:
    """Kill a node when a third of the parts is there."""
    expected = rows // UNIT_ROWS
    at_kill = 0

    def third() -> bool:
        nonlocal at_kill
        at_kill = parts()
        return at_kill > expected // 3

    played = scene.lose_a_node(
        job,
        process="ScoreActor",
        when=third,
        keys=("is gone: ", " rows written", " rows in ", "score: ", " rows/s"),
    )
    played.facts["parts at that moment"] = at_kill
    played.facts["parts in the end"] = parts()
    expect(at_kill < parts(), "the node was killed when all was written")
    return played


def count_parts(output: Path) -> int:
    """Parts in a folder."""
    return sum(1 for _ in output.glob("**/*.parquet"))


def count_in_store(cluster: RayCluster, endpoint: str) -> int:
    """Parts in the bucket."""
    with cluster.entered():
        names = list_objects(endpoint, BUCKET, prefix="tags/")
    return sum(name.endswith(".parquet") for name in names)


def replace_node(cluster: RayCluster) -> None:
    """Start a node in the place of the one that was lost."""
    node = cluster.add_node()
    say(f"- a new node: {node.address}, process group {node.process.pid}")


def find_corpus(folder: Path) -> tuple[Path, int]:
    """The corpus of real text, or as many synthetic documents."""
    data = os.environ.get("RAY_MLC_DATA")
    corpus = Path(data) / "corpus" if data else folder / "corpus"
    if not corpus.is_dir():
        corpus = folder / "corpus"
        synthetic.write_corpus(corpus, rows=CORPUS_ROWS, files=4, seed=6)
    files = list(corpus.glob("**/*.parquet"))
    return corpus, sum(pq.read_metadata(file).num_rows for file in files)


def write_jobs(folder: Path, corpus: Path) -> None:
    """The job files, and what the training needs."""
    synthetic.write_examples(folder / "examples", train=2_000, validation=300, test=1, seed=0)
    texts = synthetic.documents(200, seed=2)["text"].to_pylist()
    synthetic.write_encoder(folder / "encoder", texts=texts, hidden_size=32, seed=0)
    data = {name: f"examples/{name}.parquet" for name in ("train", "validation")}
    training = {"epochs": EPOCHS, "learning_rate": 3e-3, "head_learning_rate": None}
    train = {
        "kind": "train",
        "data": data,
        "encoder": "./encoder",
        "output": "model",
        "training": {**training, "max_tokens": 128, "dtype": "float32"},
        "workers": {"count": 2, "cpus": 1.5},  # of nodes with two: one on each
        "checkpoints": {"every_steps": 20},
    }
    write_job(folder / "train.yaml", train)
    elastic = {
        "output": "model-elastic",
        "workers": {"count": {"min": 1, "max": 3}, "cpus": 1.5},
        "checkpoints": {"every_steps": 20, "path": f"s3://{BUCKET}/{CHECKPOINTS}"},
    }
    write_job(folder / "train-elastic.yaml", {**train, **elastic})
    score: dict[str, Any] = {
        "kind": "score",
        "model": "model",
        "input": str(corpus),
        "output": {"path": "tags", "keep": ["id"]},
        "units": {"rows": UNIT_ROWS},
        "engine": {"name": "torch", "dtype": "float32"},
        "batching": {"max_batch_tokens": 8192},
    }
    write_job(folder / "score.yaml", score)
    score["output"] = {"path": f"s3://{BUCKET}/tags", "keep": ["id"]}
    write_job(folder / "score-s3.yaml", score)
    synthetic.write_corpus(folder / "corpus-tls", rows=TLS_ROWS, files=1, seed=7)
    write_job(folder / "score-tls.yaml", {**score, "input": "corpus-tls", "output": "tags-tls"})


def start_store(stack: ExitStack, place: Network | None) -> str:
    """An S3 server that all nodes reach; its URL."""
    if place is None:
        endpoint = stack.enter_context(moto_server())
        make_bucket(endpoint, BUCKET)
        return endpoint
    with place.hub.entered():
        endpoint = stack.enter_context(moto_server(place.hub.address))
        make_bucket(endpoint, BUCKET)
    return endpoint


def tell_cluster(cluster: RayCluster) -> None:
    """What was started, and where."""
    where = (
        "each in a network namespace of its own, on a bridge between them"
        if cluster.network
        else "all on the loopback interface: this process may make no network namespaces"
    )
    head, *workers = cluster.nodes
    say(f"Nodes, {where}:\n")
    say(f"- head {head.address} without tasks, process group {head.process.pid}")
    for node in workers:
        say(f"- worker {node.address}, process group {node.process.pid}")


def protocol(played: Played) -> None:
    """What a scene came to."""
    facts = {**played.facts, "seconds": round(played.seconds)}
    say("- " + ", ".join(f"{name}: {value}" for name, value in facts.items()))
    say("\n```\n" + "\n".join(played.lines) + "\n```\n")


def describe_versions() -> str:
    """Packages that matter here."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def say(text: str) -> None:
    """Print a line at once: a run takes minutes."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
