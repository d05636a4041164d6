"""The heartbeat of a shared store across a compaction."""

from __future__ import annotations

from pathlib import Path

from dstash.peer.sharing.outlet import outlet
from dstash.store.environment.switch import Step
from dstash.store.lmdb import LmdbStore
from dstash.store.sharing.heartbeat import TICKET, Heartbeat, SeenHeartbeat
from dstash.store.sharing.places import StorePlace, this_machine
from tests.store.test_lmdb import put


def test_ticket_is_hidden_before_the_data_file_is_replaced(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    put(store, "key")
    heartbeat = Heartbeat(tmp_path)
    seen = SeenHeartbeat(tmp_path)
    ours = outlet(store, heartbeat, StorePlace(this_machine(), str(tmp_path), store.store_id))
    old, ticket = ours.generation(), ours.new_ticket()
    ours.show(ticket, old)
    shown: dict[Step, int] = {}

    def note(step: Step) -> None:
        shown[step] = seen.words[TICKET]
        ours.show(shown[step], old)

    store.compact(on_step=note)
    hidden = {step for step, number in shown.items() if not number}
    assert hidden == set(list(Step)[list(Step).index(Step.COMPLETE) :])
    assert set(shown.values()) == {ticket, 0}
    ours.show(ticket, old)
    assert seen.words[TICKET] == 0, "a mark of the old file"
    ours.show(ticket, ours.generation())
    assert (seen.words[TICKET], seen.generation) == (ticket, store.generation)
    seen.close()
    heartbeat.close()
    store.close()
