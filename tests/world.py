"""A whole site in memory's reach: a real ledger, a real spool, a clock that is moved, and studies in every state."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.testclient import TestClient

from talaria.model.dicom import UID, Instance, Origin, Tags
from talaria.model.extensions import Outcome, Standing
from talaria.model.job import Event, Kind
from talaria.registry import discover
from talaria.services.router import Router
from talaria.store.access import Access, CredentialKind, Scope
from talaria.store.arrivals import Arrival, Arrivals
from talaria.store.cases import Cases
from talaria.store.deliveries import Deliveries
from talaria.store.jobs import Claim, Jobs
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing
from talaria.store.results import Results, RunRecord
from talaria.store.revisions import Revisions, Rulebooks
from talaria.store.spool import Spool, new_ulid
from talaria.store.workers import Process, Workers
from talaria.testing import MovedClock
from talaria.web.auth import COOKIE
from talaria.web.site import create_site

ADDRESS = "http://talaria.test"

#: What a browser says of a request from one of our own pages.
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}

RULEBOOK = """\
targets:
  archive: {kind: folder, path: /nowhere/archive}
  pacs: {kind: dicom, host: 10.0.0.5, port: 104, called_ae: PACS}
modules:
  copy: {builtin: pass}
rules:
  ct: {when: tags.Modality == "CT", action: route, send: [archive, pacs]}
  mr: {when: tags.Modality == "MR", action: process, process: [copy], send: [archive]}
"""


@dataclass(kw_only=True)
class World:
    """What a site is made of."""

    folder: Path
    clock: MovedClock = field(default_factory=MovedClock)
    ledger: Ledger = field(init=False)
    spool: Spool = field(init=False)
    rulebooks: Rulebooks = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger.open(f"sqlite:///{self.folder}/ledger.db")
        self.ledger.migrate(now=self.clock.now())
        self.spool = Spool.create(self.folder / "spool", clock=self.clock.now)
        self.rulebooks = Rulebooks(
            Revisions(self.ledger), shelves=discover(), cache=self.folder / "running.yaml"
        )  # fmt: skip
        self.access = Access(self.ledger)
        self.listing = Listing(self.ledger)

    @cached_property
    def site(self) -> FastAPI:
        """The site itself."""
        return create_site(
            ledger=self.ledger, listing=self.listing, access=self.access, spools=[self.spool],
            rulebooks=self.rulebooks, clock=self.clock.now, secure_cookies=False, reserve_bytes=0,
        )  # fmt: skip

    def client(self, **headers: str) -> TestClient:
        """A browser or program that nobody knows yet."""
        return TestClient(
            self.site, base_url=ADDRESS, headers=headers, follow_redirects=False, raise_server_exceptions=False
        )  # fmt: skip

    def program(self) -> TestClient:
        """A program with a token."""
        return self.client(Authorization=f"Bearer {self.token()}")

    def browser(self) -> TestClient:
        """A browser that is signed in."""
        session = self.access.issue(
            CredentialKind.SESSION, name="ada", actor="test", now=self.clock.now(), lifetime=timedelta(hours=12)
        )  # fmt: skip
        client = self.client(**OWN_PAGE)
        client.cookies.set(COOKIE, session, domain=urlsplit(ADDRESS).netloc)
        return client

    def token(self, name: str = "ada", *, lifetime: timedelta | None = None, scope: Scope = Scope.ADMINISTER) -> str:
        """A token, an administrator's where nothing else is said."""
        return self.access.issue(
            CredentialKind.TOKEN, name=name, actor="test", now=self.clock.now(), lifetime=lifetime, scope=scope
        )  # fmt: skip

    def link(self) -> str:
        """A one-time link's code."""
        return self.access.issue(
            CredentialKind.LINK, name="ada", actor="test", now=self.clock.now(), lifetime=timedelta(hours=1)
        )  # fmt: skip

    # -- what happens --

    def apply(self, text: str = RULEBOOK) -> None:
        """Let a rulebook run."""
        Revisions(self.ledger).save(text, author="test", now=self.clock.now())
        self.rulebooks.refresh()

    def receive(
        self, number: int, *, modality: str = "CT", images: int = 3, tags: Mapping[str, str] | None = None
    ) -> str:
        """A study of one series arrives; its UID."""
        study_uid = f"1.2.826.{number}"
        values = {
            "Modality": modality, "PatientID": f"P{number:04d}", "PatientName": f"Synthetic^Ada{number}",
            "StudyDescription": "CHEST", "SeriesDescription": "AX", "AccessionNumber": f"A{number}", **(tags or {}),
        }  # fmt: skip
        now = self.clock.now()
        batch = [
            Arrival(
                instance=Instance(
                    id=new_ulid(now), sop_instance_uid=UID(f"{study_uid}.1.{image}"),
                    sop_class_uid=UID("1.2.840.10008.5.1.4.1.1.2"), series_instance_uid=UID(f"{study_uid}.1"),
                    study_instance_uid=UID(study_uid), transfer_syntax_uid=UID("1.2.840.10008.1.2.1"),
                    size_bytes=524_288, sha256=hashlib.sha256(f"{number} {image}".encode()).hexdigest(),
                    spool=self.spool.name, received=now,
                ),
                origin=Origin(calling_ae="CT1", called_ae="TALARIA", address="10.0.1.7"), association=new_ulid(now),
                tags=Tags(values),
            )
            for image in range(1, images + 1)
        ]  # fmt: skip
        Arrivals(self.ledger).record(batch, now=now, quiet=timedelta(seconds=60))
        return study_uid

    def route(self) -> None:
        """Every series that is due is asked about."""
        router = Router(cases=Cases(self.ledger), rulebooks=self.rulebooks)
        while router.step(self.clock.now()):
            pass

    def claim(self, kind: Kind, target: str | None = None) -> Claim:
        """A worker takes the next job, for one target where it is named."""
        claim = Jobs(self.ledger).claim(
            kind, owner=Process.own().owner, spools=[self.spool.name], now=self.clock.now(), off_peak=True,
            full={"archive", "pacs"} - {target} if target else (),
        )  # fmt: skip
        assert claim is not None
        return claim

    def end(self, claim: Claim, event: Event, *, reason: str = "", wait: timedelta = timedelta(0)) -> None:
        """A worker says how a job ended."""
        now = self.clock.now()
        Jobs(self.ledger).end(claim, event, now=now, reason=reason, due=now + wait if wait else None)

    def deliver(self, claim: Claim, *, images: int) -> None:
        """Some images of a delivery arrive at its target."""
        records = Deliveries(self.ledger)
        delivery, *_ = records.prepare(claim, locate=lambda name: self.folder / name)
        outcomes = [
            Outcome(instance_id=parcel.instance_id, standing=Standing.SENT, status=0)
            for parcel in delivery.parcels[:images]
        ]  # fmt: skip
        records.record(delivery, outcomes, now=self.clock.now(), seconds=1.5, size_bytes=524_288 * images)

    def run_module(self, claim: Claim, *, log: str, code: int = 0, reason: str = "") -> None:
        """A module ran for a job."""
        Results(self.ledger).record_run(
            RunRecord(
                job_id=claim.job.id, attempt=claim.job.attempt, step=1, module="copy", code=code, reason=reason,
                seconds=2.25, log=log, ended=self.clock.now(),
            )
        )  # fmt: skip

    def services(self, *names: str) -> None:
        """Services say that they live."""
        for name in names:
            Workers(self.ledger).seen(Process.own(), name, started=self.clock.now(), now=self.clock.now())

    def break_ledger(self) -> None:
        """The database cannot be reached any more: another file stands where it stood."""
        self.ledger.close()
        for file in self.folder.glob("ledger.db*"):
            file.unlink()
        (self.folder / "ledger.db").mkdir()


def fill(world: World) -> None:
    """Let things happen."""
    world.apply()
    world.services("router", "dispatcher", "processor")
    for number in range(1, 4):
        world.receive(number)
    world.receive(4, modality="MR", images=2, tags={"StudyDescription": "HEAD", "PatientName": "Prüfkörper^Žofie"})
    world.receive(5, modality="US")
    world.clock.move(timedelta(minutes=5))
    world.route()
    for target in ("archive", "pacs"):
        _work(world, world.claim(Kind.DISPATCH, target), lambda claim: world.end(claim, Event.FINISH))
    refused = "target 'archive': /nowhere/archive cannot be made: Permission denied; check its rights"
    _work(
        world, world.claim(Kind.DISPATCH, "archive"),
        lambda claim: world.end(claim, Event.FAIL, reason=refused), images=1,
    )  # fmt: skip
    away = "target 'pacs': 10.0.0.5:104 cannot be reached: connection refused; does it run?"
    _work(
        world, world.claim(Kind.DISPATCH, "pacs"),
        lambda claim: world.end(claim, Event.DEFER, reason=away, wait=timedelta(minutes=4)), images=2,
    )  # fmt: skip
    claim = world.claim(Kind.PROCESS)
    world.run_module(claim, log="read 2 files\nwrote 2 files\n")
    world.end(claim, Event.FINISH)
    world.clock.move(timedelta(seconds=40))
    world.services("receiver", "router", "dispatcher", "processor", "cleaner", "bookkeeper", "web")
    world.receive(6, images=12)
    world.clock.move(timedelta(seconds=7))


def _work(world: World, claim: Claim, end: Callable[[Claim], None], *, images: int = 3) -> None:
    for name in (row.id for row in Results(world.ledger).inputs(claim)):
        (world.folder / name).touch()
    world.deliver(claim, images=images)
    end(claim)
