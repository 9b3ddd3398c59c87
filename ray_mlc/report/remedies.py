"""What to do about what a night has set aside, in words.

The reasons are those of `failures.json` and of the column `status`; a reason that is not known
gets the general advice.
"""

from __future__ import annotations

AGAIN = "run the same command again: it is tried anew"
STATUS_REMEDIES = {
    "null_text": "A fact of the input: the row has no text.",
    "empty": "A fact of the input: the text is white space.",
    "decode_error": "The text is no UTF-8, or the tokenizer failed over it: repair it where the "
    "file is made, and score the file under another name.",
    "too_long": "Longer than input.max_text_bytes, or than what long.policy: skip lets pass: raise "
    "the limit, or choose long.policy: truncate or windows, in a new output.",
    "not_finite": "The model gave no number, or the engine failed: try engine.dtype=float32 in a "
    "new output, and `ray-mlc predict` on the text.",
}
"""By status of a row; `ok` needs none."""
_REMEDIES = (
    (
        "footer: the file has no bytes",
        f"Was it still being written? Put it there whole, then {AGAIN}.",
    ),
    ("footer:", f"It is no Parquet file, or damaged: repair or remove it, then {AGAIN}."),
    (
        "schema:",
        "Its columns do not fit the run's: write it with the run's types, or score it into an "
        "output of its own.",
    ),
    (
        "read: the file has changed",
        "It was replaced while the night was under way: let files be complete before they are "
        f"listed; {AGAIN}, or says which parts to delete first.",
    ),
    ("read:", f"These rows are damaged: copy or write the file again, then {AGAIN}."),
    (
        "write:",
        "A kept column holds values that Parquet cannot: leave it out of output.keep, in a new "
        "output.",
    ),
)
_DIED = (
    "Each process that held it was killed, mostly for want of memory: lower units.bytes or "
    "batching.max_batch_tokens, or leave the file out; "
    f"{AGAIN}."
)


def remedy_of(reason: str) -> str:
    """What to do about a file or unit that was set aside.

    Args:
        reason: As `failures.json` says it.
    """
    if "processes died over it" in reason:
        return _DIED
    for beginning, remedy in _REMEDIES:
        if reason.startswith(beginning):
            return remedy
    return f"See to it, then {AGAIN}."
