"""A client in a container of the image: writes and reads until SIGTERM, then prints its counts.

It runs with the Python of the image, so it imports only dstash and the standard library.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from typing import Any

from dstash import Client, DStashError

WRITERS = 3
KEYS = 50
PAUSE = 0.005  # seconds between two rounds: the peers share few cores


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    outcome: dict[str, Any] = {"writes": 0, "reads": 0, "slowest": 0.0, "errors": []}
    with Client(["peer1:5000", "peer2:5000", "peer3:5000"]) as client:
        threads = [
            threading.Thread(target=work, args=(client, name, stop, outcome))
            for name in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        print("started", flush=True)  # noqa: T201
        for thread in threads:
            thread.join()
    print(json.dumps(outcome), flush=True)  # noqa: T201
    return 0


def work(client: Client, name: int, stop: threading.Event, outcome: dict[str, Any]) -> None:
    """Write keys that no other thread writes, and read each again."""
    number = 0
    while not stop.is_set():
        key = f"{name}-{number % KEYS}"
        began = time.monotonic()
        try:
            client.put("traffic", key, number)
            outcome["writes"] += 1
            found = client.lookup("traffic", key)
            outcome["reads"] += 1
            if found != number:
                outcome["errors"].append(f"{key} is {found}, not {number}")
        except DStashError as error:
            outcome["errors"].append(f"{key}: {type(error).__name__}: {error}")
        outcome["slowest"] = max(outcome["slowest"], time.monotonic() - began)
        number += 1
        stop.wait(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
