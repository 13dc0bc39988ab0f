"""Commands that look at studies, jobs and targets, and act on them."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

import click

from talaria.cli.printing import ago, as_pinned, in_words, print_jobs, print_json, print_table
from talaria.cli.root import actor, checked_home, json_option, main
from talaria.model.errors import ConfigError, TalariaError
from talaria.model.job import Event, Kind, State
from talaria.web.phrases import event_in_words

#: How a study can stand.
_STANDINGS = (
    "receiving", "collecting", "pending", "active", "deferred", "held", "done", "failed", "cancelled", "discarded"
)  # fmt: skip


@main.group()
def studies() -> None:
    """Look at studies."""


@studies.command("list")
@click.option("--state", type=click.Choice(_STANDINGS), help="Only those that stand so.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@json_option
@click.pass_context
def studies_list(context: click.Context, state: str | None, limit: int, as_json: bool) -> None:
    """Studies, the one heard of last first."""
    listing = checked_home(context).listing
    page = listing.studies(limit=limit, state=state)
    items = list(page.items)
    while page.next is not None and len(items) < limit:  # a page holds fewer where a state was asked for
        page = listing.studies(limit=limit - len(items), after=page.next, state=state)
        items += page.items
    if as_json:
        print_json({"items": items, "next": page.next})
        return
    print_table(
        ("STATE", "STUDY", "DESCRIPTION", "SERIES", "IMAGES", "UPDATED", "RULES", "REASON"),
        [
            (
                line.state, line.study_uid, line.description, line.series, line.instances, ago(line.updated),
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
@json_option
@click.pass_context
def studies_show(context: click.Context, study_uid: str, as_json: bool) -> None:
    """What happened to a study: its series, jobs and events."""
    life = checked_home(context).listing.study(study_uid)
    if as_json:
        print_json(life)
        return
    click.echo(f"study {life.line.study_uid}: {life.line.state}{': ' + life.line.reason if life.line.reason else ''}\n")
    print_table(
        ("SERIES", "MODALITY", "IMAGES", "FROM", "UPDATED", "MADE BY"),
        [
            (
                s.series_uid, s.modality, s.instances, s.calling_ae, ago(s.updated),
                f"job {s.made_by_job}" if s.made_by_job else "",
            )
            for s in life.series
        ],
    )  # fmt: skip
    click.echo("")
    print_jobs(life.jobs)
    click.echo("")
    print_table(
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
@json_option
@click.pass_context
def jobs_list(  # the options of a list
    context: click.Context, state: str | None, rule: str | None, target: str | None, kind: str | None, limit: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Jobs, the newest first."""
    page = checked_home(context).listing.jobs(state=state, rule=rule, target=target, kind=kind, limit=limit)
    if as_json:
        print_json({"items": [as_pinned(job) for job in page.items], "next": page.next})
    else:
        print_jobs(page.items, empty="No job fits.")


@jobs.command("show")
@click.argument("job_id", type=int)
@json_option
@click.pass_context
def jobs_show(context: click.Context, job_id: int, as_json: bool) -> None:
    """All that is known of one job."""
    job = checked_home(context).jobs.show(job_id)
    if as_json:
        print_json(as_pinned(job))
        return
    for name, value in dataclasses.asdict(job).items():
        click.echo(f"{name:20} {in_words(value)}".rstrip())


def _act(event: Event) -> Callable[..., None]:
    @click.argument("job_ids", nargs=-1, required=True, type=int, metavar="JOB...")
    @click.pass_context
    def command(context: click.Context, job_ids: tuple[int, ...]) -> None:
        home = checked_home(context)
        failed = False
        for job_id in job_ids:
            try:
                job = home.jobs.act(job_id, event, actor=actor(), now=datetime.now(UTC))
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
@json_option
@click.pass_context
def target_check(context: click.Context, name: str, as_json: bool) -> None:
    """Reach a target of the running rulebook, and print what it accepts."""
    home = checked_home(context)
    book = home.rulebooks.of(home.revisions.latest())
    entry = book.targets.get(name)
    if entry is None:
        known = ", ".join(book.targets) or "none yet"
        raise ConfigError(f"target '{name}' is not in revision {book.number} of the rulebook; there are: {known}")
    findings = entry.plug.check()
    if as_json:
        print_json([{"ok": finding.ok, "text": finding.text} for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else 'no':3} {finding.text}")
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)
