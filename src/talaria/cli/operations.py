"""Commands that look at jobs, deliveries, targets and the queue, act on them, and pause them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from talaria.cli.choosing import act, act_options, add_acts, filters, selection_of
from talaria.cli.printing import ago, as_pinned, in_words, print_jobs, print_json, print_paused, print_table
from talaria.cli.root import actor, checked_home, json_option, main
from talaria.model.errors import ConfigError
from talaria.model.job import Event, Kind, State

_limit = click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")


@main.group()
def jobs() -> None:
    """Look at jobs, and act on them: by their numbers, or all that fit a filter."""


@jobs.command("list")
@filters
@click.option("--kind", type=click.Choice([str(kind) for kind in Kind]), help="Only those of this kind.")
@_limit
@json_option
@click.pass_context
def jobs_list(context: click.Context, /, kind: str | None, limit: int, as_json: bool, **given: Any) -> None:
    """Jobs, the newest first; and what is paused."""
    home = checked_home(context)
    page = home.listing.jobs(selection=selection_of(given, kind=kind), limit=limit)
    if as_json:
        print_json({"items": [as_pinned(job) for job in page.items], "next": page.next})
        return
    print_jobs(page.items, empty="No job fits.")
    print_paused(home.operations.paused())


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


def _act_on_jobs(event: Event) -> Callable[..., None]:
    @click.argument("job_ids", nargs=-1, type=int, metavar="[JOB]...")
    @act_options
    @click.option("--kind", type=click.Choice([str(kind) for kind in Kind]), help="Only those of this kind.")
    @click.pass_context
    def command(context: click.Context, /, job_ids: tuple[int, ...], kind: str | None, **given: Any) -> None:
        act(checked_home(context), [selection_of(given, ids=job_ids, kind=kind)], event, given=given)

    return command


add_acts(jobs, what="jobs", make=_act_on_jobs)


@main.group()
def deliveries() -> None:
    """Look at deliveries, and act on them: by their ids, or all that fit a filter."""


@deliveries.command("list")
@filters
@_limit
@json_option
@click.pass_context
def deliveries_list(context: click.Context, /, limit: int, as_json: bool, **given: Any) -> None:
    """Deliveries, the newest first; and what is paused."""
    home = checked_home(context)
    page = home.listing.deliveries(selection=selection_of(given), limit=limit)
    if as_json:
        print_json({"items": page.items, "next": page.next})
        return
    print_table(
        ("DELIVERY", "JOB", "STATE", "TARGET", "SENT", "TOTAL", "TRY", "UPDATED", "DUE", "REASON"),
        [
            (
                line.id, line.job_id, line.state, line.target, line.sent, line.total, line.attempt, ago(line.updated),
                "" if State(line.state).is_final else ago(line.due), line.reason,
            )
            for line in page.items
        ],
        empty="No delivery fits.",
    )  # fmt: skip
    print_paused(home.operations.paused())


@deliveries.command("show")
@click.argument("delivery_id")
@json_option
@click.pass_context
def deliveries_show(context: click.Context, delivery_id: str, as_json: bool) -> None:
    """All that is known of one delivery."""
    home = checked_home(context)
    line = home.listing.deliveries(selection=selection_of(_NONE, ids=home.operations.jobs_of([delivery_id]))).items[0]
    if as_json:
        print_json(line)
        return
    for name, value in dataclasses.asdict(line).items():
        click.echo(f"{name:20} {in_words(value)}".rstrip())


_NONE = dict.fromkeys(("state", "rule", "target", "ae", "study", "since", "until"))


def _act_on_deliveries(event: Event) -> Callable[..., None]:
    @click.argument("delivery_ids", nargs=-1, metavar="[DELIVERY]...")
    @act_options
    @click.pass_context
    def command(context: click.Context, /, delivery_ids: tuple[str, ...], **given: Any) -> None:
        home = checked_home(context)
        chosen = selection_of(given, ids=home.operations.jobs_of(delivery_ids))
        act(home, [chosen], event, given=given, kind=Kind.DISPATCH)

    return command


add_acts(deliveries, what="deliveries", make=_act_on_deliveries)


@main.command()
@json_option
@click.pass_context
def queue(context: click.Context, as_json: bool) -> None:
    """What is not over, by kind and target; and what is paused."""
    home = checked_home(context)
    lines, paused = home.listing.queue(), home.operations.paused()
    if as_json:
        print_json({"items": lines, "paused": paused})
        return
    states = [state for state in State if any(line.states.get(state) for line in lines)]
    print_table(
        ("KIND", "TARGET", *(str(state).upper() for state in states), "OLDEST", "REASON"),
        [
            (
                line.kind, line.target or "", *(line.states.get(state, 0) for state in states),
                ago(line.oldest) if line.oldest else "", line.reason,
            )
            for line in lines
        ],
        empty="Nothing waits.",
    )  # fmt: skip
    print_paused(paused)


_kind = click.argument("kind", type=click.Choice(["process", "dispatch", "notify", "route"]))


@main.command()
@_kind
@click.argument("target", required=False, default="")
@click.option("--reason", default="", help="Why, for whoever looks.")
@click.pass_context
def pause(context: click.Context, kind: str, target: str, reason: str) -> None:
    """
    Stop a kind of work, or dispatch to one TARGET; what is active goes on to its end.

    KIND is one of: process dispatch notify route.
    """
    home = checked_home(context)
    home.operations.pause(kind, target, actor=actor(), reason=reason, now=home.clock())
    click.echo(f"paused: {kind}{f' to {target}' if target else ''}; `talaria resume` lets it go on")


@main.command()
@_kind
@click.argument("target", required=False, default="")
@click.pass_context
def resume(context: click.Context, kind: str, target: str) -> None:
    """Let go on what was paused."""
    home = checked_home(context)
    home.operations.resume(kind, target, actor=actor(), now=home.clock())
    click.echo(f"goes on: {kind}{f' to {target}' if target else ''}")


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
