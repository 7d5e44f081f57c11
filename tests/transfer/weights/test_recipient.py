"""Taking weights: by every way, from the first candidate that gives the right ones, whatever the others do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from weights_world import (
    CHUNK,
    CONTENT,
    IDENTITY,
    IMPATIENT_FOR_NOBODY,
    LIES,
    PATIENCE,
    SIZE,
    Room,
    donor,
    manifest_of,
    sealed,
    stranger,
)

from hyperflexis.transfer.protocol import Told, frame
from hyperflexis.transfer.watermark import Watermark
from hyperflexis.transfer.weights import donor as donor_module
from hyperflexis.transfer.weights import filling
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.joining import Decline, prove
from hyperflexis.transfer.weights.offer import Offer, offer_at
from hyperflexis.transfer.weights.recipient import NoDonor, Taken, Wanted, fetch_parts, take

TRUE = manifest_of(CONTENT)
COPY = Wanted(IDENTITY, attaches=False)
WAYS: dict[str, tuple[bool, list[str] | None]] = {
    "attach": (True, None),
    "shm": (False, ["shm", "unix"]),
    "unix": (False, ["unix"]),
    "tcp": (False, ["tcp"]),
}


def taken_content(taken: Taken, room: Room) -> bytes:
    if taken.fd is None:
        return room.content
    try:
        return os.pread(taken.fd, SIZE, 0)
    finally:
        os.close(taken.fd)


def took(offers: list[Offer], room: Room, wanted: Wanted = COPY, **options: Any) -> Taken:
    """The right bytes, from one of them."""
    taken = take(offers, wanted, room.allocate, **{"patience": PATIENCE, **options})
    assert taken_content(taken, room) == CONTENT
    return taken


@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_weights_come_by_every_way(way: str, has_manifest: bool, room: Room) -> None:
    attaches, media = WAYS[way]
    with donor(manifest=TRUE if has_manifest else None) as one:
        one.put("profile", b"fast")
        wanted = Wanted(IDENTITY, attaches=attaches)
        taken = took([one.offer], room, wanted, media=media, parts=["profile", "absent"])
        assert (taken.medium, taken.donor, taken.failures) == (way, str(one.offer), [])
        assert taken.parts == {"profile": b"fast"}
        assert len(room.fds) == (0 if attaches else 1)
        if has_manifest or not attaches:
            assert taken.manifest == TRUE


def test_attached_memory_is_the_donors_own(room: Room) -> None:
    with donor(manifest=TRUE) as one:
        taken = take([one.offer], Wanted(IDENTITY), room.allocate, patience=PATIENCE)
        assert one._memory is not None
        assert taken.fd is not None
        assert os.fstat(taken.fd).st_ino == os.fstat(one._memory.fd).st_ino
        with pytest.raises(PermissionError):
            os.open(f"/proc/self/fd/{taken.fd}", os.O_RDWR | os.O_TRUNC)
    assert os.pread(taken.fd, SIZE, 0) == CONTENT, "it lives as long as anybody has it"
    os.close(taken.fd)


def test_neighbour_that_was_found_through_the_network_is_attached(room: Room) -> None:
    with donor(manifest=TRUE, secret=b"token") as one:
        assert one.offer.tcp is not None
        taken = took([offer_at(*one.offer.tcp, b"token")], room, Wanted(IDENTITY))
        assert taken.medium == "attach"


def test_other_user_is_handed_no_memory(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    with donor(manifest=TRUE) as one:
        monkeypatch.setattr(donor_module.os, "geteuid", lambda: os.getuid() + 1)
        assert took([one.offer], room, Wanted(IDENTITY)).medium == "shm"


# -- candidates that give nothing


def other(**changes: Any) -> Callable[[], Any]:
    return lambda: donor(identity=msgspec.structs.replace(IDENTITY, **changes))


DECLINING: dict[str, tuple[Callable[[], Any], str]] = {
    "another model": (other(model="other"), "has another model"),
    "another dtype": (other(dtype="bfloat16"), "has another dtype"),
    "another layout": (other(layout="other"), "has another layout"),
    "another rank": (other(rank=1, ranks=2), "has another part"),
}


@pytest.mark.parametrize("case", DECLINING)
def test_other_weights_are_declined_and_the_next_one_is_asked(case: str, room: Room) -> None:
    make, words = DECLINING[case]
    with make() as wrong, donor(manifest=TRUE) as right:
        taken = took([wrong.offer, right.offer], room)
        assert taken.donor == str(right.offer)
        (failure,) = taken.failures
        assert words in failure


def test_without_the_secret_nothing_is_given(room: Room) -> None:
    with donor(manifest=TRUE) as one:
        thief = msgspec.structs.replace(one.offer, secret=b"guessed")
        with pytest.raises(NoDonor, match="another secret"):
            take([thief], COPY, room.allocate, patience=PATIENCE)
        with pytest.raises(NoDonor, match="another secret"):
            fetch_parts([thief], "", PATIENCE)


def test_donor_that_is_gone(room: Room) -> None:
    with donor() as gone:
        offer = gone.offer
    with donor(manifest=TRUE) as right:
        assert "does not answer" in took([offer, right.offer], room).failures[0]


def test_donor_that_says_nothing(room: Room) -> None:
    with stranger(None) as silent, donor(manifest=TRUE) as right:
        assert "no answer within 0.3 s" in took([silent, right.offer], room).failures[0]


STRANGE = {
    "garbage": (b"\xff" * 64, "was lost while it was asked"),
    "an unproved answer": (frame(Told(prove(Decline("no"), b"other secret"))), "cannot be believed"),
    "an old answer": (frame(Told(prove(Decline("no"), b"secret", b"the nonce of then"))), "cannot be believed"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_stranger_at_a_donors_address(case: str, room: Room) -> None:
    answer, words = STRANGE[case]
    with stranger(answer) as strange, donor(manifest=TRUE) as right:
        assert words in took([strange, right.offer], room).failures[0]


def test_nobody_gives_them(room: Room) -> None:
    with donor(identity=msgspec.structs.replace(IDENTITY, model="other")) as wrong, stranger(None) as silent:
        with pytest.raises(NoDonor) as caught:
            take([wrong.offer, silent], COPY, room.allocate, patience=PATIENCE)
        assert len(caught.value.failures) == 2
    with pytest.raises(NoDonor, match="no candidates"):
        take([], COPY, room.allocate)


# -- donors that fail in the middle


def after_chunks(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], object]) -> list[int]:
    """Do something once so many chunks have settled; returns the list of those that do."""
    settle, seen = filling.Filling._settle, []

    def counting(self: filling.Filling, start: int, *rest: Any) -> None:
        settle(self, start, *rest)
        seen.append(start)
        if len(seen) == count:
            act()

    monkeypatch.setattr(filling.Filling, "_settle", counting)
    return seen


@pytest.mark.parametrize("media", [["unix"], ["tcp"], ["shm", "unix"]])
def test_what_has_settled_is_kept_when_a_donor_dies(
    media: list[str], room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    with donor(manifest=TRUE) as first, donor(manifest=TRUE) as second:
        settled = after_chunks(monkeypatch, 3, first.close)
        taken = took([first.offer, second.offer], room, media=media)
        assert taken.donor == str(second.offer)
        assert settled == list(range(0, SIZE, CHUNK)), "each chunk once"
        assert len(room.fds) == 1


def test_weights_that_are_taken_back(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    with donor(manifest=TRUE) as first, donor(manifest=TRUE) as second:
        after_chunks(monkeypatch, 2, first.withdraw)
        assert "revoked" in took([first.offer, second.offer], room, media=["tcp"]).failures[0]


def test_donor_that_comes_no_further(room: Room) -> None:
    stuck = Donor(tcp_host="127.0.0.1")
    watermark = Watermark(SIZE)
    stuck.fill(IDENTITY, memoryview(CONTENT), watermark)
    stuck.publish(TRUE)
    watermark.rise(2 * CHUNK)
    with donor(manifest=TRUE) as right:
        taken = took([stuck.offer, right.offer], room)
        assert "was not done within the 0.5 s" in taken.failures[0]
        assert len(room.fds) == 1
    stuck.close()


# -- donors that lie


@pytest.mark.parametrize("way", ["shm", "unix", "tcp"])
def test_wrong_chunk_is_found_when_it_comes(way: str, room: Room) -> None:
    with donor(LIES, TRUE) as liar, donor(manifest=TRUE) as right:
        taken = took([liar.offer, right.offer], room, media=WAYS[way][1])
        assert f"the chunk at byte {5 * CHUNK} " in taken.failures[0]
        assert len(room.fds) == 1, "what came before it was right"


def test_attached_lie_is_found_where_all_is_compared(room: Room) -> None:
    with donor(LIES, TRUE) as liar, donor(manifest=TRUE) as right:
        taken = took([liar.offer, right.offer], room, Wanted(IDENTITY, checks_all=True))
        assert f"not what it is to be at byte {5 * CHUNK}" in taken.failures[0]


def test_attached_memory_of_something_else_is_found_by_a_few_looks(room: Room) -> None:
    with donor(bytes(SIZE), TRUE) as liar, donor(manifest=TRUE) as right:
        assert "not what it is to be" in took([liar.offer, right.offer], room, Wanted(IDENTITY)).failures[0]


@pytest.mark.parametrize("attaches", [True, False])
def test_consistent_lie_is_found_by_who_knows_the_root(attaches: bool, room: Room) -> None:
    wanted = Wanted(IDENTITY, root=TRUE.root, attaches=attaches)
    with donor(LIES, manifest_of(LIES)) as liar, donor(manifest=TRUE) as right:
        taken = took([liar.offer, right.offer], room, wanted)
        assert "has other bytes than those that are wanted" in taken.failures[0]
        assert len(room.fds) == (0 if attaches else 1), "nothing of it was copied"


@pytest.mark.parametrize("attaches", [True, False])
def test_lie_without_digests_is_found_by_who_knows_the_root(attaches: bool, room: Room) -> None:
    wanted = Wanted(IDENTITY, root=TRUE.root, attaches=attaches)
    with donor(LIES) as liar, donor() as right:
        taken = took([liar.offer, right.offer], room, wanted)
        assert "has other bytes than those that are wanted" in taken.failures[0]
        assert len(room.fds) == (0 if attaches else 2), "what was copied of it is not built on"


def test_donors_that_disagree_are_not_mixed(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    others = bytes(reversed(CONTENT))
    with donor(others, manifest_of(others)) as first, donor(manifest=TRUE) as second:
        after_chunks(monkeypatch, 3, first.close)
        took([first.offer, second.offer], room, media=["tcp"])
        assert len(room.fds) == 2


def test_digests_of_something_else_are_no_digests(room: Room) -> None:
    with donor(manifest=manifest_of(CONTENT[:CHUNK])) as confused, donor(manifest=TRUE) as right:
        assert "digests of something else" in took([confused.offer, right.offer], room).failures[0]


def test_memory_that_could_still_be_written_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperflexis.transfer.memory import SharedMemory

    open_memory = SharedMemory(SIZE)
    open_memory.view[:] = CONTENT
    careless = Donor()
    careless.lend(IDENTITY, open_memory)
    with donor(manifest=TRUE) as right:
        assert "not sealed as it should be" in took([careless.offer, right.offer], room, Wanted(IDENTITY)).failures[0]
    careless.close()


# -- what goes along, and chains


def test_parts_are_fetched_by_who_does_not_know_the_weights() -> None:
    with donor() as bare, donor() as one:
        one.put("files/config.json", b"{}")
        one.put("files/tokenizer.json", b"x" * 5000)
        one.put("profile", b"fast")
        found = fetch_parts([bare.offer, one.offer], "files/", PATIENCE)
        assert found == {"config.json": b"{}", "tokenizer.json": b"x" * 5000}
        one.put("files/config.json", b"[]")
        assert fetch_parts([one.offer], "files/", PATIENCE)["config.json"] == b"[]"


def test_chain_passes_on_what_has_settled_and_no_lie() -> None:
    """Three recipients, one behind the other, filled while the first donor's bytes come; the second link lies."""
    rooms = [Room() for _ in range(3)]
    donors = [Donor(tcp_host="127.0.0.1") for _ in range(3)]
    is_filling = [threading.Event() for _ in range(3)]
    taken: dict[int, Taken] = {}
    with donor(manifest=TRUE, bytes_per_s=2e5) as first:

        def link(index: int, offers: list[Offer]) -> None:
            def allocate(identity: Identity, manifest: Any) -> filling.Filling:
                made = rooms[index].allocate(identity, manifest)
                lent = memoryview(LIES) if index == 1 else _mapped(rooms[index].fds[-1])
                donors[index].fill(IDENTITY, lent, made.watermark)
                donors[index].publish(manifest)
                is_filling[index].set()
                return made

            taken[index] = take(offers, COPY, allocate, patience=IMPATIENT_FOR_NOBODY, media=["tcp"])

        threads = []
        for index in range(3):
            before = [donors[index - 1].offer] if index else []
            threads.append(threading.Thread(target=link, args=(index, [*before, first.offer])))
            threads[-1].start()
            assert is_filling[index].wait(20)
        for thread in threads:
            thread.join()
    assert [room.content for room in rooms] == [CONTENT] * 3
    assert [taken[index].donor for index in range(2)] == [str(first.offer), str(donors[0].offer)]
    assert f"the chunk at byte {5 * CHUNK} " in taken[2].failures[0]
    for index in range(3):
        donors[index].close()
        rooms[index].close()


def _mapped(fd: int) -> memoryview:
    import mmap

    return memoryview(mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ))


def test_sealed_memory_follows_what_was_being_filled(room: Room) -> None:
    """Who pulls already goes on; who comes later is handed the memory."""
    made = room.allocate(IDENTITY, TRUE)
    one = Donor()
    one.fill(IDENTITY, _mapped(room.fds[-1]), made.watermark)
    own = Room()
    early = take  # Begun below, in a thread, while nothing has settled.
    results: list[Taken] = []
    thread = threading.Thread(
        target=lambda: results.append(early([one.offer], COPY, own.allocate, patience=IMPATIENT_FOR_NOBODY))
    )
    thread.start()
    os.pwrite(room.fds[-1], CONTENT, 0)
    made.watermark.rise(SIZE)
    memory = sealed(CONTENT)
    one.lend(IDENTITY, memory)
    thread.join()
    assert own.content == CONTENT
    late = take([one.offer], Wanted(IDENTITY), room.allocate, patience=PATIENCE)
    assert late.medium == "attach"
    assert late.fd is not None
    os.close(late.fd)
    one.close()
    memory.close()
    own.close()
