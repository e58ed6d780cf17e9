"""The checksums of many frames, checked at once.

A frame record ends with the CRC-32 of its frame. After a message and its own CRC, the register of a
CRC holds a constant, so the CRC-32 of intact records depends on nothing but their number and size.
One call checks a whole batch, as well as calls frame by frame would: damage in one record changes
the CRC of all whenever it changes the record's own, and damage in several passes once in 2^32.
"""

from __future__ import annotations

import zlib


class FrameChecksums:
    """The CRC-32 of intact frame records.

    Args:
        size: Bytes of a record.

    Attributes:
        intact: A record.
    """

    def __init__(self, size: int) -> None:
        frame = bytes(size - 4)
        self.intact = frame + zlib.crc32(frame).to_bytes(4, "little")
        self._expected = [0]  # of 0, 1, ... records

    def are_intact(self, records: bytes | memoryview, count: int) -> bool:
        """Whether so many records have the checksums of their frames."""
        if count >= len(self._expected):
            longer = [*self._expected]
            while len(longer) <= 2 * count:
                longer.append(zlib.crc32(self.intact, longer[-1]))
            self._expected = longer  # at once: other threads may be reading
        return zlib.crc32(records) == self._expected[count]
