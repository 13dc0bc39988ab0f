"""Results through the API, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.job import Event, Kind
from talaria.model.result import StepResult
from talaria.store.jobs import Jobs
from talaria.store.results import PAGE_CHARACTERS, record_found
from talaria.web.api_results import COLUMNS, safe_cell
from world import World

ROOT = "/api/v1"
PINNED = {"study_uid", "series_uid", "job_id", "module", "version", "value"}


def find(world: World, number: int, value: Any, *, module: str = "copy", trouble: str = "") -> int:
    """A study is processed, and its module finds something; the job."""
    world.receive(number, modality="MR")
    world.clock.move(world.clock.now().replace(minute=59) - world.clock.now().replace(minute=0))
    world.route()
    claim = world.claim(Kind.PROCESS)
    text = json.dumps(value) if trouble != "is not JSON" else ""
    found = [StepResult(step=1, module=module, version="1.2", value=text, trouble=trouble)]

    def follow(connection: Any) -> list[Any]:
        record_found(connection, claim, found, now=world.clock.now())
        return []

    Jobs(world.ledger).end(claim, Event.FINISH, now=world.clock.now(), follow_ups=follow)
    return claim.job.id


@pytest.fixture
def results(world: World) -> World:
    """A site with some results."""
    world.apply()
    values: tuple[tuple[Any, str], ...] = (
        ({"volume": 3.5}, "copy"), ("=cmd|' /C calc'!A0", "copy"), ([1, None, "ü"], "=lung"), (-5, "copy"),
    )  # fmt: skip
    for number, (value, module) in enumerate(values, start=1):
        find(world, number, value, module=module)
    return world


def shown(world: World, query: str = "") -> Mapping[str, Any]:
    """A page of results."""
    answer = world.program().get(f"{ROOT}/results{query}")
    assert answer.status_code == 200, answer.text
    page: Mapping[str, Any] = answer.json()
    return page


def test_result_has_its_fields(results: World) -> None:
    """
    A result has the fields that are promised, its value whole.
    """
    first = shown(results)["items"][0]

    assert first.keys() >= PINNED
    assert ("1.2.826.1", "1.2.826.1.1", 1, "copy", "1.2", {"volume": 3.5}) == (
        first["study_uid"], first["series_uid"], first["job_id"], first["module"], first["version"], first["value"]
    )  # fmt: skip
    assert (1, False) == (first["step"], first["superseded"])


def test_results_are_walked(results: World) -> None:
    """
    Page by page every result comes once, the oldest first, of one module or study alone where that is asked.
    """
    whole = shown(results)["items"]
    walked, after = [], ""
    while True:
        page = shown(results, f"?limit=1{after}")
        walked += page["items"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"

    assert whole == walked
    assert [1, 2, 3, 4] == [int(each["study_uid"].rpartition(".")[2]) for each in whole]
    assert [[1, None, "ü"]] == [each["value"] for each in shown(results, "?module=%3Dlung")["items"]]
    assert [-5] == [each["value"] for each in shown(results, "?study=1.2.826.4")["items"]]


@pytest.mark.parametrize(("query", "accept"), [("?format=csv", "*/*"), ("", "text/csv"), ("", "text/csv, */*;q=0.1")])
def test_csv(results: World, query: str, accept: str) -> None:
    """
    As CSV each result is a line, and no cell is a formula to a program for tables.
    """
    answer = results.program().get(f"{ROOT}/results{query}", headers={"Accept": accept})
    lines = list(csv.DictReader(io.StringIO(answer.content.decode())))

    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="results.csv"'
    assert list(COLUMNS) == list(lines[0])
    assert ['{"volume":3.5}', "\"=cmd|' /C calc'!A0\"", '[1,null,"ü"]', "-5"] == [line["value"] for line in lines]
    assert "'=lung" == lines[2]["module"]
    assert "link" not in answer.headers


def test_csv_leads_to_the_next_page(results: World) -> None:
    """
    A page of CSV names the next in its header field Link.
    """
    client, address = results.program(), f"{ROOT}/results?format=csv&limit=3"
    first = client.get(address)
    target = first.headers["link"].removeprefix("<").partition(">")[0]
    rest = client.get(target)

    assert first.headers["link"].endswith('; rel="next"')
    assert (4, 2) == (len(first.text.splitlines()), len(rest.text.splitlines()))


def test_format_wins_over_accept(results: World) -> None:
    """
    What the address says counts before what the browser would like.
    """
    answer = results.program().get(f"{ROOT}/results?format=json", headers={"Accept": "text/csv"})

    assert "application/json" == answer.headers["content-type"]


@given(st.text())
def test_no_cell_is_a_formula(text: str) -> None:
    """
    Whatever a cell says, it begins with nothing that a program for tables computes, but for a number.
    """
    cell = safe_cell(text)

    assert cell.lstrip("'") == text.lstrip("'") or cell[1:] == text
    assert not cell.startswith(("=", "+", "@", "\t", "\r"))
    assert not cell.startswith("-") or float(cell) <= 0


def test_long_values_make_short_pages(world: World) -> None:
    """
    A page ends where its values are together too long for one answer, and one value comes however long it is.
    """
    world.apply()
    for number in range(1, 4):
        find(world, number, "x" * (PAGE_CHARACTERS // 2 + number))
    first = shown(world)
    second = shown(world, f"?after={first['next']}")

    assert (1, 1) == (len(first["items"]), len(second["items"]))
    assert None is not second["next"]


def test_unreadable_result_is_an_event(world: World) -> None:
    """
    A result that is no JSON is not kept; an event says why, and the job went on.
    """
    world.apply()
    job = find(world, 1, None, trouble="is not JSON")
    events = world.program().get(f"{ROOT}/events?limit=499").json()["items"]

    assert [] == shown(world)["items"]
    assert [(job, {"module": "copy", "step": 1, "reason": "is not JSON"})] == [
        (event["job_id"], event["detail"]) for event in events if event["kind"] == "result.unreadable"
    ]
    assert "the result of module copy was not kept: is not JSON" in world.browser().get("/studies/1.2.826.1").text


def test_result_that_was_found_again_is_superseded(world: World) -> None:
    """
    A job done again from the start finds anew, and what it found before says so.
    """
    world.apply()
    job = find(world, 1, 1)
    Jobs(world.ledger).act(job, Event.RESTART, actor="test", now=world.clock.now())
    claim = world.claim(Kind.PROCESS)
    again = [StepResult(step=1, module="copy", version="1.3", value="2", trouble="")]

    def follow(connection: Any) -> list[Any]:
        record_found(connection, claim, again, now=world.clock.now())
        return []

    Jobs(world.ledger).end(claim, Event.FINISH, now=world.clock.now(), follow_ups=follow)

    assert [(1, True), (2, False)] == [(each["value"], each["superseded"]) for each in shown(world)["items"]]
