"""Acting through the API: on jobs, on studies, on the flow of work."""

from collections.abc import Mapping
from typing import Any

import pytest

from talaria.store.access import Scope
from talaria.store.jobs import Jobs
from talaria.store.schema import studies
from world import World

ROOT = "/api/v1"


def post(
    world: World, path: str, body: object = None, *, scope: Scope = Scope.OPERATE
) -> tuple[int, Mapping[str, Any]]:
    """What a program with a token `robot` is answered."""
    client = world.client(Authorization=f"Bearer {world.token('robot', scope=scope)}")
    answer = client.post(ROOT + path) if body is None else client.post(ROOT + path, json=body)
    return answer.status_code, answer.json()


def last_event(world: World, kind: str) -> Mapping[str, Any]:
    """The last event of a kind."""
    found: list[Mapping[str, Any]] = world.program().get(f"{ROOT}/events?limit=499").json()["items"]
    return [event for event in found if event["kind"] == kind][-1]


def job_in(world: World, state: str) -> int:
    """A job in that state."""
    return int(world.program().get(f"{ROOT}/jobs?state={state}").json()["items"][0]["id"])


@pytest.mark.parametrize(
    ("state", "act", "then"),
    [
        ("failed", "retry", "pending"),
        ("deferred", "retry", "pending"),
        ("pending", "hold", "held"),
        ("pending", "cancel", "cancelled"),
        ("done", "restart", "pending"),
    ],
)
def test_one_job(busy: World, state: str, act: str, then: str) -> None:
    """
    An act on one job answers the job as it is then, and is written down with the token's name.
    """
    number = job_in(busy, state)
    status, job = post(busy, f"/jobs/{number}/{act}")

    assert (200, number, then) == (status, job["id"], job["state"])
    assert ("token:robot", number) == (
        last_event(busy, f"job.{act}")["actor"], last_event(busy, f"job.{act}")["job_id"]
    )  # fmt: skip


def test_act_that_the_state_does_not_allow(busy: World) -> None:
    """
    409 tells what is possible; a job that is not there is 404, an act that is none 422.
    """
    number = job_in(busy, "done")
    status, refusal = post(busy, f"/jobs/{number}/hold")

    assert (409, f"job {number}: a job that is done cannot hold; possible now: restart") == (status, refusal["detail"])
    assert (404, "there is no job 999; `talaria jobs list` shows what there is") == (
        post(busy, "/jobs/999/hold")[0], post(busy, "/jobs/999/hold")[1]["detail"]
    )  # fmt: skip
    assert 422 == post(busy, "/jobs/1/explode")[0]
    assert 422 == post(busy, "/jobs/0/hold")[0]
    assert 422 == post(busy, "/jobs/explode", {"state": "failed"})[0]


def test_many_jobs(busy: World) -> None:
    """
    An act on all that fit says how many it was done to, and why not to the others.
    """
    fitting = [job["id"] for job in busy.program().get(f"{ROOT}/jobs?target=archive").json()["items"]]
    status, acted = post(busy, "/jobs/hold", {"target": "archive", "kind": "dispatch"})

    assert (200, 1, len(fitting) - 1) == (status, acted["done"], acted["refusals"])
    assert len(acted["refused"]) == acted["refusals"]
    assert {"done": 1, "refused": [], "refusals": 0} == post(busy, "/jobs/release", {"state": "held"})[1]
    assert {"done": 0, "refused": [], "refusals": 0} == post(busy, "/jobs/retry", {"rule": "nothing"})[1]
    assert "token:robot" == last_event(busy, "operation")["actor"]


def test_jobs_by_number(busy: World) -> None:
    """
    Numbers that no job has are told beside those that it was done to.
    """
    number = job_in(busy, "pending")
    acted = post(busy, "/jobs/hold", {"ids": [number, 998]})[1]

    assert (1, ["there is no job 998; `talaria jobs list` shows what there is"]) == (acted["done"], acted["refused"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"ids": []}, "body"),
        ({"sate": "failed"}, "body.sate"),
        ({"state": "asleep"}, "body.state"),
        ({"ids": ["1"]}, "body.ids.0"),
        ({"ids": [True]}, "body.ids.0"),
        ({"ids": [0]}, "body.ids.0"),
        ({"ids": [2**63]}, "body.ids.0"),
        ({"ids": list(range(1, 10_002))}, "body.ids"),
        ({"since": "yesterday"}, "body.since"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "body.since"),
        ({"study_uid": "../x"}, "body.study_uid"),
        ({"rule": ""}, "body.rule"),
        ({"rule": 5}, "body.rule"),
        ([], "body"),
        ("all", "body"),
    ],
)
def test_selection_that_is_none(busy: World, body: object, field: str) -> None:
    """
    What is no choice of jobs is refused with the field's name, and nothing is done: all is never meant by accident.
    """
    status, refusal = post(busy, "/jobs/cancel", body)

    assert 422 == status
    assert field in refusal["detail"]
    assert [] == busy.program().get(f"{ROOT}/jobs?state=cancelled").json()["items"]


def test_study_is_routed_and_sent(busy: World) -> None:
    """
    A discarded study goes to a rule, and any study to a target; the jobs are named.
    """
    status, made = post(busy, "/studies/1.2.826.5/route", {"rule": "ct"})
    jobs = [Jobs(busy.ledger).show(number) for number in made["jobs"]]

    assert (200, {"archive", "pacs"}, {"1.2.826.5"}) == (
        status, {job.target for job in jobs}, {job.study_instance_uid for job in jobs}
    )  # fmt: skip

    status, made = post(busy, "/studies/1.2.826.1/send", {"target": "pacs", "series_uid": "1.2.826.1.1"})

    assert (200, ["pacs"]) == (status, [Jobs(busy.ledger).show(number).target for number in made["jobs"]])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/studies/1.2.3/route", {"rule": "ct"}, 404),
        ("/studies/1.2.3/send", {"target": "pacs"}, 404),
        ("/studies/1.2.3/release", None, 404),
        ("/studies/P0001/send", {"target": "pacs"}, 422),
        ("/studies/1.2.826.5/route", {"rule": "nothing"}, 409),
        ("/studies/1.2.826.5/route", {}, 422),
        ("/studies/1.2.826.5/send", {"target": "nowhere"}, 409),
        ("/studies/1.2.826.5/send", {"target": "pacs", "series_uid": "1.2.3"}, 409),
        ("/studies/1.2.826.5/release", {}, 409),
        ("/studies/1.2.826.5/release", None, 409),
    ],
)
def test_study_acts_that_are_refused(busy: World, path: str, body: object, status: int) -> None:
    """
    What is not there is 404, what its state or the rulebook does not allow 409, each in words.
    """
    found, refusal = post(busy, path, body)

    assert status == found
    assert refusal["detail"]


def test_pauses(busy: World) -> None:
    """
    A kind of work and a target are paused with a reason, listed, and let go on.
    """
    client = busy.client(Authorization=f"Bearer {busy.token('robot', scope=Scope.OPERATE)}")
    client.put(f"{ROOT}/pauses/process")
    found = client.put(f"{ROOT}/pauses/dispatch/archive", json={"reason": "new disks"}).json()["items"]

    assert [("process", "", ""), ("dispatch", "archive", "new disks")] == [
        (pause["kind"], pause["target"], pause["reason"])
        for pause in sorted(found, key=lambda p: p["kind"] == "dispatch")
    ]
    assert {"token:robot"} == {pause["actor"] for pause in found}
    assert 1 == len(client.delete(f"{ROOT}/pauses/process").json()["items"])
    assert [] == client.delete(f"{ROOT}/pauses/dispatch/archive").json()["items"]
    assert (404, "dispatch to archive is not paused; paused now: nothing") == (
        client.delete(f"{ROOT}/pauses/dispatch/archive").status_code,
        client.delete(f"{ROOT}/pauses/dispatch/archive").json()["detail"],
    )
    assert 422 == client.put(f"{ROOT}/pauses/sleep").status_code
    assert 422 == client.put(f"{ROOT}/pauses/drain").status_code
    assert 409 == client.put(f"{ROOT}/pauses/dispatch/nowhere").status_code


def test_drain(busy: World) -> None:
    """
    A drain is asked for, seen, and ended.
    """
    client = busy.client(Authorization=f"Bearer {busy.token('robot', scope=Scope.OPERATE)}")
    assert client.get(f"{ROOT}/drain").json()["draining"] is False

    found = client.put(f"{ROOT}/drain", json={"reason": "upgrade"}).json()

    assert (True, "token:robot", "upgrade") == (found["draining"], found["actor"], found["reason"])
    assert [] == client.get(f"{ROOT}/pauses").json()["items"]
    assert client.delete(f"{ROOT}/drain").json()["draining"] is False
    assert client.delete(f"{ROOT}/drain").status_code == 200


def test_study_whose_uid_others_bear_as_a_name(busy: World) -> None:
    """
    However many studies come later whose patient is called like a study's UID, that study can still be acted on.
    """
    uid = busy.program().get(f"{ROOT}/studies?limit=1").json()["items"][0]["study_uid"]
    with busy.ledger.writing("test.studies") as connection:
        now = busy.clock.now()
        names = ("patient_name", "accession_number", "study_date", "study_description")
        rows = [
            {
                "study_instance_uid": f"1.9.{number}", "patient_id": uid, "first_received": now,
                "last_received": now, **dict.fromkeys(names, ""),
            }
            for number in range(60)
        ]  # fmt: skip
        connection.execute(studies.insert(), rows)
    status, _ = post(busy, f"/studies/{uid}/send", {"target": "archive"})

    assert 200 == status
