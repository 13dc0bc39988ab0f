"""Commands that speak DICOM to a peer: `send` and `echo`."""

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from talaria.cli.printing import print_json
from talaria.cli.root import json_option, main
from talaria.dimse.command import Meaning
from talaria.dimse.files import Found, find_instances
from talaria.dimse.negotiation import by_association
from talaria.dimse.scu import Damaged, NotAccepted, Peer, Sender, StoreResult
from talaria.model.dicom import AETitle

F = TypeVar("F", bound=Callable[..., None])


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
@json_option
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
        print_json({**dataclasses.asdict(tally), "skipped": len(seen) - len(found), "seconds": round(seconds, 3)})
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
