"""The PDU machine: right bytes, wrong bytes, any portions."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.dimse import pdu
from talaria.dimse.pdu import Aborted, AssociateReject, CommandSet, DataSet, Machine, Phase, ProtocolError, Reason
from wire import data_pdus, store_rq

MOST = 4096


def events(portions: Iterable[bytes], *, phase: Phase = Phase.OPEN) -> list[object]:
    """What a machine makes of *portions*, pieces of data sets joined; an error is the last event."""
    machine = Machine(phase=phase, max_length=MOST)
    if phase is Phase.OPEN:
        machine.open([1, 3])
    found: list[object] = []
    try:
        for portion in portions:
            for event in machine.feed(portion):
                _add(found, event)
    except ProtocolError as error:
        found.append((str(error), error.reason))
    return found


def _add(found: list[object], event: object) -> None:
    if not isinstance(event, DataSet):
        found.append(event)
        return
    data = b"".join(event.fragments)
    if found and isinstance(found[-1], list) and not found[-1][2]:
        found[-1][1] += data
        found[-1][2] = event.is_last
    else:
        found.append([event.context_id, data, event.is_last])


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    portions, at = [], 0
    for size in sizes:
        portions.append(data[at : at + size])
        at += size
    return [*portions, data[at:]]


MESSAGE = store_rq(max_length=40) + data_pdus(bytes(range(256)) * 20, size=1001)


@given(st.lists(st.integers(0, 3000), max_size=30))
def test_same_events_whatever_the_portions(sizes: list[int]) -> None:
    """A message cut anywhere gives the same command and the same data set."""
    data = MESSAGE + MESSAGE + pdu.RELEASE_RQ

    assert events([data]) == events(cut(data, sizes))


@given(st.binary(max_size=400), st.lists(st.integers(0, 50), max_size=30), st.sampled_from(list(Phase)))
def test_any_bytes_give_events_or_the_declared_error(data: bytes, sizes: list[int], phase: Phase) -> None:
    """Nothing but ProtocolError is ever raised, and portions change neither events nor error."""
    assert events([data], phase=phase) == events(cut(data, sizes), phase=phase)


def _pdv() -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda length, context, control, data: (
            (length if length is not None else len(data) + 2).to_bytes(4, "big") + bytes((context, control)) + data
        ),
        st.one_of(st.none(), st.none(), st.none(), st.integers(0, 60)),
        st.sampled_from([1, 1, 1, 3, 5]),
        st.sampled_from([0, 1, 2, 2, 3, 3, 4, 255]),
        st.binary(max_size=40),
    )


@given(
    st.lists(st.lists(_pdv(), min_size=1, max_size=4).map(b"".join), max_size=8),
    st.lists(st.integers(0, 60), max_size=30),
)
def test_any_fragments_give_events_or_the_declared_error(bodies: list[bytes], sizes: list[int]) -> None:
    """The same for streams that look like P-DATA-TF."""
    data = b"".join(b"\4\0" + len(body).to_bytes(4, "big") + body for body in bodies)

    assert events([data]) == events(cut(data, sizes))


def test_fragments_show_the_buffer_without_copying() -> None:
    """The pieces of a data set are views of what was fed."""
    buffer = bytearray(store_rq() + data_pdus(b"x" * 100))
    machine = Machine(phase=Phase.OPEN, max_length=MOST)
    machine.open([1])

    found = [event for event in machine.feed(memoryview(buffer)) if isinstance(event, DataSet)]

    assert [buffer] == [fragment.obj for event in found for fragment in event.fragments]


def test_empty_last_fragment_ends_the_data_set() -> None:
    """A PDV without data that bears the last-fragment flag is an end, not a wait."""
    unfinished = b"\4\0\0\0\0\x08\0\0\0\4\1\0ab"
    data = store_rq() + unfinished + b"\4\0\0\0\0\6\0\0\0\2\1\2"

    assert [1, b"ab", True] == events([data])[1]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\0\0\0\0\0\4", Reason.UNRECOGNISED_PDU),
        (b"\x08\0\0\0\0\4", Reason.UNRECOGNISED_PDU),
        (b"GET / ", Reason.UNRECOGNISED_PDU),
        (b"\x16\3\1\2\0\1", Reason.UNRECOGNISED_PDU),
        (b"\1\0\0\0\1\0", Reason.UNEXPECTED_PDU),
        (b"\4\0\xff\xff\xff\xff", Reason.INVALID_PARAMETER),
        (b"\4\0\0\0\x10\1", Reason.INVALID_PARAMETER),
        (b"\4\0\0\0\0\0", Reason.INVALID_PARAMETER),
        (b"\4\0\0\0\0\1", Reason.INVALID_PARAMETER),
        (b"\5\0\0\0\0\0", Reason.INVALID_PARAMETER),
        (b"\5\0\0\0\0\5", Reason.INVALID_PARAMETER),
    ],
)
def test_bad_header_is_refused_at_the_header(header: bytes, reason: Reason) -> None:
    """Type and length are refused before a byte of the body is there."""
    assert reason is events([header])[-1][1]


@pytest.mark.parametrize("length", [0, 1, 67, (1 << 20) + 1, 0xFFFFFFFF])
def test_request_of_impossible_length_is_refused_at_the_header(length: int) -> None:
    """An A-ASSOCIATE-RQ that claims 4 GiB is never read."""
    found = events([b"\1\0" + length.to_bytes(4, "big")], phase=Phase.LISTENING)

    assert Reason.INVALID_PARAMETER is found[-1][1]


@pytest.mark.parametrize(
    "body",
    [
        b"\0\0\0\0\1\3",  # PDV length 0
        b"\0\0\0\1\1\3",  # PDV length 1
        b"\0\0\0\x09\1\3ab",  # past its PDU
        b"\0\0\0\4\1\xffab",  # control byte
        b"\0\0\0\4\5\3ab",  # context not accepted
        b"\0\0\0\4\1\2ab",  # data set without a command
        b"\0\0\0\4\1\3ab\0\0\0",  # bytes left that are no PDV
        b"\0\0\0\4\1\1ab\0\0\0\4\3\3ab",  # two commands interleaved
        b"\0\0\0\4\1\1ab\0\0\0\4\1\2ab",  # data set within a command
        b"\0\0\0\4\1\3ab\0\0\0\4\1\0ab\0\0\0\4\1\3ab",  # command within a data set
    ],
)
def test_bad_fragment_is_refused(body: bytes) -> None:
    """Each is an invalid parameter, wherever it stands."""
    found = events([b"\4\0" + len(body).to_bytes(4, "big") + body])

    assert Reason.INVALID_PARAMETER is found[-1][1]


def test_endless_command_is_refused() -> None:
    """A command set that never ends is given up after 64 KB."""
    fragment = b"\4\0\0\0\4\6\0\0\4\2\1\1" + bytes(1024)

    assert ("command set of more than 65536 bytes", Reason.INVALID_PARAMETER) == events([fragment] * 65)[-1]


def test_data_after_release_is_refused() -> None:
    """Whoever asks for release has nothing more to say."""
    assert Reason.UNEXPECTED_PDU is events([pdu.RELEASE_RQ + store_rq()])[-1][1]


def test_abort_and_reject_are_read() -> None:
    """Source, result and reason are where PS3.8 has them."""
    assert [Aborted(2, 6)] == events([pdu.abort(Reason.INVALID_PARAMETER)])
    assert [Aborted(0, 0)] == events([pdu.abort()])
    assert [AssociateReject(2, 3, 1)] == events([pdu.reject(2, 3, 1)], phase=Phase.REQUESTING)


@given(st.binary(min_size=1, max_size=300), st.integers(pdu.LEAST_PDU_BYTES, 200) | st.just(0))
def test_commands_are_cut_to_the_peers_length(command: bytes, max_length: int) -> None:
    """A command set comes out as it went in, in PDUs of at most the length that the peer takes."""
    data = pdu.command_pdus(3, command, max_length=max_length)

    assert [CommandSet(3, command)] == events([data])
    assert not max_length or max_length >= int.from_bytes(data[2:6], "big")
