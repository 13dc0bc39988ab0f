"""Builds everything from the configuration and runs the services that were chosen; the only page of composition."""

import contextlib
import ctypes
import fcntl
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
from talaria.dimse.scp import Limits
from talaria.log import set_up
from talaria.model.config import Config, refuse_if_others_read
from talaria.model.errors import ConfigError, LedgerAway, TalariaError, Transient
from talaria.model.extensions import Executor
from talaria.model.rulebook import Rulebook, Shelves, parse
from talaria.services.bookkeeper import Bookkeeper
from talaria.services.cleaner import Cleaner
from talaria.services.dispatcher import Dispatcher
from talaria.services.loop import Heart, Loop, Server, Worker, guarded, told, wall_clock
from talaria.services.processor import Processor
from talaria.services.receiver import Receiver
from talaria.services.router import Router
from talaria.store.access import Access, CredentialKind
from talaria.store.arrivals import Arrivals
from talaria.store.cases import Cases
from talaria.store.cleaning import Cleaning
from talaria.store.deliveries import Deliveries
from talaria.store.jobs import Jobs
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing
from talaria.store.notes import Notes
from talaria.store.results import Results
from talaria.store.revisions import Revisions, Rulebooks
from talaria.store.spool import Spool
from talaria.store.workers import Process, Workers

log = structlog.get_logger()

SERVICES = ("receiver", "router", "processor", "dispatcher", "cleaner", "bookkeeper", "web")

_IDENTITY = "identity"
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

    config: Config

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
        return Ledger.open(self.config.database_url.get_secret_value())

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
    def access(self) -> Access:
        """Tokens, links, sessions."""
        return Access(self.ledger)

    def set_up(self, *, actor: str) -> str:
        """
        Make the home, its keys, the spool and the schema; what is there already stays.

        Returns:
            The code of a one-time link for the first administrator.

        Raises:
            ConfigError: A folder cannot be made, or the home is another ledger's.
        """
        config = self.config
        try:
            config.home.mkdir(mode=0o750, parents=True, exist_ok=True)
            _make_secret(config.secret_key_file)
        except OSError as error:
            raise ConfigError(f"home {config.home}: cannot be made: {error.strerror}; check the path") from error
        self.ledger.migrate(now=wall_clock())
        self._bind_identity()
        Spool.create(config.spool, clock=wall_clock)
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
        self.ledger.verify_schema()
        self._compare_identity()

    def _bind_identity(self) -> None:
        file = self.config.home / _IDENTITY
        if file.exists():
            self._compare_identity()
            return
        file.write_text(self.ledger.identity() + "\n")
        file.chmod(0o640)

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


def _loop(running: _Running, worker: Worker) -> None:
    running.servers.append(Loop(worker, ledger=running.home.ledger))


def _beating(running: _Running) -> Heart:
    heart = Heart(running.home.jobs, host=Process.own().host)
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
        rulebooks=home.rulebooks, limits=limits,
    )  # fmt: skip
    running.servers.append(receiver)


def _router(running: _Running) -> None:
    _loop(running, Router(cases=Cases(running.home.ledger), rulebooks=running.home.rulebooks))


def _processor(running: _Running) -> None:
    home = running.home
    executors: dict[str, Executor] = {kind: plug() for kind, plug in home.shelves.executors.items()}
    processor = Processor(
        jobs=home.jobs, results=Results(home.ledger), rulebooks=home.rulebooks, spool=home.spool,
        executors=executors, heart=_beating(running), owner=Process.own().owner,
    )  # fmt: skip
    guarded(processor.tidy)
    _loop(running, processor)


def _dispatcher(running: _Running) -> None:
    home = running.home
    dispatcher = Dispatcher(
        jobs=home.jobs, deliveries=Deliveries(home.ledger), rulebooks=home.rulebooks, spool=home.spool,
        heart=_beating(running), owner=Process.own().owner,
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
    _loop(running, Bookkeeper(listing=running.home.listing, notes=Notes(running.home.ledger)))


def _web(running: _Running) -> None:
    # The other services and most commands need none of what this brings along, which takes 0.5 s to import.
    from talaria.web.server import WebServer
    from talaria.web.site import create_site

    home, config = running.home, running.home.config
    site = create_site(
        ledger=home.ledger, listing=home.listing, access=home.access, spools=[home.spool],
        rulebooks=home.rulebooks, clock=wall_clock, secure_cookies=config.web_tls_certificate is not None,
        reserve_bytes=config.disk_reserve,
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


def run_service(config: Config, service: str) -> None:
    """
    Run one service in this process, a child of the supervisor, until SIGTERM or SIGINT; dies with its parent.

    Raises:
        ConfigError: The home is not set up, or a port is taken.
        Transient: A thread of it ended; the process must end too, so that it is started again whole.
    """
    set_up(level=config.log_level, form=config.log_format, service=service)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    home = Home(config)
    running = _Running(home)
    try:
        home.rulebooks.refresh()
    except (LedgerAway, ConfigError) as error:  # either may pass, and nothing need be restarted
        runs = home.rulebooks.running().number
        log.warning("the newest rulebook cannot be taken up", runs=runs, reason=str(error))
    _BUILDERS[service](running)
    for server in running.servers:
        server.start()
    own, started = Process.own(), wall_clock()
    workers = Workers(home.ledger)
    while True:
        bug = guarded(lambda: workers.seen(own, service, started=started, now=wall_clock()))
        if bug is not None:
            log.warning("cannot say that it lives", reason=str(bug))
        if stopping.wait(_LOOK_SECONDS):
            break
        if not running.is_alive:
            raise Transient(f"service '{service}': a thread of it ended; it is started again")
    log.info("stopping")
    running.stop()
    guarded(lambda: workers.gone(own, service))
    log.info("stopped")


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
#: As shells say: none that can be told.
_UNKNOWN_CODE = 255


class Supervisor:
    """
    Keeps a process for each service alive, the receiver in as many as asked for; its children die with it.

    They are forked, not started anew: what is imported once is there in all of them. It has no threads itself.
    """

    def __init__(self, config: Config, services: Sequence[str]) -> None:
        self._config = config
        counts = {service: config.receiver_processes if service == "receiver" else 1 for service in services}
        self._children = [_Child(service) for service, count in counts.items() for _ in range(count)]
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
            return pid
        code = 1
        try:
            _die_with(parent)
            bug = guarded(lambda: run_service(self._config, service))
            code = 0 if bug is None else 1
            if isinstance(bug, TalariaError | OSError):
                log.error("cannot run", service=service, reason=str(bug))
            elif bug is not None:
                log.error("cannot run", service=service, bug=told(bug), exc_info=bug)
        finally:
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
    home = Home(config)
    try:
        home.verify()
        home.issue_admin_token("serve")
    except LedgerAway as error:
        log.warning("the ledger is away; what can run without it does", reason=str(error))
    swept = home.spool.sweep()
    if swept:
        log.info("swept what was never acknowledged", files=swept)
    home.ledger.close()
    lock = contextlib.nullcontext() if services else full_serve_lock(config.home)
    with lock:
        if not services:
            _refuse_taken_port(config)
        Supervisor(config, services or SERVICES).run()
