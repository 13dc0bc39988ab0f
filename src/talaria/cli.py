"""Every command, thin: arguments in, a function of the rooms below, a table or JSON out."""

import dataclasses
import getpass
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import talaria
from talaria.dimse.command import Meaning
from talaria.dimse.files import Found, find_instances
from talaria.dimse.negotiation import by_association
from talaria.dimse.scu import Damaged, NotAccepted, Peer, Sender, StoreResult
from talaria.model.config import Config
from talaria.model.dicom import AETitle
from talaria.model.errors import ConfigError, TalariaError
from talaria.model.job import Event, Job, Kind, Priority, State
from talaria.web.phrases import event_in_words

if TYPE_CHECKING:
    from talaria import app
    from talaria.model.rulebook import Rulebook

F = TypeVar("F", bound=Callable[..., None])

#: As `app.SERVICES`; `serve` says so where they part.
_SERVICES = ("receiver", "router", "processor", "dispatcher", "cleaner", "bookkeeper", "web")


#: How a study can stand.
_STANDINGS = (
    "receiving", "collecting", "pending", "active", "deferred", "held", "done", "failed", "cancelled", "discarded"
)  # fmt: skip


def _open(config: Config) -> "app.Home":
    """The home, whatever its state."""
    from talaria import app  # all rooms behind it take a second to import; `send`, `echo` and --help need none

    return app.Home(config)


class _Told(click.ClickException):
    """An error in words on stderr; exit code 1."""

    def show(self, file: Any = None) -> None:
        """Write it, without a traceback."""
        click.echo(f"talaria: {self.message}", err=True, file=file)


class _Group(click.Group):
    """Turns our own errors into words."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `TalariaError` becomes its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except TalariaError as error:
            raise _Told(str(error)) from error
        except BrokenPipeError:
            sys.stderr.close()
            raise SystemExit(1) from None
        except OSError as error:
            raise _Told(f"{error.filename or 'output'}: {error.strerror}") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(talaria.__version__, prog_name="talaria")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The talaria.toml to use, instead of that of TALARIA_CONFIG or of the home.",
)
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Talaria, a DICOM orchestrator: receives, routes, processes and delivers studies."""
    context.obj = config


def _config(context: click.Context) -> Config:
    return Config.load(context.obj, os.environ)


def _home(context: click.Context) -> "app.Home":
    """The home, checked: set up, and of this schema."""
    home = _open(_config(context))
    home.verify()
    return home


def _actor() -> str:
    return f"local:{getpass.getuser()}"


def _as_json(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")(function)


# -- running --


@main.command()
@click.argument("services", nargs=-1, type=click.Choice(_SERVICES), metavar="[SERVICE]...")
@click.pass_context
def serve(context: click.Context, services: tuple[str, ...]) -> None:
    """
    Run all services, or those named, until told to stop.

    SERVICE is one of: receiver router processor dispatcher cleaner bookkeeper web. Each runs in a process of its
    own, and is started again when it dies.
    """
    from talaria import app  # as in _open

    app.serve(_config(context), tuple(dict.fromkeys(services)))


@main.command()
@click.pass_context
def init(context: click.Context) -> None:
    """
    Make the home, its keys and the ledger.

    Prints a one-time link for an administrator to sign in by. What is there already stays; a ledger of an older
    version is taken to this one.
    """
    config = _config(context)
    code = _open(config).set_up(actor=_actor())
    scheme = "https" if config.web_tls_certificate else "http"
    click.echo(f"home    {config.home}")
    click.echo(f"spool   {config.spool}")
    click.echo(f"ledger  {_open(config).ledger.name}")
    click.echo("")
    click.echo("Sign in once, within a day, while `talaria serve` runs:")
    click.echo(f"  {scheme}://{config.web_host}:{config.web_port}/login?link={code}")


# -- the rulebook --


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.pass_context
def check(context: click.Context, file: Path | None) -> None:
    """
    Validate the configuration, or a rulebook FILE.

    Says what is wrong, where, and what to do.
    """
    if file is None:
        config = _config(context)
        home = _open(config)
        home.verify()
        book = home.rulebooks.of(home.revisions.latest())
        click.echo(f"configuration: good; home {config.home}; rulebook revision {book.number}: {_counted(book)}")
        return
    book = _open(_config(context)).parse(_text(file))
    _warn(book)
    click.echo(f"{file}: good: {_counted(book)}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--note", default="", help="Why, for the history.")
@click.option("--expect", type=int, help="The revision you began with; refused if another runs by now.")
@click.pass_context
def apply(context: click.Context, file: Path, note: str, expect: int | None) -> None:
    """
    Make the rulebook in FILE run, as a new revision.

    FILE may be - for standard input. Services take it up within a second or two.
    """
    home = _home(context)
    text = _text(file)
    book = home.parse(text)
    _warn(book)
    number = home.revisions.save(
        text,
        author=_actor(),
        now=datetime.now(UTC),
        note=note,
        warnings=[str(w) for w in book.warnings],
        expected=expect,
    )
    click.echo(f"revision {number} runs: {_counted(book)}")


@main.command()
@click.option("--revision", type=int, help="Another one than the one that runs.")
@click.pass_context
def export(context: click.Context, revision: int | None) -> None:
    """Print the rulebook that runs, as it was written."""
    home = _home(context)
    click.echo(home.revisions.get(home.revisions.latest() if revision is None else revision).text, nl=False)


def _text(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _warn(book: "Rulebook") -> None:
    for warning in book.warnings:
        click.echo(f"warning: {warning}", err=True)


def _counted(book: "Rulebook") -> str:
    parts = (("rule", book.rules), ("target", book.targets), ("module", book.modules))
    return ", ".join(f"{len(items)} {name}{'' if len(items) == 1 else 's'}" for name, items in parts)


# -- DICOM tools --


class _Address(click.ParamType[tuple[str, int]]):
    """HOST:PORT."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Host and port."""
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        return host.strip("[]"), int(port)


def _peer_options(function: F) -> F:
    for option in (
        click.option("--calling", default="TALARIA", show_default=True, metavar="AE", help="Our AE title."),
        click.option("--called", required=True, metavar="AE", help="The peer's AE title."),
        click.option("--to", required=True, type=_Address(), help="Where the peer listens."),
    ):
        function = option(function)
    return function


def _peer(to: tuple[str, int], called: str, calling: str) -> Peer:
    try:
        return Peer(host=to[0], port=to[1], called_ae=AETitle(called), calling_ae=AETitle(calling))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@main.command()
@_peer_options
def echo(to: tuple[str, int], called: str, calling: str) -> None:
    """Ask a DICOM peer whether it is there (C-ECHO)."""
    peer = _peer(to, called, calling)
    began = datetime.now(UTC)
    with Sender(peer, []) as sender:
        sender.echo()
    click.echo(f"{peer}: answered in {(datetime.now(UTC) - began).total_seconds() * 1000:.0f} ms")


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@_peer_options
@_as_json
def send(paths: tuple[Path, ...], to: tuple[str, int], called: str, calling: str, as_json: bool) -> None:
    """
    Send DICOM files and folders to a peer (C-STORE), byte for byte.

    What is not a DICOM instance is skipped and counted. Exit code 0 when every instance was answered as stored.
    """
    seen = list(find_instances(paths))
    found = [item for item in seen if isinstance(item, Found)]
    peer = _peer(to, called, calling)
    began = datetime.now(UTC)
    tally = _SendTally()
    for portion in by_association(found, lambda item: item.context):
        _send(peer, portion, tally)
    seconds = (datetime.now(UTC) - began).total_seconds()
    if as_json:
        _print_json({**dataclasses.asdict(tally), "skipped": len(seen) - len(found), "seconds": round(seconds, 3)})
    else:
        for line in tally.failures[:20]:
            click.echo(line, err=True)
        rate = f", {tally.stored / seconds:.0f} images/s" if seconds > 0 and tally.stored else ""
        skipped = len(seen) - len(found)
        click.echo(f"stored {tally.stored}, failed {tally.failed}, skipped {skipped} in {seconds:.1f} s{rate}")
    if tally.failed or not found:
        raise SystemExit(1)


@dataclasses.dataclass
class _SendTally:
    stored: int = 0
    warned: int = 0
    failed: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)

    def fail(self, path: Path, reason: str) -> None:
        """Count an instance that the peer does not have."""
        self.failed += 1
        self.failures.append(f"{path}: {reason}")

    def answered(self, path: Path, result: StoreResult) -> None:
        """Count an answer."""
        if result.meaning in {Meaning.STORED, Meaning.WARNED}:
            self.stored += 1
            self.warned += result.status != 0
        else:
            self.fail(path, str(result))


def _send(peer: Peer, portion: Sequence[Found], tally: _SendTally) -> None:
    """Send a portion over one association; over a new one where a broken file made us abort."""
    left = list(portion)
    while left:
        with Sender(peer, list(dict.fromkeys(item.context for item in left))) as sender:
            while left and sender.is_open:
                item = left.pop(0)
                try:
                    result = sender.store(item.path, context=item.context, sop_instance_uid=item.meta.sop_instance_uid)
                except (NotAccepted, Damaged) as error:
                    tally.fail(item.path, str(error))
                else:
                    tally.answered(item.path, result)


# -- looking and acting --


@main.group()
def studies() -> None:
    """Look at studies."""


@studies.command("list")
@click.option("--state", type=click.Choice(_STANDINGS), help="Only those that stand so.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@_as_json
@click.pass_context
def studies_list(context: click.Context, state: str | None, limit: int, as_json: bool) -> None:
    """Studies, the one heard of last first."""
    listing = _home(context).listing
    page = listing.studies(limit=limit, state=state)
    items = list(page.items)
    while page.next is not None and len(items) < limit:  # a page holds fewer where a state was asked for
        page = listing.studies(limit=limit - len(items), after=page.next, state=state)
        items += page.items
    if as_json:
        _print_json({"items": items, "next": page.next})
        return
    _print_table(
        ("STATE", "STUDY", "DESCRIPTION", "SERIES", "IMAGES", "UPDATED", "RULES", "REASON"),
        [
            (
                line.state, line.study_uid, line.description, line.series, line.instances, _ago(line.updated),
                ", ".join(line.rules), line.reason,
            )
            for line in items
        ],
        empty=f"No study is {state}." if state else
        "No study yet. Send one:  talaria send FOLDER --to HOST:PORT --called TALARIA",
    )  # fmt: skip
    if page.next is not None:
        click.echo(f"(there are more; --limit {2 * limit} shows twice as many)")


@studies.command("show")
@click.argument("study_uid")
@_as_json
@click.pass_context
def studies_show(context: click.Context, study_uid: str, as_json: bool) -> None:
    """What happened to a study: its series, jobs and events."""
    life = _home(context).listing.study(study_uid)
    if as_json:
        _print_json(life)
        return
    click.echo(f"study {life.line.study_uid}: {life.line.state}{': ' + life.line.reason if life.line.reason else ''}\n")
    _print_table(
        ("SERIES", "MODALITY", "IMAGES", "FROM", "UPDATED", "MADE BY"),
        [
            (
                s.series_uid, s.modality, s.instances, s.calling_ae, _ago(s.updated),
                f"job {s.made_by_job}" if s.made_by_job else "",
            )
            for s in life.series
        ],
    )  # fmt: skip
    click.echo("")
    _print_jobs(life.jobs)
    click.echo("")
    _print_table(
        ("WHEN", "", "WHAT"),
        [
            (
                e.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                f"job {e.job_id}" if e.job_id else "",
                event_in_words(e.kind, actor=e.actor, detail=e.detail),
            )
            for e in life.events
        ],
    )


@main.group()
def jobs() -> None:
    """Look at jobs, and act on them."""


@jobs.command("list")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only those in this state.")
@click.option("--rule", help="Of this rule.")
@click.option("--target", help="For this target.")
@click.option("--kind", type=click.Choice([str(kind) for kind in Kind]), help="Only those of this kind.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@_as_json
@click.pass_context
def jobs_list(  # the options of a list
    context: click.Context, state: str | None, rule: str | None, target: str | None, kind: str | None, limit: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Jobs, the newest first."""
    page = _home(context).listing.jobs(state=state, rule=rule, target=target, kind=kind, limit=limit)
    if as_json:
        _print_json({"items": [_as_pinned(job) for job in page.items], "next": page.next})
    else:
        _print_jobs(page.items, empty="No job fits.")


@jobs.command("show")
@click.argument("job_id", type=int)
@_as_json
@click.pass_context
def jobs_show(context: click.Context, job_id: int, as_json: bool) -> None:
    """All that is known of one job."""
    job = _home(context).jobs.show(job_id)
    if as_json:
        _print_json(_as_pinned(job))
        return
    for name, value in dataclasses.asdict(job).items():
        click.echo(f"{name:20} {_in_words(value)}".rstrip())


def _act(event: Event) -> Callable[..., None]:
    @click.argument("job_ids", nargs=-1, required=True, type=int, metavar="JOB...")
    @click.pass_context
    def command(context: click.Context, job_ids: tuple[int, ...]) -> None:
        home = _home(context)
        failed = False
        for job_id in job_ids:
            try:
                job = home.jobs.act(job_id, event, actor=_actor(), now=datetime.now(UTC))
            except TalariaError as error:
                click.echo(f"talaria: {error}", err=True)
                failed = True
            else:
                click.echo(f"job {job.id}: {job.state}")
        if failed:
            raise SystemExit(1)

    return command


for _event, _help in (
    (Event.RETRY, "Try jobs again now; what was done stays done."),
    (Event.HOLD, "Stop jobs until they are released."),
    (Event.RELEASE, "Let held jobs go on."),
    (Event.CANCEL, "End jobs for good; their files stay as retention says."),
    (Event.RESTART, "Do all of it again, also what was done."),
):
    jobs.command(str(_event), help=_help)(_act(_event))


@main.group()
def target() -> None:
    """Look at targets."""


@target.command("check")
@click.argument("name")
@_as_json
@click.pass_context
def target_check(context: click.Context, name: str, as_json: bool) -> None:
    """Reach a target of the running rulebook, and print what it accepts."""
    home = _home(context)
    book = home.rulebooks.of(home.revisions.latest())
    entry = book.targets.get(name)
    if entry is None:
        known = ", ".join(book.targets) or "none yet"
        raise ConfigError(f"target '{name}' is not in revision {book.number} of the rulebook; there are: {known}")
    findings = entry.plug.check()
    if as_json:
        _print_json([{"ok": finding.ok, "text": finding.text} for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else 'no':3} {finding.text}")
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


# -- tokens --


@main.group()
def token() -> None:
    """API tokens of an administrator."""


@token.command("create")
@click.argument("name")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long it is good.")
@click.pass_context
def token_create(context: click.Context, name: str, days: int) -> None:
    """Make a token and print it, once."""
    home = _home(context)
    secret = home.access.issue(
        home.TOKEN, name=name, actor=_actor(), now=datetime.now(UTC), lifetime=timedelta(days=days)
    )
    click.echo(secret)


@token.command("list")
@_as_json
@click.pass_context
def token_list(context: click.Context, as_json: bool) -> None:
    """Tokens by name; never the tokens themselves."""
    home = _home(context)
    found = home.access.list(home.TOKEN)
    if as_json:
        _print_json(found)
        return
    rows = [(c.name, _ago(c.created), c.expires.strftime("%Y-%m-%d") if c.expires else "never") for c in found]
    _print_table(("NAME", "MADE", "EXPIRES"), rows, empty="No token. Make one:  talaria token create NAME")


@token.command("revoke")
@click.argument("name")
@click.pass_context
def token_revoke(context: click.Context, name: str) -> None:
    """Make all tokens of a name worthless."""
    home = _home(context)
    count = home.access.revoke(kind=home.TOKEN, name=name, actor=_actor(), now=datetime.now(UTC))
    if not count:
        raise ConfigError(f"no token is called '{name}'; `talaria token list` shows what there is")
    click.echo(f"revoked {count}")


# -- printing --


def _print_jobs(items: Sequence[Job], *, empty: str = "No job.") -> None:
    _print_table(
        ("JOB", "KIND", "STATE", "RULE", "TARGET", "TRY", "UPDATED", "DUE", "REASON"),
        [
            (
                job.id, job.kind, job.state, job.rule, job.target or "", job.attempt, _ago(job.updated),
                "" if job.state.is_final else _ago(job.due), job.reason,
            )
            for job in items
        ],
        empty=empty,
    )  # fmt: skip


def _print_table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "Nothing.") -> None:
    """Columns aligned, numbers to the right; the last column takes what is left."""
    if not rows:
        click.echo(empty)
        return
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(head)]
    numeric = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    for line in (list(head), *cells):
        padded = (
            text.rjust(w) if right else text.ljust(w) for text, w, right in zip(line, widths, numeric, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    """Text that cannot do anything to a terminal, of one line and bounded."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= 100 else text[:99] + "…"


def _ago(moment: datetime) -> str:
    """How long ago, or in how long, in the largest unit that fits."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    size = abs(seconds)
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (float("inf"), 86_400, "d")):
        if size < limit:
            return f"{size / length:.0f} {unit} ago" if seconds >= 0 else f"in {size / length:.0f} {unit}"
    raise AssertionError


def _as_pinned(job: Job) -> Mapping[str, Any]:
    """A job by the names that the API has for its fields."""
    fields = dataclasses.asdict(job)
    for ours in ("study_id", "case_id"):
        del fields[ours]
    named = {"study_uid": fields.pop("study_instance_uid"), "series_uid": fields.pop("series_instance_uid")}
    return {"id": fields.pop("id"), **named, **fields, "priority": job.priority.name.lower()}


def _in_words(value: Any) -> str:
    """A field of a job; a moment in the time of whoever reads it."""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    if isinstance(value, Priority):
        return value.name.lower()
    return "" if value is None else str(value)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(_plain(value), ensure_ascii=False, indent=2))


def _plain(value: Any) -> Any:
    """What JSON can say; moments as ISO 8601 in UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value
