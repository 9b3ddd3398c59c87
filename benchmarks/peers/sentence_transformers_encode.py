"""sentence-transformers' encode, which sorts by length, and the model's own head behind it."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer, models
from transformers import AutoModelForSequenceClassification


def main(model: str, source: str, target: str, cut: int) -> None:
    whole = AutoModelForSequenceClassification.from_pretrained(model).eval()
    transformer = models.Transformer(model, max_seq_length=cut)
    first = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode="cls")
    encoder = SentenceTransformer(modules=[transformer, first], device="cpu")
    Path(target).mkdir(parents=True, exist_ok=True)
    names = [whole.config.id2label[index] for index in range(whole.config.num_labels)]
    for number, batch in enumerate(pads.dataset(source).to_batches(batch_size=16_384)):
        texts = [text or "" for text in batch["text"].to_pylist()]
        first_NH = torch.from_numpy(np.asarray(encoder.encode(texts, batch_size=32)))
        with torch.inference_mode():
            pooled_NH = torch.tanh(whole.bert.pooler.dense(first_NH))
            scores_NL = torch.sigmoid(whole.classifier(pooled_NH)).numpy()
        columns = {name: scores_NL[:, column] for column, name in enumerate(names)}
        pq.write_table(pa.table(columns), f"{target}/{number:05d}.parquet")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
