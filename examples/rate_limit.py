"""A rate limit that all processes share, and a counter.

    dstash dev up && python examples/rate_limit.py

Each user may make 5 requests a day. The counter has the number of requests that were served.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from dstash import Client, DStashError

_LIMIT = 5
_PER_S = 86_400


class TooManyRequests(Exception):
    """The user has used up this day."""


def serve(client: Client, user: str) -> int:
    """Serve a request of a user; return how many were served to all users."""
    if not client.limiter(f"requests/{user}", _LIMIT, per=_PER_S).acquire():
        raise TooManyRequests(user)
    return client.increment("@counters", "served")


def requests() -> Iterator[str]:
    """Return who makes the requests."""
    for number in range(12):
        yield "ada" if number % 3 else "grace"


def main() -> None:
    """Serve requests until the limit of a user is reached."""
    served: dict[str, int] = {}
    refused: dict[str, int] = {}
    with Client() as client:
        before = client.increment("@counters", "served", by=0)
        for user in requests():
            try:
                serve(client, user)
            except TooManyRequests:
                refused[user] = refused.get(user, 0) + 1
            else:
                served[user] = served.get(user, 0) + 1
        total = client.lookup("@counters", "served") - before
    print(f"served {served}, refused {refused}, counted {total}")


if __name__ == "__main__":
    try:
        main()
    except DStashError as error:
        sys.exit(f"{type(error).__name__}: {error}")
