"""A job that runs on one of several machines, and whose result no earlier holder can overwrite.

    dstash dev up && python examples/job_lock.py

Start it on every machine. The lock keeps two of them from running it at the same time; one that
starts later runs it again. The fencing token protects the result if a machine is paused for so long
that its lock expires.
"""

from __future__ import annotations

import sys
import time

from dstash import Client, Conflict, DStashError, LockLost

_PARTS = 5


def report(client: Client) -> int:
    """Compute a report in parts; return how many runs there were.

    Raises:
        Conflict: another machine holds the lock.
        LockLost: the lock was lost, and another machine may have taken it.
    """
    with client.lock("report", ttl=30, wait=0) as lock:
        total = 0
        for part in range(_PARTS):
            lock.check()  # raises LockLost before work that another machine does, too
            total += _work(part)
        try:
            client.put("@reports", "latest", {"total": total}, fence=lock.token)
            return int(client.update("@reports", "runs", _one_more, default=0, fence=lock.token))
        except Conflict as error:  # the token of a later holder is higher
            raise LockLost(f"another machine has stored its report: {error}") from None


def _one_more(runs: int) -> int:
    return runs + 1


def _work(part: int) -> int:
    time.sleep(0.01)
    return part * part


def main() -> int:
    """Run the job unless another machine does."""
    with Client() as client:
        try:
            runs = report(client)
        except LockLost as error:
            print(f"stopped: {error}", file=sys.stderr)
            return 1
        except Conflict as error:
            print(f"not run: {error}")
            return 0
        print(f"run {runs}: {client.lookup('@reports', 'latest')}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DStashError as error:
        sys.exit(f"{type(error).__name__}: {error}")
