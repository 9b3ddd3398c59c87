"""The recipe of Ray's documentation: read_parquet, map_batches over a pipeline, write_parquet."""

import sys

import numpy as np
import ray
from ray.data import ActorPoolStrategy


class Classify:
    """A pipeline in an actor."""

    def __init__(self, model: str, cut: int) -> None:
        from transformers import pipeline

        self.cut = cut
        self.pipe = pipeline("text-classification", model=model, top_k=None, device=-1)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score one batch."""
        texts = [text or "" for text in batch["text"].tolist()]
        found = self.pipe(texts, batch_size=32, truncation=True, max_length=self.cut)
        scores = [{item["label"]: item["score"] for item in row} for row in found]
        for label in scores[0]:
            batch[label] = np.array([row[label] for row in scores], np.float32)
        del batch["text"]
        return batch


def main(model: str, source: str, target: str, cut: int) -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    data = ray.data.read_parquet(source)
    data = data.map_batches(
        Classify,
        fn_constructor_args=(model, cut),
        compute=ActorPoolStrategy(size=2),
        num_cpus=1,
        batch_size=64,
    )
    data.write_parquet(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
