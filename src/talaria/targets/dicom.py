"""A DICOM node that takes instances by C-STORE."""

import ipaddress
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from queue import SimpleQueue
from typing import Annotated, ClassVar, Literal

import pydicom.uid
from pydantic import Field, field_validator

from talaria.dimse.command import Meaning
from talaria.dimse.negotiation import Context, by_association
from talaria.dimse.scu import AssociationLost, Damaged, NotAccepted, Peer, Sender, StoreResult, Timeouts
from talaria.failpoint import failpoint
from talaria.model.dicom import AETitle, Origin
from talaria.model.errors import Permanent, Transient
from talaria.model.extensions import Delivery, Finding, Findings, Outcome, Parcel, Standing, Target
from talaria.model.quantity import Span

#: Written as host, it means the address that the originals came from.
SENDER = "sender"

#: A peer that fails inside at an instance (0110) is asked again on so many attempts, then the instance has failed.
_TRIES_AT_FAILURE = 5

#: So many associations in a row may be lost at their first instance before the node, not the instance, is to blame.
_BARREN_ASSOCIATIONS = 3

#: Classes that `check` asks for: what most departments send.
_CLASSES = (
    pydicom.uid.CTImageStorage,
    pydicom.uid.EnhancedCTImageStorage,
    pydicom.uid.MRImageStorage,
    pydicom.uid.EnhancedMRImageStorage,
    pydicom.uid.ComputedRadiographyImageStorage,
    pydicom.uid.DigitalXRayImageStorageForPresentation,
    pydicom.uid.DigitalMammographyXRayImageStorageForPresentation,
    pydicom.uid.BreastTomosynthesisImageStorage,
    pydicom.uid.UltrasoundImageStorage,
    pydicom.uid.UltrasoundMultiFrameImageStorage,
    pydicom.uid.XRayAngiographicImageStorage,
    pydicom.uid.XRayRadiofluoroscopicImageStorage,
    pydicom.uid.PositronEmissionTomographyImageStorage,
    pydicom.uid.NuclearMedicineImageStorage,
    pydicom.uid.SecondaryCaptureImageStorage,
    pydicom.uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    pydicom.uid.SegmentationStorage,
    pydicom.uid.ParametricMapStorage,
    pydicom.uid.GrayscaleSoftcopyPresentationStateStorage,
    pydicom.uid.KeyObjectSelectionDocumentStorage,
    pydicom.uid.BasicTextSRStorage,
    pydicom.uid.EnhancedSRStorage,
    pydicom.uid.ComprehensiveSRStorage,
    pydicom.uid.Comprehensive3DSRStorage,
    pydicom.uid.XRayRadiationDoseSRStorage,
    pydicom.uid.EncapsulatedPDFStorage,
    pydicom.uid.RTStructureSetStorage,
    pydicom.uid.RTPlanStorage,
    pydicom.uid.RTDoseStorage,
    pydicom.uid.RTImageStorage,
    pydicom.uid.RawDataStorage,
)

#: Syntaxes that `check` asks for, with CT and secondary capture as the examples.
_SYNTAXES = (
    pydicom.uid.ImplicitVRLittleEndian,
    pydicom.uid.ExplicitVRLittleEndian,
    pydicom.uid.ExplicitVRBigEndian,
    pydicom.uid.DeflatedExplicitVRLittleEndian,
    pydicom.uid.JPEGBaseline8Bit,
    pydicom.uid.JPEGExtended12Bit,
    pydicom.uid.JPEGLosslessSV1,
    pydicom.uid.JPEGLSLossless,
    pydicom.uid.JPEG2000Lossless,
    pydicom.uid.JPEG2000,
    pydicom.uid.RLELossless,
)
_EXAMPLES = (pydicom.uid.CTImageStorage, pydicom.uid.SecondaryCaptureImageStorage)


class Dicom(Target):
    """A DICOM node: a PACS, a workstation, another orchestrator. It gets each data set byte for byte as received."""

    kind: ClassVar[str] = "dicom"

    host: Annotated[str, Field(min_length=1, max_length=253)]
    """Name or address; `sender` returns to the address that the originals came from."""
    port: Annotated[int, Field(ge=1, le=65535)] = 104
    """Port."""
    called_ae: Annotated[str, Field(min_length=1, max_length=64)]
    """AE title of the node. `{calling_ae}` and `{called_ae}` stand for those that the originals came with."""
    calling_ae: Annotated[str, Field(min_length=1, max_length=64)] = "TALARIA"
    """AE title that we call ourselves; the same placeholders may be used."""
    associations: Annotated[int, Field(ge=1, le=16)] = 1
    """How many associations share one delivery; more help where the way is long."""
    connect_timeout: Span = timedelta(seconds=10)
    """For the connection."""
    acse_timeout: Span = timedelta(seconds=30)
    """For the answer to the association request."""
    dimse_timeout: Span = timedelta(seconds=60)
    """Without any progress in the middle."""
    verify: Literal["none"] = "none"
    """What is asked of the node after it has said that it stored."""

    @field_validator("called_ae", "calling_ae")
    @classmethod
    def _is_title(cls, text: str) -> str:
        AETitle(_filled(text, Origin(calling_ae="A", called_ae="A", address="")))
        return text

    def deliver(self, delivery: Delivery) -> Iterator[Outcome]:
        """Send every parcel, over several associations at once where so set; see `Target.deliver`."""
        if not delivery.parcels:
            return
        peer = self._peer(delivery.origin)
        for parcels in by_association(delivery.parcels, _context):
            consignment = _Consignment(self, peer, parcels, attempt=delivery.attempt)
            yield from consignment.outcomes()

    def check(self) -> Findings:
        """C-ECHO, and what storage the node offers; see `Target.check`."""
        if self.host == SENDER:
            return (Finding(ok=True, text="returns to the sender of each study: nothing to reach beforehand"),)
        peer = self._peer(Origin(calling_ae="TALARIA", called_ae="TALARIA", address=""))
        examples = [Context(uid, syntax) for uid in _EXAMPLES for syntax in _SYNTAXES]
        plain = [Context(uid, pydicom.uid.ExplicitVRLittleEndian) for uid in _CLASSES]
        plain += [Context(uid, pydicom.uid.ImplicitVRLittleEndian) for uid in _CLASSES]
        with self._sender(peer, [*examples, *plain]) as sender:
            sender.echo()
            classes = {uid.name: any(sender.accepts(c) for c in plain if c.sop_class_uid == uid) for uid in _CLASSES}
            syntaxes = {
                uid.name: any(sender.accepts(c) for c in examples if c.transfer_syntax_uid == uid) for uid in _SYNTAXES
            }
            version = sender.agreement.implementation_version
        return (
            Finding(ok=True, text=f"{peer} answers C-ECHO as {peer.called_ae!r} ({version or 'no version given'})"),
            *_offered("storage classes", classes),
            *_offered("transfer syntaxes", syntaxes),
        )

    def sender(self, peer: Peer, parcels: Sequence[Parcel]) -> Sender:
        """An association, not yet open, that proposes what *parcels* need."""
        return self._sender(peer, list(dict.fromkeys(map(_context, parcels))))

    def _sender(self, peer: Peer, contexts: Sequence[Context]) -> Sender:
        timeouts = Timeouts(connect=self.connect_timeout, acse=self.acse_timeout, dimse=self.dimse_timeout)
        return Sender(peer, contexts, timeouts=timeouts)

    def _peer(self, origin: Origin) -> Peer:
        host = _senders_address(origin) if self.host == SENDER else self.host
        try:
            called, calling = (AETitle(_filled(text, origin)) for text in (self.called_ae, self.calling_ae))
        except ValueError as error:
            raise Permanent(f"{host}:{self.port} cannot be called: {error}; write the AE title out") from error
        return Peer(host=host, port=self.port, called_ae=called, calling_ae=calling)


def _filled(text: str, origin: Origin) -> str:
    return text.replace("{calling_ae}", origin.calling_ae).replace("{called_ae}", origin.called_ae)


def _senders_address(origin: Origin) -> str:
    """
    The address to return to: what a network says is checked, unlike what a person wrote.

    Raises:
        Permanent: It is none, or one that no node has.
    """
    try:
        address = ipaddress.ip_address(origin.address)
    except ValueError:
        raise Permanent(
            f"the originals came from {origin.address or 'no network address'!r}: there is no sender to return to"
        ) from None
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        raise Permanent(f"the originals came from {address}: nothing is sent to such an address")
    return str(address)


def _context(parcel: Parcel) -> Context:
    return Context(parcel.sop_class_uid, parcel.transfer_syntax_uid)


def _offered(what: str, found: dict[str, bool]) -> Findings:
    accepted = [name for name, ok in found.items() if ok]
    refused = [name for name, ok in found.items() if not ok]
    findings = [
        Finding(ok=bool(accepted), text=f"accepts {len(accepted)} of {len(found)} {what}: {', '.join(accepted)}")
    ]
    if refused:
        findings.append(Finding(ok=True, text=f"{what} not accepted: {', '.join(refused)}"))
    return tuple(findings)


class _Consignment:
    """Parcels that go to one peer with the same contexts, over one association or several."""

    def __init__(self, target: Dicom, peer: Peer, parcels: Sequence[Parcel], *, attempt: int) -> None:
        self._target = target
        self._peer = peer
        self._attempt = attempt
        self._parcels = parcels
        self._waiting = deque(parcels)
        self._senders: list[Sender] = []
        self._is_stopped = False
        self._failing: list[str] = []  # what happened at instances that may pass on another attempt
        self._barren = 0  # associations in a row that were lost before they brought anything home

    def outcomes(self) -> Iterator[Outcome]:
        """One per parcel, as it is known; may be closed at any time."""
        lanes = min(self._target.associations, len(self._parcels))
        yield from self._lane() if lanes == 1 else self._lanes(lanes)
        if self._failing:
            raise Transient(f"{self._peer} failed at {len(self._failing)} instances, first {self._failing[0]}")

    def _lanes(self, count: int) -> Iterator[Outcome]:
        """
        Several lanes at once.

        A lane whose association fails gives its parcel back to the others; only where they cannot bring everything
        home either, the first failure is raised.
        """
        said: SimpleQueue[Outcome | None] = SimpleQueue()
        with ExitStack() as undo:
            pool = undo.enter_context(ThreadPoolExecutor(count, thread_name_prefix="dicom-send"))
            undo.callback(self._stop)
            lanes: list[Future[None]] = [pool.submit(self._run_lane, said) for _ in range(count)]
            running = count
            while running:
                outcome = said.get()
                if outcome:
                    yield outcome
                else:
                    running -= 1
            troubles = [error for lane in lanes if (error := lane.exception())]
        bugs = [error for error in troubles if not isinstance(error, Transient | Permanent)]
        if bugs or (troubles and self._waiting):
            raise (bugs or troubles)[0]

    def _run_lane(self, said: "SimpleQueue[Outcome | None]") -> None:
        try:
            for outcome in self._lane():
                said.put(outcome)
        finally:
            said.put(None)

    def _lane(self) -> Iterator[Outcome]:
        """Parcels over one association; over a new one where an instance has spoilt it."""
        while self._waiting and not self._is_stopped:
            sender = self._target.sender(self._peer, self._parcels)
            self._senders.append(sender)  # before it is open, so that it can be stopped while it opens
            with sender:
                yield from self._over(sender)

    def _over(self, sender: Sender) -> Iterator[Outcome]:
        """Parcels over one association, until none is left or it is lost."""
        is_fresh = True
        while sender.is_open and not self._is_stopped:
            try:
                parcel = self._waiting.popleft()
            except IndexError:
                return
            try:
                outcome = self._send(sender, parcel)
            except AssociationLost as error:
                self._lose(parcel, error, is_fresh=is_fresh)
                return
            is_fresh, self._barren = False, 0
            if outcome:
                yield outcome

    def _lose(self, parcel: Parcel, error: AssociationLost, *, is_fresh: bool) -> None:
        """
        An association was lost at *parcel*.

        It is tried again over a fresh one; one at which that is lost too is left aside, so that it does not block
        those behind it.
        """
        self._barren += is_fresh
        if not is_fresh or self._is_stopped or self._barren == _BARREN_ASSOCIATIONS:
            self._waiting.appendleft(parcel)
        else:
            self._failing.append(f"{parcel.sop_instance_uid}: {error}")
        if self._is_stopped or self._barren == _BARREN_ASSOCIATIONS:
            raise error

    def _send(self, sender: Sender, parcel: Parcel) -> Outcome | None:
        """One parcel; it waits again where the peer cannot take it now."""
        failpoint("dicom.instance.ready")
        try:
            result = sender.store(
                parcel.path,
                context=_context(parcel),
                sop_instance_uid=parcel.sop_instance_uid,
                sha256=parcel.sha256 or None,
            )
        except (NotAccepted, Damaged) as error:
            return Outcome(instance_id=parcel.instance_id, standing=Standing.FAILED, detail=str(error))
        except AssociationLost:
            raise
        except Transient:  # our own disk
            self._waiting.appendleft(parcel)
            raise
        failpoint("dicom.instance.answered")
        return self._judge(parcel, result)

    def _judge(self, parcel: Parcel, result: StoreResult) -> Outcome | None:
        meaning = result.meaning
        if meaning is Meaning.LATER:
            self._waiting.appendleft(parcel)
            raise Transient(f"{self._peer} has no room now ({result})")
        if meaning is Meaning.FORBIDDEN:
            self._waiting.appendleft(parcel)
            raise Permanent(
                f"{self._peer} does not allow {self._peer.calling_ae!r} to store ({result}); ask its administrator"
            )
        if meaning is Meaning.AGAIN and self._attempt < _TRIES_AT_FAILURE:
            self._failing.append(f"{parcel.sop_instance_uid}: {result}")
            return None
        detail = "" if meaning is Meaning.STORED else ": ".join(filter(None, (str(result), result.comment)))
        return Outcome(instance_id=parcel.instance_id, standing=_STANDING[meaning], detail=detail, status=result.status)

    def _stop(self) -> None:
        self._is_stopped = True
        for sender in self._senders:
            sender.abort()


_STANDING = {
    Meaning.STORED: Standing.SENT,
    Meaning.WARNED: Standing.WARNED,
    Meaning.AGAIN: Standing.FAILED,
    Meaning.REFUSED: Standing.FAILED,
}
