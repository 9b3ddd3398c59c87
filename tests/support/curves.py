"""Reads TensorBoard's event files, without TensorBoard."""

from __future__ import annotations

from pathlib import Path


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Scalars in the event files of a folder, as TensorBoard would read them."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.rglob("events.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):  # TFRecord: length, its checksum, content, its checksum
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += size + 16
            found += [
                (value.tag, event.step, value.simple_value)
                for value in event.summary.value
                if value.HasField("simple_value")
            ]
            if event.session_log.status:
                found.append(("session", event.step, 0.0))
    return found
