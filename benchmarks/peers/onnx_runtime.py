"""ONNX Runtime through optimum, in transformers' pipeline."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline


def main(model: str, source: str, target: str, cut: int) -> None:
    exported = ORTModelForSequenceClassification.from_pretrained(model, export=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    pipe = pipeline("text-classification", model=exported, tokenizer=tokenizer, top_k=None)
    Path(target).mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(pads.dataset(source).to_batches(batch_size=1024)):
        texts = [text or "" for text in batch["text"].to_pylist()]
        found = pipe(texts, batch_size=32, truncation=True, max_length=cut)
        rows = [{item["label"]: item["score"] for item in row} for row in found]
        pq.write_table(pa.Table.from_pylist(rows), f"{target}/{number:05d}.parquet")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
