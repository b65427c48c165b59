"""TensorBoard's event files, read without the package that writes them but for its records."""

import struct
from collections import defaultdict
from pathlib import Path

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event


def masked(content: bytes) -> int:
    """The checksum of TFRecord (tensorflow/core/lib/hash/crc32c.h)."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder: Path) -> list[Event]:
    found: list[Event] = []
    for file in sorted(folder.glob("events*")):
        content = file.read_bytes()
        while content:
            (length, crc) = struct.unpack("<QI", content[:12])
            body = content[12 : 12 + length]
            assert crc == masked(content[:8])
            assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked(body),)
            found.append(Event.FromString(body))
            content = content[16 + length :]
    return found


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value. No step may be there twice."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                assert event.step not in found[value.tag]
                found[value.tag][event.step] = value.simple_value
    return found
