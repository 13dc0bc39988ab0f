"""Builds everything from the configuration and runs the services that were chosen; the only page of composition."""

import contextlib
import ctypes
import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import structlog

from talaria import registry
from talaria.dimse.scp import Association, Limits
from talaria.exclusion import at_port, serving
from talaria.failpoint import failpoint, stand_for
from talaria.log import set_up
from talaria.model.config import Config, refuse_if_others_read
from talaria.model.dicom import Origin
from talaria.model.errors import ConfigError, LedgerAway, TalariaError, Transient
from talaria.model.extensions import Executor
from talaria.model.rulebook import DEFAULT_LISTENER, Rulebook, Shelves, parse
from talaria.services.bookkeeper import Bookkeeper, Housekeeping
from talaria.services.cleaner import Cleaner
from talaria.services.dispatcher import Dispatcher
from talaria.services.importer import ArchiveLimits, Importer, ImportTally
from talaria.services.loop import Books, Heart, Loop, Server, Worker, guarded, told, wall_clock
from talaria.services.processor import Processor
from talaria.services.receiver import Indexer, Receiver, SpoolSink
from talaria.services.router import Router
from talaria.store.access import Access, CredentialKind, Scope
from talaria.store.arrivals import Arrivals
from talaria.store.cases import Cases
from talaria.store.cleaning import Cleaning
from talaria.store.clock import DatabaseClock
from talaria.store.deliveries import Deliveries
from talaria.store.jobs import Jobs
from talaria.store.journal import Journal
from talaria.store.ledger import Bounds, Ledger
from talaria.store.listing import Listing
from talaria.store.notes import Notes
from talaria.store.operations import Operations
from talaria.store.reconciling import refuse_uncompared
from talaria.store.results import Results
from talaria.store.revisions import Revisions, Rulebooks
from talaria.store.spool import Spool, new_ulid, sync_directory
from talaria.store.workers import Process, Workers

log = structlog.get_logger()

SERVICES = ("receiver", "router", "processor", "dispatcher", "cleaner", "bookkeeper", "web")

_IDENTITY = "identity"
#: In the home: the name of the spool that belongs to it.
_SPOOL_IDENTITY = "spool-identity"
_FIRST_RULEBOOK = """\
# The rulebook: which study goes where. Change it, then: talaria apply FILE
# `talaria check FILE` says what is wrong with one; every apply is a numbered revision.
targets: {}
rules: {}
"""
_LINK_LIFETIME = timedelta(days=1)
_LOOK_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Home:
    """Everything of one home, opened when it is first asked for."""

    TOKEN = CredentialKind.TOKEN
    SCOPE = Scope

    config: Config
    bounds: Bounds | None = None
    """Of the ledger's server; the usual ones if none are given."""

    def parse(self, text: str) -> Rulebook:
        """
        A rulebook as written, checked against the plugs that there are.

        Raises:
            ConfigError: Names everything that is wrong with it.
        """
        return parse(text, shelves=self.shelves)

    @cached_property
    def shelves(self) -> Shelves:
        """Which plugs there are."""
        return registry.discover()

    @cached_property
    def ledger(self) -> Ledger:
        """Opened; its schema is not looked at."""
        return Ledger.open(self.config.database_url.get_secret_value(), bounds=self.bounds)

    @cached_property
    def clock(self) -> DatabaseClock:
        """The ledger's: the same on all hosts."""
        return DatabaseClock(self.ledger)

    @cached_property
    def spool(self) -> Spool:
        """The spool of this machine."""
        return Spool.open(self.config.spool, clock=wall_clock, reserve_bytes=self.config.disk_reserve)

    @cached_property
    def revisions(self) -> Revisions:
        """The rulebook's revisions."""
        return Revisions(self.ledger)

    @cached_property
    def rulebooks(self) -> Rulebooks:
        """Revisions as compiled rulebooks."""
        return Rulebooks(self.revisions, shelves=self.shelves, cache=self.config.home / "running.yaml")

    @cached_property
    def jobs(self) -> Jobs:
        """The queue."""
        return Jobs(self.ledger)

    @cached_property
    def listing(self) -> Listing:
        """What people look at."""
        return Listing(self.ledger)

    @cached_property
    def operations(self) -> Operations:
        """What people do to work that is there."""
        return Operations(self.ledger, self.rulebooks)

    def importer(self, *, rule: str, calling_ae: str, progress: Callable[[ImportTally], None]) -> Importer:
        """What takes files as the receiver takes images, under an association of its own."""
        indexer = Indexer(
            spool=self.spool, arrivals=Arrivals(self.ledger), rulebooks=self.rulebooks, clock=self.clock
        )  # fmt: skip
        association = Association(
            id=new_ulid(self.clock()),
            origin=Origin(calling_ae=calling_ae, called_ae=DEFAULT_LISTENER, address=""),
            implementation_class_uid="",
            implementation_version="",
        )
        return Importer(
            sink=SpoolSink(spool=self.spool, indexer=indexer, clock=self.clock, forced=rule),
            record=indexer.catch_up,
            association=association,
            limits=ArchiveLimits(instance_bytes=self.config.max_instance_size),
            progress=progress,
        )

    @cached_property
    def access(self) -> Access:
        """Tokens, links, sessions."""
        return Access(self.ledger)

    def set_up(self, *, actor: str, new_spool: bool = False) -> str:
        """
        Make the home, its keys, the spool and the schema; what is there already stays.

        Args:
            actor: Who does it.
            new_spool: Whether a spool that is not the home's may take its place.

        Returns:
            The code of a one-time link for the first administrator.

        Raises:
            ConfigError: A folder cannot be made, the home is another ledger's, the ledger is of another version, or
                the home's spool is gone.
        """
        config = self.config
        try:
            config.home.mkdir(mode=0o750, parents=True, exist_ok=True)
            _make_secret(config.secret_key_file)
        except OSError as error:
            raise ConfigError(f"home {config.home}: cannot be made: {error.strerror}; check the path") from error
        if self.ledger.step() is None:
            self._refuse_lost_ledger()
            self.ledger.migrate(now=wall_clock())
        self.ledger.verify_schema()
        self._bind_identity()
        if not new_spool:
            self._refuse_lost_spool()
        self._bind_spool(Spool.create(config.spool, clock=wall_clock).name)
        if self.revisions.latest() == 0:
            self.revisions.save(_FIRST_RULEBOOK, author=actor, now=wall_clock(), note="made by init", expected=0)
        self.issue_admin_token(actor)
        return self.access.issue(
            CredentialKind.LINK, name=actor, actor=actor, now=wall_clock(), lifetime=_LINK_LIFETIME
        )

    def verify(self) -> None:
        """
        Whether the home is set up, by the ledger it names.

        Raises:
            ConfigError: It is not, or belongs to another ledger, or its schema is not this version's.
            LedgerAway: The ledger cannot be asked.
        """
        if not (self.config.home / _IDENTITY).exists():
            raise ConfigError(
                f"home {self.config.home}: is not set up (no file '{_IDENTITY}' in it); "
                "is its disk mounted? for a new home run `talaria init`"
            )
        refuse_if_others_read(self.config.secret_key_file)
        self._compare_spool()
        self.verify_ledger()

    def verify_ledger(self) -> None:
        """
        Whether the ledger may be worked on: of this schema, this home's, and nothing of a restoration left to do.

        Raises:
            ConfigError: It may not.
            LedgerAway: It cannot be asked.
        """
        self.ledger.verify_schema()
        self._compare_identity()
        spool = self._spool_name()
        if spool is not None:
            refuse_uncompared(self.ledger, spool)

    def identity(self) -> str:
        """Which ledger the home belongs to; empty while it is not set up."""
        file = self.config.home / _IDENTITY
        return file.read_text().strip() if file.exists() else ""

    def bind(self, identity: str) -> None:
        """Let the home belong to the ledger of that identity."""
        _write_synced(self.config.home / _IDENTITY, identity)

    def _bind_identity(self) -> None:
        if self.identity():
            self._compare_identity()
        else:
            self.bind(self.ledger.identity())

    def _refuse_lost_ledger(self) -> None:
        """A home that had a ledger gets no empty one in its place."""
        if self.identity():
            raise ConfigError(
                f"home {self.config.home}: belongs to ledger {self.identity()}, but {self.ledger.name} has no tables; "
                "is it the right database, and its disk mounted? if it is lost, `talaria db restore FILE` with the "
                "last backup, or `talaria db rebuild` without one"
            )

    # -- the home's spool --

    def _spool_name(self) -> str | None:
        """What the spool says it is; None where none can be read."""
        try:
            return (self.config.spool / Spool.MARKER).read_text().strip() or None
        except OSError:
            return None

    def bind_spool(self) -> None:
        """Note which spool belongs to the home, where that was not noted yet."""
        name = self._spool_name()
        if name is not None and not (self.config.home / _SPOOL_IDENTITY).exists():
            self._bind_spool(name)

    def _bind_spool(self, name: str) -> None:
        _write_synced(self.config.home / _SPOOL_IDENTITY, name)

    def _own_spool(self) -> str:
        file = self.config.home / _SPOOL_IDENTITY
        return file.read_text().strip() if file.exists() else ""

    def _compare_spool(self) -> None:
        own, found = self._own_spool(), self._spool_name()
        if own and found and own != found:
            raise ConfigError(
                f"spool {self.config.spool}: is {found}, but home {self.config.home} was set up with {own}; "
                "is the right disk mounted? to take this one instead run `talaria init --new-spool`"
            )

    def _refuse_lost_spool(self) -> None:
        self._compare_spool()
        if self._own_spool() and self._spool_name() is None:
            raise ConfigError(
                f"spool {self.config.spool}: no {Spool.MARKER} in it, but home {self.config.home} was set up with "
                f"spool {self._own_spool()}; is its disk mounted? for a new, empty one run `talaria init --new-spool`"
            )

    def _compare_identity(self) -> None:
        own = (self.config.home / _IDENTITY).read_text().strip()
        found = self.ledger.identity()
        if own != found:
            raise ConfigError(
                f"home {self.config.home}: belongs to ledger {own}, but {self.ledger.name} is {found}; "
                "correct home or database_url"
            )

    def issue_admin_token(self, actor: str) -> None:
        """Make the token of `TALARIA_ADMIN_TOKEN_FILE` good, if one is given; again changes nothing."""
        if self.config.admin_token is not None:
            self.access.issue(
                CredentialKind.TOKEN, name="admin", actor=actor, now=wall_clock(), lifetime=None,
                secret=self.config.admin_token.get_secret_value(),
            )  # fmt: skip


def _write_synced(path: Path, text: str) -> None:
    """A small file, whole or as it was before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o640)
    os.replace(temporary, path)
    sync_directory(path.parent)


def _make_secret(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")


# -- one service in its own process --


@dataclass
class _Running:
    """What runs in a service's process."""

    home: Home
    servers: list[Server] = field(default_factory=list)
    heart: Heart | None = None
    fits: threading.Event = field(default_factory=threading.Event)
    """The ledger was seen to be the home's."""

    @property
    def is_alive(self) -> bool:
        """Whether every thread that it needs runs."""
        return all(server.is_alive for server in self.servers) and (self.heart is None or self.heart.is_alive)

    def stop(self) -> None:
        """In good order; jobs in hand are given back."""
        if self.heart is not None:
            self.heart.stopping.set()
        for server in self.servers:
            server.stop()
        if self.heart is not None:
            self.heart.books.close()


def _loop(running: _Running, worker: Worker) -> None:
    loop = Loop(worker, ledger=running.home.ledger, clock=running.home.clock)
    running.home.jobs.tell(loop.wake)
    running.servers.append(loop)


def _beating(running: _Running) -> Heart:
    home, own = running.home, Process.own()
    books = Books(home.ledger, Journal(home.config.home / "journal", clock=home.clock))
    heart = Heart(home.jobs, books=books, host=own.host, owner=own.owner, clock=home.clock)
    bug = guarded(heart.recover)  # before anything is claimed, or tidied away that belongs to an end in a journal
    if bug is not None:
        reason = str(bug) if isinstance(bug, LedgerAway) else told(bug)
        log.warning("what was journaled is replayed later", reason=reason)
    heart.start()
    running.heart = heart
    return heart


def _receiver(running: _Running) -> None:
    home, config = running.home, running.home.config
    limits = Limits(
        instance_bytes=config.max_instance_size, associations=config.max_associations,
        associations_per_address=config.max_associations_per_address, arriving=config.max_pending_connections,
        artim=config.artim_timeout, idle=config.idle_timeout,
    )  # fmt: skip
    receiver = Receiver(
        host=config.dicom_host, port=config.dicom_port, spool=home.spool, arrivals=Arrivals(home.ledger),
        rulebooks=home.rulebooks, limits=limits, clock=home.clock,
        paused=home.operations.paused, fits=running.fits.is_set,
    )  # fmt: skip
    running.servers.append(receiver)


def _router(running: _Running) -> None:
    _loop(running, Router(cases=Cases(running.home.ledger), rulebooks=running.home.rulebooks))


def _tell_missing(home: Home, *shelves: str) -> None:
    """What is not there of some shelves, and why; rulebooks that name it are refused, all others run."""
    for (shelf, name), need in home.shelves.missing.items():
        if shelf in shelves:
            log.warning("plug is not there", shelf=shelf, plug=name, reason=need)


def _processor(running: _Running) -> None:
    home = running.home
    _tell_missing(home, "modules", "executors")
    executors: dict[str, Executor] = {kind: plug() for kind, plug in home.shelves.executors.items()}
    processor = Processor(
        jobs=home.jobs, results=Results(home.ledger), rulebooks=home.rulebooks, spool=home.spool,
        executors=executors, heart=_beating(running), owner=Process.own().owner, clock=home.clock,
    )  # fmt: skip
    guarded(processor.tidy)
    _loop(running, processor)


def _dispatcher(running: _Running) -> None:
    home = running.home
    _tell_missing(home, "targets")
    dispatcher = Dispatcher(
        jobs=home.jobs, deliveries=Deliveries(home.ledger), rulebooks=home.rulebooks, spool=home.spool,
        heart=_beating(running), owner=Process.own().owner, clock=home.clock,
    )  # fmt: skip
    _loop(running, dispatcher)


def _cleaner(running: _Running) -> None:
    home = running.home
    cleaner = Cleaner(
        cleaning=Cleaning(home.ledger), rulebooks=home.rulebooks, spool=home.spool,
        watermark=home.config.disk_clean_percent / 100,
    )  # fmt: skip
    _loop(running, cleaner)


def _bookkeeper(running: _Running) -> None:
    home, notes = running.home, Notes(running.home.ledger)
    house = Housekeeping(home.ledger, notes=notes, rulebooks=home.rulebooks)
    _loop(running, Bookkeeper(listing=home.listing, notes=notes, house=house))


def _web(running: _Running) -> None:
    # The other services and most commands need none of what this brings along, which takes 0.5 s to import.
    from talaria.web.server import WebServer
    from talaria.web.site import create_site

    home, config = running.home, running.home.config
    site = create_site(
        ledger=home.ledger, listing=home.listing, access=home.access, spools=[home.spool],
        rulebooks=home.rulebooks, clock=home.clock, secure_cookies=config.web_tls_certificate is not None,
        reserve_bytes=config.disk_reserve, metrics_open=config.metrics_open,
    )  # fmt: skip
    running.servers.append(
        WebServer(
            site, host=config.web_host, port=config.web_port, certificate=config.web_tls_certificate,
            key=config.web_tls_key,
        )
    )  # fmt: skip


_BUILDERS: Mapping[str, Callable[[_Running], None]] = {
    "receiver": _receiver,
    "router": _router,
    "processor": _processor,
    "dispatcher": _dispatcher,
    "cleaner": _cleaner,
    "bookkeeper": _bookkeeper,
    "web": _web,
}


#: They do what they can without the ledger; the others wait until it was seen to be the home's.
_RUN_WITHOUT_LEDGER = frozenset({"receiver", "web"})


class Unfit(ConfigError):
    """The ledger may not be worked on by this program: no service runs, however often it is started again."""


def _await_ledger(home: Home, service: str, stopping: threading.Event) -> None:
    """
    See that the ledger is the home's and of this schema; where it is away, wait for it if the service needs it.

    Raises:
        Unfit: It is not.
    """
    is_told = False
    while not _is_seen_to_fit(home):
        if service in _RUN_WITHOUT_LEDGER or stopping.wait(_ASK_AGAIN_SECONDS):
            return
        if not is_told:
            log.warning("the ledger is away; begins when it is back")
        is_told = True


def _is_seen_to_fit(home: Home) -> bool:
    """
    Whether the ledger was asked and may be worked on; false where it is away.

    Raises:
        Unfit: It may not.
    """
    try:
        home.verify_ledger()
    except LedgerAway:
        return False
    except ConfigError as error:
        raise Unfit(str(error)) from error
    return True


def run_service(config: Config, service: str) -> None:
    """
    Run one service in this process, a child of the supervisor, until SIGTERM or SIGINT; dies with its parent.

    Raises:
        ConfigError: The home is not set up, or a port is taken.
        Unfit: The ledger is of another version or another home, at the start or from some moment on.
        Transient: A thread of it ended; the process must end too, so that it is started again whole.
    """
    set_up(level=config.log_level, form=config.log_format, service=service)
    stand_for(service)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    home = Home(config)
    running = _Running(home)
    _await_ledger(home, service, stopping)
    home.clock()  # asked for the first time: the answer is there when it is needed, and nobody waits for it
    try:
        home.rulebooks.refresh()
    except (LedgerAway, ConfigError) as error:  # either may pass, and nothing need be restarted
        runs = home.rulebooks.running().number
        log.warning("the newest rulebook cannot be taken up", runs=runs, reason=str(error))
    _BUILDERS[service](running)
    for server in running.servers:
        server.start()
    own, started = Process.own(), home.clock()
    workers = Workers(home.ledger)
    while True:
        try:
            if _is_seen_to_fit(home):
                _greet(running, service)
                bug = guarded(lambda: workers.seen(own, service, started=started, now=home.clock()))
                if bug is not None:
                    log.warning("cannot say that it lives", reason=str(bug))
        except Unfit:
            running.stop()
            raise
        if stopping.wait(_LOOK_SECONDS if running.fits.is_set() else _ASK_AGAIN_SECONDS):
            break
        if not running.is_alive:
            raise Transient(f"service '{service}': a thread of it ended; it is started again")
    log.info("stopping")
    running.stop()
    guarded(lambda: workers.gone(own, service))
    log.info("stopped")


def _greet(running: _Running, service: str) -> None:
    """The ledger was seen to be the home's: what waited for that may begin."""
    if running.fits.is_set():
        return
    if service == "web":  # `serve` could not while the ledger was away
        bug = guarded(lambda: running.home.issue_admin_token("serve"))
        if bug is not None:
            log.warning("the administrator's token is not good yet", reason=str(bug))
            return
    running.fits.set()


# -- all of them, supervised --


@dataclass
class _Child:
    """A service's process."""

    service: str
    pid: int = 0  #: 0: not running
    began: float = 0.0
    pause: float = 0.0  #: before it is started again; grows while it dies young
    due: float = 0.0


#: A child that lived longer is started again at once.
_GROWN_UP_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 30.0
_GRACE_SECONDS = 25.0
_TICK_SECONDS = 0.1
#: For receivers of a supervisor that was killed just now to be gone.
_PORT_SECONDS = 3.0
_FORK_AGAIN_SECONDS = 1.0
#: EX_CONFIG of sysexits.h: started again it would end again.
_UNFIT_CODE = 78
_ASK_AGAIN_SECONDS = 1.0
#: As shells say: none that can be told.
_UNKNOWN_CODE = 255


class Supervisor:
    """
    Keeps a process for each service alive, the receiver in as many as asked for; its children die with it.

    They are forked, not started anew: what is imported once is there in all of them. It has no threads itself but that
    of the log, which holds nothing that a child needs.
    """

    def __init__(self, config: Config, services: Sequence[str]) -> None:
        self._config = config
        counts = {service: config.receiver_processes if service == "receiver" else 1 for service in services}
        self._children = [_Child(service) for service, count in counts.items() for _ in range(count)]
        self.unfit = ""  #: the service that cannot work with this ledger, once there is one
        self._is_stopping = False

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then end every child in good order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may ignore it: then no end can be told
        while not self._is_stopping:
            for child in self._children:
                self._tend(child, time.monotonic())
            time.sleep(_TICK_SECONDS)
        self._end()

    def _stop(self, *_: object) -> None:
        self._is_stopping = True

    def _tend(self, child: _Child, now: float) -> None:
        if not child.pid:
            if now >= child.due:
                self._begin(child, now)
            return
        code = _ended(child.pid)
        if code is None:
            return
        child.pid = 0
        if code == _UNFIT_CODE:
            self.unfit, self._is_stopping = child.service, True
            return
        grown = now - child.began > _GROWN_UP_SECONDS
        child.pause = 0.2 if grown else min(child.pause * 2 + 0.2, _LONGEST_PAUSE_SECONDS)
        child.due = now + child.pause
        log.error("service died; started again", died=child.service, code=code, after_seconds=round(child.pause, 1))

    def _begin(self, child: _Child, now: float) -> None:
        try:
            child.began, child.pid = now, self._fork(child.service)
        except OSError as error:  # no process or no memory to be had now (fork(2))
            child.due = now + _FORK_AGAIN_SECONDS
            log.error("service cannot be started; tried again", service=child.service, reason=error.strerror)

    def _fork(self, service: str) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            failpoint("supervisor.service.forked")
            return pid
        code = 1
        try:
            _die_with(parent)
            failpoint("supervisor.service.born")
            bug = guarded(lambda: run_service(self._config, service))
            code = 0 if bug is None else _UNFIT_CODE if isinstance(bug, Unfit) else 1
            if isinstance(bug, TalariaError | OSError):
                log.error("cannot run", service=service, reason=str(bug))
            elif bug is not None:
                log.error("cannot run", service=service, bug=told(bug), exc_info=bug)
        finally:
            guarded(logging.shutdown)  # what was logged last is to be read
            os._exit(code)

    def _end(self) -> None:
        """SIGTERM, then patience, then SIGKILL."""
        alive = [child.pid for child in self._children if child.pid and _ended(child.pid) is None]
        for pid in alive:
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while alive and time.monotonic() < deadline:
            alive = [pid for pid in alive if _ended(pid) is None]
            time.sleep(_TICK_SECONDS / 2)
        for pid in alive:
            _signal(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _ended(pid: int) -> int | None:
    """The exit code of a child that has ended, negative for a signal; None while it runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else has taken its end
        return _UNKNOWN_CODE
    return os.waitstatus_to_exitcode(status) if found else None


def _die_with(parent: int) -> None:
    """Be killed when *parent* ends, however it ends; at once where it is gone already (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def full_serve_lock(home: Path) -> Iterator[None]:
    """
    Hold a home for one full `serve`.

    Raises:
        ConfigError: Another one runs on it; says which.
    """
    descriptor = os.open(home / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise ConfigError(
                f"home {home}: another `talaria serve` runs on it ({holder}); stop that one, or name single services"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _refuse_taken_port(config: Config) -> None:
    """
    See that nobody listens at the DICOM port: receivers share it, so another home's would get half of our images.

    Raises:
        ConfigError: Somebody does.
    """
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            with socket.create_server((config.dicom_host, config.dicom_port)):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"dicom_port {config.dicom_port}: cannot be had on {config.dicom_host} ({error.strerror}); "
                    "another program or another home listens there: stop it, or set another dicom_port"
                ) from error
        time.sleep(_TICK_SECONDS)


def serve(config: Config, services: Sequence[str]) -> None:
    """
    Run services until told to stop.

    Args:
        config: Of this machine.
        services: Names; none means all, and then no other full `serve` may run on this home.

    Raises:
        ConfigError: The home is not set up, is another ledger's, or is served already.
    """
    set_up(level=config.log_level, form=config.log_format, service="serve")
    with serving(config.home):
        _serve(Home(config), services)


def _serve(home: Home, services: Sequence[str]) -> None:
    config = home.config
    try:
        home.verify()
        home.issue_admin_token("serve")
        if not services and home.operations.undrain(actor="serve", now=home.clock()):
            log.warning("the drain is over: everything is served again")
    except LedgerAway as error:
        log.warning("the ledger is away; what can run without it does", reason=str(error))
    swept = home.spool.sweep()
    if swept:
        log.info("swept what was never acknowledged", files=swept)
    home.bind_spool()
    home.ledger.close()
    lock = contextlib.nullcontext() if services else full_serve_lock(config.home)
    with lock, _marked_port(home, services or SERVICES):
        if not services:
            _refuse_taken_port(config)
        supervisor = Supervisor(config, services or SERVICES)
        supervisor.run()
    if supervisor.unfit:
        raise ConfigError(
            f"service '{supervisor.unfit}' cannot work with this ledger, and all were stopped; the log says why"
        )


def _marked_port(home: Home, services: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    if "receiver" not in services:
        return contextlib.nullcontext()
    return at_port(home.config.dicom_host, home.config.dicom_port, owner=home.spool.name)
