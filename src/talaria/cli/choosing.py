"""What commands that act on many have in common: the filters, the act itself, and how it is told."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from talaria.cli.printing import print_json
from talaria.cli.root import actor
from talaria.model.job import Event, Kind, State
from talaria.model.quantity import duration

if TYPE_CHECKING:
    from talaria import app
    from talaria.store.operations import Acted
    from talaria.store.selection import Selection

F = TypeVar("F", bound=Callable[..., None])

#: The acts, and what a person gets by each.
ACTS = (
    (Event.RETRY, "Try {what} again now; what was done stays done."),
    (Event.HOLD, "Stop {what} until released."),
    (Event.RELEASE, "Let {what} that are held go on."),
    (Event.CANCEL, "End {what} for good; their files stay as retention says."),
    (Event.RESTART, "Do all of {what} again, also what was done."),
)


class MomentType(click.ParamType[datetime]):
    """A day, a moment, or how long ago: 2026-11-20, 2026-11-20T13:00, 90m."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """In UTC; what has no zone is the local time of this machine."""
        if isinstance(value, datetime):
            return value
        try:
            ago = duration(str(value))
        except ValueError:
            ago = None
        try:
            if ago is not None:
                return datetime.now(UTC) - ago
            return datetime.fromisoformat(str(value)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; say 2026-11-20, 2026-11-20T13:00, or 90m for so long ago", param, ctx)


def filters(function: F) -> F:
    """The options that choose jobs: all that are given must fit."""
    for option in (
        click.option("--until", type=MomentType(), help="Made before: a day, a moment, or how long ago, as 90m."),
        click.option("--since", type=MomentType(), help="Made then or later."),
        click.option("--study", metavar="UID", help="Of this study."),
        click.option("--ae", metavar="AE", help="Sent by this AE title."),
        click.option("--target", help="For this target."),
        click.option("--rule", help="Of this rule."),
        click.option("--state", type=click.Choice([str(state) for state in State]), help="Only those in this state."),
    ):
        function = option(function)
    return function


def act_options(function: F) -> F:
    """The options of every act."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON instead of words."),
        click.option("--dry-run", is_flag=True, help="Only say how many."),
        click.option("--all", "everything", is_flag=True, help="All there are, where no filter is given."),
    ):
        function = option(function)
    return filters(function)


def selection_of(given: dict[str, Any], **more: Any) -> "Selection":
    """What the options of `filters` choose."""
    from talaria.store.selection import Selection  # as in `open_home`

    names = {"state": "state", "rule": "rule", "target": "target", "ae": "calling_ae", "study": "study_uid"}
    chosen = {ours: given[theirs] for theirs, ours in names.items()}
    return Selection(**{**chosen, "since": given["since"], "until": given["until"], **more})


def act(
    home: "app.Home", chosen: "Sequence[Selection]", event: Event, *, given: dict[str, Any], kind: Kind | None = None
) -> None:
    """Act on what was chosen, of one kind, and say what became of it; exit code 1 where something was refused."""
    if given["everything"] and any(not one.is_empty for one in chosen):
        raise click.UsageError("--all stands alone: it does not go with ids or filters")
    if not given["everything"] and any(one.is_empty for one in chosen):
        raise click.UsageError("name some, give a filter, or say --all")
    chosen = chosen if kind is None else [replace(one, kind=kind) for one in chosen]
    if given["dry_run"]:
        found = [home.operations.preview(one, event) for one in chosen]
    else:
        now = home.clock()
        found = [
            home.operations.act(one, event, actor=actor(), now=now, everything=given["everything"]) for one in chosen
        ]
    tell(event, found, dry_run=given["dry_run"], as_json=given["as_json"])


def tell(event: Event, found: "Sequence[Acted]", *, dry_run: bool, as_json: bool) -> None:
    """Counts on stdout, reasons on stderr."""
    done, refusals = sum(acted.done for acted in found), sum(acted.refusals for acted in found)
    reasons = [reason for acted in found for reason in acted.refused]
    if as_json:
        print_json({"act": str(event), "done": done, "refused": refusals, "reasons": reasons, "dry_run": dry_run})
    else:
        for reason in reasons:
            click.echo(f"talaria: {reason}", err=True)
        if refusals > len(reasons) and not dry_run:
            click.echo(f"talaria: and {refusals - len(reasons)} more were refused", err=True)
        if done or dry_run or not refusals:
            refused = f", {refusals} refused" if refusals else ""
            click.echo(f"{'would ' if dry_run else ''}{event}: {done} {'job' if done == 1 else 'jobs'}{refused}")
    if refusals and not dry_run:
        raise SystemExit(1)


def add_acts(group: click.Group, *, what: str, make: Callable[[Event], Callable[..., None]]) -> None:
    """The five acts as commands of a group."""
    for event, said in ACTS:
        group.command(str(event), help=said.format(what=what))(make(event))


def span_option(text: str | None) -> timedelta | None:
    """A length of time, as an option says it."""
    if text is None:
        return None
    try:
        return duration(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
