"""infinity_emb's engine, embedded in a script as its README shows, asked for classification."""

import asyncio
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from infinity_emb import AsyncEngineArray, EngineArgs


async def main(model: str, source: str, target: str, cut: int) -> None:
    del cut  # there is no option for it: the tokenizer's own maximum holds
    arguments = EngineArgs(
        model_name_or_path=model, engine="torch", device="cpu", model_warmup=False, batch_size=32
    )
    engine = AsyncEngineArray.from_args([arguments])[0]
    Path(target).mkdir(parents=True, exist_ok=True)
    async with engine:
        for number, batch in enumerate(pads.dataset(source).to_batches(batch_size=1024)):
            texts = [text or "" for text in batch["text"].to_pylist()]
            found, _ = await engine.classify(sentences=texts, raw_scores=False)
            rows = [{item["label"]: item["score"] for item in row} for row in found]
            pq.write_table(pa.Table.from_pylist(rows), f"{target}/{number:05d}.parquet")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
