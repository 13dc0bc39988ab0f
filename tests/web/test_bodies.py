"""Bodies of requests: what is taken, and what is said of the rest."""

import json

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from talaria.web.bodies import DEPTH_LIMIT, BodyRefused, read_json
from world import World

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_plain_json_is_taken(value: object) -> None:
    """
    JSON that means one thing is read as what it means.
    """
    assert read_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """
    Whatever comes is read or refused in words; nothing else happens.
    """
    problems = []
    try:
        read_json(data)
    except BodyRefused as refusal:
        problems = [refusal]

    assert all(refusal.status_code in {400, 422} and refusal.problems for refusal in problems)


@pytest.mark.parametrize(
    ("data", "status", "field", "message"),
    [
        (b'{"a": 1, "a": 2}', 422, "body.a", "is given twice"),
        (b'{"a": {"b": 1, "b": 1}}', 422, "body.a.b", "is given twice"),
        (b'{"a": [1, NaN]}', 422, "body.a.1", "is no number that can be kept"),
        (b'{"a": -Infinity}', 422, "body.a", "is no number that can be kept"),
        (b'{"a": 1e999}', 422, "body.a", "is no number that can be kept"),
        (b'{"a": 1234567890123456789}', 422, "body.a", "is no number that can be kept"),
        (b'{"a": "\\u0000"}', 422, "body.a", "has a NUL or half of a character in it; leave it out"),
        (b'{"a": "\\ud800"}', 422, "body.a", "has a NUL or half of a character in it; leave it out"),
        (b'{"\\ud800": 1}', 422, "body", "has a name with a NUL or half of a character in it"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", 422, "body.a" + ".0" * 32, "is nested in more than 32 levels"),
        (b"[" * 100_000, 422, "body", "has more than 32 levels"),
        (b'{"a": 1', 400, "body", "is not JSON: Expecting ',' delimiter (line 1, column 8)"),
        (b"\xff\xfe", 400, "body", "is not UTF-8 (byte 0)"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, status: int, field: str, message: str) -> None:
    """
    Each thing that is wrong comes with the name of its field.
    """
    with pytest.raises(BodyRefused) as raised:
        read_json(data)

    assert (status, field, message) == (
        raised.value.status_code, raised.value.problems[0].field, raised.value.problems[0].message
    )  # fmt: skip


def test_limit_of_depth_is_the_last_that_is_taken() -> None:
    """
    So many levels are read, one more is not.
    """
    assert read_json(b"[" * DEPTH_LIMIT + b"1" + b"]" * DEPTH_LIMIT)
    with pytest.raises(BodyRefused):
        read_json(b"[" * (DEPTH_LIMIT + 1) + b"1" + b"]" * (DEPTH_LIMIT + 1))


def test_many_repeated_names_cost_little() -> None:
    """
    A body full of names, one of them twice, is read as fast as any.
    """
    data = b"{" + b",".join(b'"n%d":1' % number for number in range(100_000)) + b',"n5":2}'
    with pytest.raises(BodyRefused) as raised:
        read_json(data)

    assert ["body.n5"] == [problem.field for problem in raised.value.problems]


@pytest.fixture
def client(still: World) -> TestClient:
    """A program that may all."""
    return still.program()


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("text/plain", "the body is said to be text/plain; send JSON with `Content-Type: application/json`"),
        (
            "application/x-www-form-urlencoded",
            "the body is said to be application/x-www-form-urlencoded; send JSON with `Content-Type: application/json`",
        ),
        ("", "the body does not say what it is; send JSON with `Content-Type: application/json`"),
    ],
)
def test_other_kinds_of_body(client: TestClient, kind: str, detail: str) -> None:
    """
    A body that is not said to be JSON is 415, a problem document.
    """
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post("/api/v1/jobs/hold", content=b'{"state": "nothing"}', headers=headers)

    assert (415, detail) == (answer.status_code, answer.json()["detail"])
    assert answer.headers["content-type"] == "application/problem+json"


def test_kinds_of_json(client: TestClient) -> None:
    """
    JSON is taken with a charset, and under any name that ends in +json.
    """
    for kind in ("application/json; charset=utf-8", "application/vnd.x+json"):
        answer = client.post("/api/v1/jobs/hold", content=b'{"rule": "nothing"}', headers={"Content-Type": kind})
        assert (200, 0) == (answer.status_code, answer.json()["done"])


def test_problem_names_the_field(client: TestClient) -> None:
    """
    A body that is refused is a problem document with the field in it, and no word of what was sent.
    """
    answer = client.post(
        "/api/v1/jobs/hold", content=b'{"rule": "SENTINEL", "rule": "x"}', headers={"Content-Type": "application/json"}
    )

    assert (422, [{"field": "body.rule", "message": "is given twice"}]) == (answer.status_code, answer.json()["errors"])
    assert "SENTINEL" not in answer.text


@pytest.mark.parametrize("path", ["/api/v1/jobs/hold", "/api/v1/studies/1.2.826.1/send", "/api/v1/rulebook"])
def test_long_bodies(client: TestClient, path: str) -> None:
    """
    A body over its limit is 413, whether its length is said or not.
    """
    method = "PUT" if path.endswith("rulebook") else "POST"
    headers = {"Content-Type": "application/json", "If-Match": "*"}
    whole = b'{"rule": "' + b"x" * (2 << 20) + b'"}'

    for content in (whole, (whole[start : start + 60_000] for start in range(0, len(whole), 60_000))):
        answer = client.request(method, path, content=content, headers=headers)
        assert (413, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
