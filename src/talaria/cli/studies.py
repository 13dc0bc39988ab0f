"""Commands that look at studies, act on their jobs, and send them another way."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from talaria.cli.choosing import act, act_options, add_acts, selection_of, tell
from talaria.cli.printing import ago, print_jobs, print_json, print_table
from talaria.cli.root import actor, checked_home, json_option, main
from talaria.model.errors import Refused
from talaria.model.job import Event, Priority, State
from talaria.web.phrases import event_in_words

if TYPE_CHECKING:
    from talaria.store.operations import Made

#: How a study can stand.
_STANDINGS = (
    "receiving", "collecting", "pending", "active", "deferred", "held", "done", "failed", "cancelled", "discarded"
)  # fmt: skip
_series = click.option("--series", "series_uid", metavar="UID", help="Only this series of it.")


@main.group()
def studies() -> None:
    """Look at studies, act on their jobs, and send them another way."""


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


def _act_on_studies(event: Event) -> Callable[..., None]:
    @click.argument("study_uids", nargs=-1, metavar="[STUDY_UID]...")
    @act_options
    @click.pass_context
    def command(context: click.Context, /, study_uids: tuple[str, ...], **given: Any) -> None:
        home = checked_home(context)
        if study_uids and given["study"]:
            raise click.UsageError("name studies, or give --study, not both")
        for study_uid in study_uids:
            home.listing.study(study_uid)  # raises Refused where there is none
        if event is Event.RELEASE and study_uids and not given["dry_run"]:
            _release(context, study_uids, given)
            return
        chosen = [selection_of(given, study_uid=uid) for uid in study_uids] or [selection_of(given)]
        act(home, chosen, event, given=given)

    return command


def _release(context: click.Context, study_uids: tuple[str, ...], given: dict[str, Any]) -> None:
    """Held jobs go on, and where a case is held the rules are asked again."""
    home = checked_home(context)
    released, now = [], home.clock()
    for study_uid in study_uids:
        held = selection_of({**given, "state": State.HELD}, study_uid=study_uid)
        acted = home.operations.act(held, Event.RELEASE, actor=actor(), now=now)
        try:
            asked = home.operations.release(study_uid, actor=actor(), now=now)
        except Refused:
            if not acted.done:
                raise
        else:
            if not given["as_json"]:
                click.echo(f"study {study_uid}: the rules are asked again about {len(asked)} series")
        released.append(acted)
    if given["as_json"] or any(acted.done or acted.refusals for acted in released):
        tell(Event.RELEASE, released, dry_run=False, as_json=given["as_json"])


add_acts(studies, what="the jobs of studies", make=_act_on_studies)


@studies.command("route")
@click.argument("study_uid")
@click.option("--rule", required=True, help="The rule of the running rulebook that is to take it.")
@_series
@json_option
@click.pass_context
def studies_route(context: click.Context, study_uid: str, rule: str, series_uid: str | None, as_json: bool) -> None:
    """
    Take a study to a rule, whatever the rule says of it, complete or not.

    For what was discarded or is held, and for what went another way before. Images go to one target once.
    """
    home = checked_home(context)
    made = home.operations.route(study_uid, rule, series_uid=series_uid, actor=actor(), now=home.clock())
    _tell_made(made, as_json=as_json, what=f"taken to rule '{rule}'", study_uid=study_uid)


@studies.command("send")
@click.argument("study_uid")
@click.option("--to", "target", required=True, metavar="TARGET", help="A target of the running rulebook.")
@_series
@click.option(
    "--priority", type=click.Choice([p.name.lower() for p in Priority]), default="normal", show_default=True,
    help="Before or after what else waits for the target.",
)  # fmt: skip
@json_option
@click.pass_context
def studies_send(  # the options of a command
    context: click.Context, study_uid: str, target: str, series_uid: str | None, priority: str, as_json: bool
) -> None:
    """Send a study to a target outside of any rule; again each time it is asked."""
    home = checked_home(context)
    made = home.operations.send(
        study_uid, target, series_uid=series_uid, actor=actor(), now=home.clock(), priority=Priority[priority.upper()]
    )
    _tell_made(made, as_json=as_json, what=f"goes to {target}", study_uid=study_uid)


def _tell_made(made: "Made", *, as_json: bool, what: str, study_uid: str) -> None:
    if as_json:
        print_json({"jobs": made, "already_at": made.there})
        return
    numbers = ", ".join(map(str, made))
    click.echo(f"{what}: {'no new job' if not made else f'job {numbers}' if len(made) == 1 else f'jobs {numbers}'}")
    for target in made.there:
        click.echo(f"{target} has the images already; again:  talaria studies send {study_uid} --to {target}")
