"""Values of your own types.

    dstash dev up && python examples/custom_types.py

A registered type is stored as its code and the bytes that ``encode`` returns. Every client that
reads it registers the same code; peers never decode values. There is no pickle: decoding calls only
the function registered here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dstash import Client

#: Codes are stored on disk: never reuse one for another type.
PLACE_CODE: Final = 1
COLOUR_CODE: Final = 2

_PLACE: Final = struct.Struct(">dd")


@dataclass(frozen=True)
class Place:
    """A point on the globe, in degrees."""

    latitude: float
    longitude: float

    def encode(self) -> bytes:
        """Return 16 bytes: shorter than a map, and the same in any language."""
        return _PLACE.pack(self.latitude, self.longitude)

    @classmethod
    def decode(cls, data: bytes) -> Place:
        """Return the place that these bytes encode."""
        return cls(*_PLACE.unpack(data))


class Colour(Enum):
    """An enumeration; stored by its value, so that names may change."""

    RED = 1
    GREEN = 2


def register(client: Client) -> None:
    """Register the types of this program with a client."""
    client.types.register(Place, code=PLACE_CODE, encode=Place.encode, decode=Place.decode)
    client.types.register(
        Colour,
        code=COLOUR_CODE,
        encode=lambda colour: bytes([colour.value]),
        decode=lambda data: Colour(data[0]),
    )


def main() -> None:
    """Store such values, alone and nested, and read them back."""
    places = {"Vaduz": Place(47.141, 9.521), "Quito": Place(-0.220, -78.512)}
    flag = {"colours": [Colour.RED, Colour.GREEN], "seen_at": places["Vaduz"]}
    with Client() as client:
        register(client)
        client.batch_put("places", places)
        client.put("flags", "first", flag)
        same = client.batch_lookup("places", places) == places
        same = same and client.lookup("flags", "first") == flag
    print(f"round trip is equal: {same}")


if __name__ == "__main__":
    main()
