"""The JSON: its pinned fields, its pages, its problem documents."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from talaria.model.job import Kind
from talaria.web.auth import GatedRoute
from world import World

ROOT = "/api/v1"

JOB = {
    "id", "study_uid", "series_uid", "rule", "revision", "kind", "state", "attempt", "reason", "created", "due",
    "updated",
}  # fmt: skip
DELIVERY = {"id", "job_id", "study_uid", "target", "state", "sent", "total", "attempt", "reason", "due"}


def asked(world: World, path: str, **query: object) -> Mapping[str, Any]:
    """What the API answers to a program."""
    answer = world.program().get(ROOT + path, params={key: str(value) for key, value in query.items()})
    assert answer.status_code == 200, answer.text
    found: Mapping[str, Any] = answer.json()
    return found


def walked(client: TestClient, path: str, *, limit: int) -> list[Mapping[str, Any]]:
    """Every item of a list, page by page."""
    items: list[Mapping[str, Any]] = []
    after: str | None = None
    while True:
        query = {"limit": str(limit)} | ({} if after is None else {"after": after})
        page = client.get(ROOT + path, params=query).json()
        assert len(page["items"]) <= limit
        items += page["items"]
        after = page["next"]
        if after is None:
            return items


def test_job_has_its_fields(still: World) -> None:
    """
    A job has the fields that are promised; times are UTC with a Z.
    """
    job = asked(still, "/jobs/1")

    assert job.keys() >= JOB
    assert {name: job[name] for name in ("id", "study_uid", "series_uid", "rule", "kind", "state", "target")} == {
        "id": 1, "study_uid": "1.2.826.1", "series_uid": "1.2.826.1.1", "rule": "ct", "kind": "dispatch",
        "state": "done", "target": "archive",
    }  # fmt: skip
    assert (job["created"], job["revision"], job["attempt"], job["reason"]) == ("2026-01-05T08:05:00Z", 1, 1, "")
    assert job in asked(still, "/jobs")["items"]


def test_delivery_has_its_fields(still: World) -> None:
    """
    A delivery has the fields that are promised, and tells how far it is.
    """
    (failed,) = asked(still, "/deliveries", state="failed")["items"]

    assert failed.keys() >= DELIVERY
    assert (failed["target"], failed["sent"], failed["total"], failed["attempt"]) == ("archive", 1, 3, 1)
    assert failed["reason"] == "target 'archive': /nowhere/archive cannot be made: Permission denied; check its rights"


def test_studies_tell_state_and_reason(still: World) -> None:
    """
    A study stands as its worst part does, the one heard of last first.
    """
    found = [(study["study_uid"], study["state"], study["instances"]) for study in asked(still, "/studies")["items"]]

    assert found == [
        ("1.2.826.6", "receiving", 12),
        ("1.2.826.5", "discarded", 3),
        ("1.2.826.4", "done", 2),
        ("1.2.826.3", "pending", 3),
        ("1.2.826.2", "failed", 3),
        ("1.2.826.1", "done", 3),
    ]


def test_study_tells_its_life(still: World) -> None:
    """
    One study comes with its series, cases, jobs, deliveries, runs and events.
    """
    life = asked(still, "/studies/1.2.826.4")

    assert (life["study_uid"], life["state"], life["patient_id"]) == ("1.2.826.4", "done", "P0004")
    assert [series["series_uid"] for series in life["series"]] == ["1.2.826.4.1"]
    assert [(case["rule"], case["state"]) for case in life["cases"]] == [("mr", "closed")]
    assert [(job["kind"], job["state"]) for job in life["jobs"]] == [("process", "done")]
    assert [(run["module"], run["log"]) for run in life["runs"]] == [("copy", "read 2 files\nwrote 2 files\n")]
    assert [event["kind"] for event in life["events"]][-1] == "job.finish"


def test_long_log_is_cut(busy: World) -> None:
    """
    Of a module's log the end is told, so that an answer stays bounded.
    """
    busy.receive(20, modality="MR")
    busy.clock.move(timedelta(minutes=5))
    busy.route()
    busy.run_module(busy.claim(Kind.PROCESS), log="x" * 100_000 + "end")

    (run,) = asked(busy, "/studies/1.2.826.20")["runs"]
    assert (len(run["log"]), run["log"][-3:]) == (65_536, "end")


def test_instance_tells_its_history(still: World) -> None:
    """
    An instance tells its versions and where each went.
    """
    history = asked(still, "/instances/1.2.826.1.1.1")
    (version,) = history["versions"]

    assert history["sop_instance_uid"] == "1.2.826.1.1.1"
    assert (version["study_uid"], version["size_bytes"], version["flags"]) == ("1.2.826.1", 524_288, [])
    assert {(sent["target"], sent["standing"]) for sent in version["deliveries"]} == {
        ("archive", "sent"),
        ("pacs", "sent"),
    }


def test_filters(still: World) -> None:
    """
    Lists are narrowed by what is asked.
    """
    assert {job["target"] for job in asked(still, "/jobs", target="pacs")["items"]} == {"pacs"}
    assert {job["rule"] for job in asked(still, "/jobs", rule="mr")["items"]} == {"mr"}
    assert {job["state"] for job in asked(still, "/jobs", state="deferred")["items"]} == {"deferred"}
    assert {job["kind"] for job in asked(still, "/jobs", kind="process")["items"]} == {"process"}
    assert {found["target"] for found in asked(still, "/deliveries", target="archive")["items"]} == {"archive"}
    assert {study["state"] for study in asked(still, "/studies", state="discarded")["items"]} == {"discarded"}
    assert asked(still, "/jobs", rule="no such rule") == {"items": [], "next": None}


def test_jobs_by_all_that_can_be_asked(still: World) -> None:
    """
    Jobs and deliveries are narrowed by study, series, sender and when they were made; a moment without a zone is UTC.
    """
    made = "2026-01-05T08:05:00"

    for path in ("/jobs", "/deliveries"):
        assert {job["study_uid"] for job in asked(still, path, study="1.2.826.2")["items"]} == {"1.2.826.2"}
        assert {job["study_uid"] for job in asked(still, path, series="1.2.826.2.1")["items"]} == {"1.2.826.2"}
        whole = asked(still, path)["items"]
        assert whole == asked(still, path, calling_ae="CT1", since=made, until="2026-01-06")["items"]
        assert whole == asked(still, path, since="2026-01-05T09:05:00+01:00")["items"]
        assert [] == asked(still, path, calling_ae="CT2")["items"]
        assert [] == asked(still, path, until=made)["items"]
    assert ["1.2.826.2"] == [study["study_uid"] for study in asked(still, "/studies", find="P0002")["items"]]


@pytest.mark.parametrize("path", ["/studies", "/jobs", "/deliveries", "/events"])
@pytest.mark.parametrize("limit", [1, 2, 3, 499])
def test_pages_walk_all(still: World, path: str, limit: int) -> None:
    """
    From page to page every item comes, once, in one order.
    """
    client = still.program()
    whole = client.get(f"{ROOT}{path}", params={"limit": 499}).json()["items"]

    assert walked(client, path, limit=limit) == whole
    assert len(whole) > 4


def test_events_can_be_followed(busy: World) -> None:
    """
    Asked again with the last number seen, only what happened since is told.
    """
    client = busy.program()
    seen = client.get(f"{ROOT}/events").json()["items"][-1]["id"]

    assert client.get(f"{ROOT}/events?after={seen}").json() == {"items": [], "next": None}

    busy.apply()
    news = client.get(f"{ROOT}/events?after={seen}").json()["items"]

    assert [event["kind"] for event in news] == ["rulebook.saved"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs/999", 404),
        ("/jobs/0", 422),
        ("/jobs/-1", 422),
        ("/jobs/1e3", 422),
        ("/jobs/" + "9" * 30, 422),
        ("/jobs/9223372036854775807", 404),
        ("/jobs/9223372036854775808", 422),
        ("/jobs/%D9%A1", 422),
        ("/jobs/../studies", 200),
        ("/jobs/..%2Fstudies", 405),
        ("/studies/1.2.3.4", 404),
        ("/studies/..%2F..%2Fetc%2Fpasswd", 404),
        ("/studies/%2e%2e", 422),
        ("/studies/..;", 422),
        ("/studies/1.2%00", 404),
        ("/studies/%00", 422),
        ("/studies/" + "1" * 65, 422),
        ("/studies/" + "1" * 10_000, 422),
        ("/studies/1.2'%20OR%20'1'='1", 422),
        ("/studies/١.٢", 422),
        ("/instances/1.2.3", 404),
        ("/instances/-1", 422),
        ("/jobs?limit=0", 422),
        ("/jobs?limit=501", 422),
        ("/jobs?limit=many", 422),
        ("/jobs?state=sleeping", 422),
        ("/jobs?after=x", 422),
        ("/jobs?since=soon", 422),
        ("/jobs?since=0001-01-01T00:00:00%2B14:00", 422),
        ("/jobs?since=9999-12-31T23:00:00-14:00", 422),
        ("/jobs?since=0001-01-01", 422),
        ("/jobs?since=1900-01-01", 200),
        ("/jobs?rule=%00", 422),
        ("/jobs?calling_ae=" + "A" * 65, 422),
        ("/jobs?study=../x", 422),
        ("/studies?find=%00", 422),
        ("/results?after=x", 422),
        ("/results?format=xml", 422),
        ("/results?module=%00", 422),
        ("/rulebook/revisions/0", 422),
        ("/rulebook/revisions/999", 404),
        ("/rulebook/diff?from=1", 422),
        ("/rulebook/diff?from=1&to=999", 404),
        ("/jobs?after=-5", 422),
        ("/jobs?after=" + "9" * 30, 422),
        ("/studies?after=2026-01-05~x", 422),
        ("/studies?after=2026-01-05T08:00:00.000000Z~99", 200),
        ("/studies?after=9999-99-99T00:00:00~1", 404),
        ("/studies?state=sleeping", 422),
        ("/events?after=-1", 422),
        ("/events?after=1&after=x", 422),
        ("/jobs?rule=" + "x" * 201, 422),
        ("/nothing", 404),
        ("//studies", 404),
        ("/studies/", 404),
    ],
)
def test_odd_requests(still: World, path: str, status: int) -> None:
    """
    An odd id, filter or path gets its status and a problem document, never a 500.
    """
    answer = still.program().get(ROOT + path)

    assert answer.status_code == status
    if status != 200:
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert (problem["type"], problem["status"]) == ("about:blank", status)
        assert problem["title"]
        assert problem["detail"]


def test_thousands_of_query_arguments(still: World) -> None:
    """
    A query of very many arguments is answered like any other.
    """
    answer = still.program().get(f"{ROOT}/jobs?" + "&".join(f"a{number}=1" for number in range(8_000)))

    assert answer.status_code == 200


def test_problem_says_what_is_wrong(still: World) -> None:
    """
    A wrong request is told by part; what was sent stands in no answer but as a UID that it should have been.
    """
    answer = still.program().get(f"{ROOT}/jobs", params={"limit": "0", "state": "sleeping"})

    assert answer.json() == {
        "type": "about:blank",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": (
            "query.state: Input should be 'pending', 'active', 'deferred', 'held', 'done', 'failed' or 'cancelled'; "
            "query.limit: Input should be greater than or equal to 1"
        ),
        "errors": [
            {
                "field": "query.state",
                "message": ("Input should be 'pending', 'active', 'deferred', 'held', 'done', 'failed' or 'cancelled'"),
            },
            {"field": "query.limit", "message": "Input should be greater than or equal to 1"},
        ],
    }


def test_missing_job_says_what_there_is(still: World) -> None:
    """
    What is not there is told with what to do.
    """
    assert still.program().get(f"{ROOT}/jobs/999").json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no job 999; `talaria jobs list` shows what there is",
    }


def test_nobody_gets_a_problem(still: World) -> None:
    """
    Without a token the API says how to send one.
    """
    answer = still.client().get(f"{ROOT}/jobs")

    assert (answer.status_code, answer.json()) == (
        401,
        {
            "type": "about:blank",
            "title": "Unauthorized",
            "status": 401,
            "detail": (
                "no valid token or session came with the request; send `Authorization: Bearer TOKEN`, or sign in"
            ),
        },
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
def test_other_methods(still: World, method: str) -> None:
    """
    A method that a path does not have is refused with those that it has; no header overrides a method.
    """
    answer = still.program().request(method, f"{ROOT}/jobs", headers={"X-HTTP-Method-Override": "GET"})

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.headers["content-type"] == "application/problem+json"


def test_document(world: World) -> None:
    """
    The OpenAPI document has every path of the API, absolute, nothing else, and describes every field.
    """
    document = world.client().get(f"{ROOT}/openapi.json").json()
    schemas = document["components"]["schemas"]

    served = {
        (method.lower(), route.path)
        for route in world.site.routes if isinstance(route, GatedRoute) and route.path.startswith(f"{ROOT}/")
        for method in route.methods
        if not route.path.endswith("/openapi.json")
    }  # fmt: skip
    described = {
        (method, path): each for path, methods in document["paths"].items() for method, each in methods.items()
    }

    assert set(described) == served
    assert [] == [key for key, each in described.items() if not each.get("description")]
    assert len({each["operationId"] for each in described.values()}) == len(described)
    assert {each["x-permission"] for each in described.values()} == {"view", "operate", "administer"}
    assert document["paths"]["/api/v1/jobs"]["get"]["operationId"] == "list_jobs"
    assert document["security"] == [{"token": []}, {"session": []}]
    assert not [
        (name, field)
        for name, schema in schemas.items()
        for field, described in schema.get("properties", {}).items()
        if "description" not in described
    ]
    assert set(schemas["Job"]["required"]) >= JOB
    assert set(schemas["Delivery"]["required"]) >= DELIVERY
    assert "HTTPValidationError" not in schemas


def test_document_refers_to_what_it_has(world: World) -> None:
    """
    Every reference in the OpenAPI document leads somewhere.
    """
    answer = world.client().get(f"{ROOT}/openapi.json")
    schemas = answer.json()["components"]["schemas"]
    named = {part.split('"')[0] for part in answer.text.split("#/components/schemas/")[1:]}

    assert named <= set(schemas)
