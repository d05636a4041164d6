"""The events that a peer logs for its operators.

``docs/operations.md`` explains each of them. Scripts search logs for these texts, so they do not
change, and what varies is in the fields of a line.
"""

from __future__ import annotations

from typing import Final

MEMBER_DOWN: Final = "a member is down"
MEMBER_BACK: Final = "a member is back"
QUORUM_LOST: Final = "partitions have lost their quorum"
QUORUM_REGAINED: Final = "partitions have their quorum again"

PEER_WAITS: Final = "this peer waits"
PEER_REMOVED: Final = "this peer was removed from the cluster"
CHANGE_WAITS: Final = "the topology change waits"
CHANGE_CONTINUES: Final = "the topology change waits no longer"
TOPOLOGY: Final = "topology"
TOPOLOGY_ON_DISK: Final = "using the topology on disk"
TOPOLOGY_OF_MEMBER: Final = "using the topology of another member"

STREAMING_BEGUN: Final = "streaming has begun"
STREAMING_ENDED: Final = "streaming has ended"
STREAMING_STOPPED: Final = "streaming was stopped"

DISK_SCARCE: Final = "the disk is nearly full"
DISK_FULL: Final = "the disk is full; puts are refused"
RESERVE_RELEASED: Final = "the disk is full; its reserve was released"
DISK_EXHAUSTED: Final = "the disk is full to the last byte; puts and deletes are refused"
DISK_FREE: Final = "there is room on the disk again"
DISK_SLOW: Final = "the disk is slow"
DISK_NOT_SLOW: Final = "the disk is no longer slow"

OLD_COPY: Final = "this store is an old copy: its data has to be streamed again"
UNCLEAN_END: Final = "the last process of this peer did not end cleanly"
STORE_CLOSED: Final = "the store is closed"
SYNC_FAILED: Final = "sync failed"
RECORD_CORRUPT: Final = "corrupt record on disk"
RECORD_REPAIRED: Final = "corrupt record repaired"

THREAD_ENDED: Final = "a thread has ended"
THREAD_HANGS: Final = "a thread hangs"
THREAD_CONTINUES: Final = "a thread that hung continues"

COMPACTION_BEGUN: Final = "compaction has begun"
COMPACTION_ENDED: Final = "compaction has ended"
COMPACTION_GIVEN_UP: Final = "compaction was given up"

CLIENT_REFUSED: Final = "a client was refused"
KEY_REFUSED: Final = "connection refused"
CONNECTION_CUT: Final = "connection cut"

CLOCK_WRONG: Final = "the clock is wrong"
CLOCK_RIGHT: Final = "the clock is right again"
PROBLEM: Final = "problem"
PROBLEM_OVER: Final = "problem is over"
DIRECTORY_SHARED: Final = "other users can access the data directory"
READS_NOT_SHARED: Final = "reads are not shared"
SNAPSHOT_HELD: Final = "a process holds a snapshot of the store"
SNAPSHOT_RELEASED: Final = "no process holds an old snapshot of the store"
