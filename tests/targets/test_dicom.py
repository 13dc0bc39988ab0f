"""The DICOM target: against a node that stores, refuses, is full, hangs up or is not there."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from talaria.dimse.negotiation import Rejection
from talaria.dimse.scp import Association, Ending, Limits, Listener, StoreRequest
from talaria.model.dicom import Origin
from talaria.model.errors import Congested, Mismatch, NoRoom, Permanent, Transient
from talaria.model.extensions import Delivery, Outcome, Standing, Target
from talaria.targets.dicom import Dicom
from talaria.testing import TargetContract, delivery_of, synthetic_ct


@dataclass
class Node:
    """A node that keeps UIDs, and does what its script says with each next instance."""

    script: list[Exception | None] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    barrier: threading.Barrier | None = None

    def open(self, request: StoreRequest) -> "Arriving":
        return Arriving(self, request)

    def ended(self, association: Association, how: Ending) -> None:
        self.origins.append(association.origin)
        self.endings.append(how)


@dataclass
class Arriving:
    node: Node
    request: StoreRequest

    def write(self, fragments: Sequence[memoryview]) -> None:
        pass

    def commit(self) -> None:
        if self.node.barrier:
            self.node.barrier.wait(10)
        error = self.node.script.pop(0) if self.node.script else None
        if error:
            raise error
        self.node.uids.append(self.request.sop_instance_uid)

    def discard(self) -> None:
        pass


def guard(work: Callable[[], None]) -> BaseException | None:
    try:
        work()
    except Exception as bug:  # noqa: BLE001 - stands in for the one of the program
        return bug
    return None


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def listen(node: Node) -> Iterator[Callable[..., Dicom]]:
    """Starts the node; a target that reaches it."""
    made: list[Listener] = []

    def listen(limits: Limits | None = None, gate: object = lambda origin: None, **settings: object) -> Dicom:
        listener = Listener(host="127.0.0.1", port=0, sink=node, guard=guard, gate=gate, limits=limits)
        listener.start()
        made.append(listener)
        return Dicom.model_validate({"host": "127.0.0.1", "port": listener.port, "called_ae": "NODE", **settings})

    yield listen
    for listener in made:
        listener.stop(timedelta(0))


def delivery(tmp_path: Path, *, slices: int = 4, attempt: int = 1) -> Delivery:
    return delivery_of(synthetic_ct(tmp_path / "spool", slices=slices, side=32).paths, attempt=attempt)


def uids(of: Delivery) -> list[str]:
    return [parcel.sop_instance_uid for parcel in of.parcels]


class TestContract(TargetContract):
    """What every target must do."""

    @pytest.fixture(autouse=True)
    def _nodes(self) -> Iterator[None]:
        self.node = Node()
        self.listeners: list[Listener] = []
        yield
        for listener in self.listeners:
            listener.stop(timedelta(0))

    def _target(self, node: Node) -> Dicom:
        listener = Listener(host="127.0.0.1", port=0, sink=node, guard=guard)
        listener.start()
        self.listeners.append(listener)
        return Dicom(host="127.0.0.1", port=listener.port, called_ae="NODE")

    def target(self, folder: Path) -> Target:
        return self._target(self.node)

    def arrived(self, folder: Path) -> Mapping[str, int]:
        return Counter(set(self.node.uids))  # a node that gets an instance again has it once

    def gone(self, folder: Path) -> Target:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Dicom(host="127.0.0.1", port=server.getsockname()[1], called_ae="NODE")

    def full(self, folder: Path) -> Target:
        return self._target(Node(script=[NoRoom("full")] * 9))


@pytest.mark.parametrize("associations", [1, 3])
def test_refused_instance_does_not_stop_the_others(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path, associations: int
) -> None:
    """A9xx fails one instance; its outcome says what the node said."""
    node.script = [Mismatch("not what it says")]
    wanted = delivery(tmp_path)

    outcomes = list(listen(associations=associations).deliver(wanted))

    assert {Standing.FAILED: 1, Standing.SENT: 3} == Counter(outcome.standing for outcome in outcomes)
    failed = next(outcome for outcome in outcomes if outcome.standing is Standing.FAILED)
    assert ("status A900, data set does not match SOP class: not what it says", 0xA900) == (
        failed.detail,
        failed.status,
    )


@pytest.mark.parametrize("associations", [1, 3])
def test_full_node_is_transient_after_what_was_done(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path, associations: int
) -> None:
    """A700 ends the attempt; what was stored before was told."""
    node.script = [None, None, *[NoRoom("full")] * 9]
    done: list[Outcome] = []
    with pytest.raises(Transient, match="has no room now"):
        _note(listen(associations=associations).deliver(delivery(tmp_path, slices=8)), done)

    assert 2 == len(done) == len(node.uids)


def _note(outcomes: Iterator[Outcome], done: list[Outcome]) -> None:
    """What was yielded counts, whatever is raised after it."""
    for outcome in outcomes:
        done.append(outcome)  # noqa: PERF402 - so that it is there when the iterator raises


def test_failure_inside_the_node_is_tried_again_some_times(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path
) -> None:
    """0110 at one instance: the others are sent, the attempt is transient; on the fifth the instance has failed."""
    target = listen()
    for attempt in (1, 5):
        node.script, node.uids = [None, RuntimeError("a bug in there")], []
        wanted, done = delivery(tmp_path, attempt=attempt), []
        if attempt == 1:
            with pytest.raises(Transient, match="failed at 1 instances"):
                _note(target.deliver(wanted), done)
            assert 3 == len(done)
        else:
            _note(target.deliver(wanted), done)
            assert Standing.FAILED is done[1].standing
        assert 3 == len(node.uids)


def test_instance_that_breaks_the_association_blocks_no_other(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path
) -> None:
    """One that is too long for the node is tried alone, then left aside; the attempt is transient."""
    wanted, done = delivery(tmp_path, slices=6), []
    with wanted.parcels[2].path.open("ab") as file:
        file.write(bytes(100_000))
    long = replace(wanted.parcels[2], sha256="")
    wanted = replace(wanted, parcels=(*wanted.parcels[:2], long, *wanted.parcels[3:]))
    with pytest.raises(Transient, match="failed at 1 instances"):
        _note(listen(Limits(instance_bytes=50_000)).deliver(wanted), done)

    assert 5 == len(done) == len(node.uids)


def test_node_that_breaks_every_association_is_left_alone(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path
) -> None:
    """After three in a row, not after a thousand."""
    with pytest.raises(Transient, match="aborted the association"):
        list(listen(Limits(instance_bytes=10)).deliver(delivery(tmp_path, slices=20)))
    _wait_for(lambda: len(node.endings) == 3)


def test_context_that_is_not_accepted_fails_its_instances_only(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path
) -> None:
    """The outcome names SOP class and syntax."""
    wanted = delivery(tmp_path, slices=2)
    other = replace(wanted.parcels[0], sop_class_uid="1.2.840.10008.5.1.4.31")

    outcomes = list(listen().deliver(replace(wanted, parcels=(other, wanted.parcels[1]))))

    assert [Standing.FAILED, Standing.SENT] == [outcome.standing for outcome in outcomes]
    assert (
        "does not accept Modality Worklist Information Model - FIND in Explicit VR Little Endian" in outcomes[0].detail
    )


def test_damaged_file_fails_alone(node: Node, listen: Callable[..., Dicom], tmp_path: Path) -> None:
    """Also a large one, which costs the association: the rest goes over a new one."""
    wanted = delivery(tmp_path, slices=3)
    large = wanted.parcels[0]
    with large.path.open("ab") as file:
        file.write(bytes(3_000_000))
    small = replace(wanted.parcels[1], sha256="0" * 64)

    outcomes = list(listen().deliver(replace(wanted, parcels=(large, small, wanted.parcels[2]))))

    assert [Standing.FAILED, Standing.FAILED, Standing.SENT] == [outcome.standing for outcome in outcomes]
    assert "is not what was received" in outcomes[0].detail


def test_more_contexts_than_one_association_holds(node: Node, listen: Callable[..., Dicom], tmp_path: Path) -> None:
    """200 SOP classes go over two associations."""
    wanted = delivery(tmp_path, slices=1)
    parcels = tuple(
        replace(wanted.parcels[0], sop_class_uid=f"1.2.3.{number}", sop_instance_uid=f"1.9.{number}")
        for number in range(200)
    )

    outcomes = list(listen().deliver(replace(wanted, parcels=parcels)))

    assert (200, {Standing.SENT}) == (len(outcomes), {outcome.standing for outcome in outcomes})
    assert 200 == len(set(node.uids))


def test_associations_work_side_by_side(node: Node, listen: Callable[..., Dicom], tmp_path: Path) -> None:
    """Three are open at once: each instance waits for two others before it is stored."""
    node.barrier = threading.Barrier(3)

    outcomes = list(listen(associations=3).deliver(delivery(tmp_path, slices=6)))

    assert 6 == len({outcome.instance_id for outcome in outcomes})


def test_node_that_allows_fewer_associations_gets_everything(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path
) -> None:
    """A rejected lane is no failure where the others bring it all home."""
    target = listen(Limits(associations_per_address=1), associations=4)
    wanted = delivery(tmp_path, slices=8)

    assert 8 == len(list(target.deliver(wanted)))
    assert sorted(uids(wanted)) == sorted(node.uids)


@pytest.mark.parametrize("associations", [1, 3])
def test_closed_delivery_is_broken_off(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path, associations: int
) -> None:
    """Quickly, and nothing goes on behind."""
    target = listen(associations=associations)
    outcomes = target.deliver(delivery(tmp_path, slices=20))
    with closing(outcomes):
        next(outcomes)
        began = time.monotonic()

    assert 2 > time.monotonic() - began
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dicom-send")]


def test_rejection_says_what_to_do(listen: Callable[..., Dicom], tmp_path: Path) -> None:
    """Unknown titles are permanent, congestion is not."""
    wanted = delivery(tmp_path, slices=1)
    with pytest.raises(Permanent, match="called AE 'NODE', calling AE 'TALARIA'"):
        list(listen(gate=lambda origin: Rejection(result=1, source=1, reason=7)).deliver(wanted))
    with pytest.raises(Congested):
        list(listen(gate=lambda origin: Rejection(result=2, source=3, reason=1)).deliver(wanted))


def test_titles_and_address_of_the_sender_are_passed_through(
    node: Node, listen: Callable[..., Dicom], tmp_path: Path
) -> None:
    """Return to sender: the address, and both titles turned round."""
    target = listen(host="sender", called_ae="{calling_ae}", calling_ae="{called_ae}")
    wanted = replace(
        delivery(tmp_path, slices=1), origin=Origin(calling_ae="CT1", called_ae="ROUTER", address="127.0.0.1")
    )

    list(target.deliver(wanted))
    listen()

    _wait_for(lambda: node.origins)
    assert ("ROUTER", "CT1") == (node.origins[0].calling_ae, node.origins[0].called_ae)


def _wait_for(condition: Callable[[], object]) -> None:
    deadline, event = time.monotonic() + 10, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        event.wait(0.01)


@pytest.mark.parametrize("address", ["", "ct1.example", "169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"])
def test_address_of_a_sender_is_checked(tmp_path: Path, address: str) -> None:
    """No name, no link-local address, nothing that no node has."""
    wanted = replace(delivery(tmp_path, slices=1), origin=Origin(calling_ae="A", called_ae="B", address=address))
    with pytest.raises(Permanent):
        list(Dicom(host="sender", called_ae="{calling_ae}").deliver(wanted))


def test_title_of_a_sender_that_is_none_is_permanent(tmp_path: Path) -> None:
    """What a peer called itself may be anything."""
    origin = Origin(calling_ae="back\\slash", called_ae="B", address="127.0.0.1")
    wanted = replace(delivery(tmp_path, slices=1), origin=origin)
    with pytest.raises(Permanent, match="write the AE title out"):
        list(Dicom(host="sender", called_ae="{calling_ae}").deliver(wanted))


def test_check_tells_what_is_accepted(node: Node, listen: Callable[..., Dicom]) -> None:
    """The echo, the classes and the syntaxes, in words."""
    texts = [finding.text for finding in listen().check()]

    assert "answers C-ECHO as 'NODE' (TALARIA_0_1)" in texts[0]
    assert texts[1].startswith("accepts 31 of 31 storage classes: CT Image Storage, ")
    assert texts[2].startswith("accepts 11 of 11 transfer syntaxes: Implicit VR Little Endian, ")


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 0},
        {"port": 70000},
        {"called_ae": "A TITLE THAT IS TOO LONG"},
        {"called_ae": "back\\slash"},
        {"called_ae": "  "},
        {"associations": 17},
        {"tls": {}},
        {"verify": "commitment"},
        {"host": ""},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    """When the rulebook is read, not when a delivery fails."""
    with pytest.raises(ValidationError):
        Dicom.model_validate({"host": "pacs", "called_ae": "PACS", **settings})
