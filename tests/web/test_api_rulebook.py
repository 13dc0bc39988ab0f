"""The rulebook through the API: shown, saved, compared, rolled back; its targets tried out."""

import threading
from pathlib import Path
from typing import ClassVar

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from talaria.model.extensions import Finding, Findings, Target
from talaria.model.masking import MASK
from talaria.model.rulebook import Shelves
from talaria.store.access import Scope
from talaria.store.revisions import Revisions, Rulebooks
from world import RULEBOOK, World

HERE = "/api/v1/rulebook"
YAML = "application/yaml"
BAD = """\
targets:
  archive: {kind: folder, path: /nowhere/archive}
rules:
  ct: {when: tags.Modality = "CT", send: [archive]}
  mr: {when: 'True', send: [archiv]}
"""


def put(client: TestClient, text: str, *, match: str | None = "*", kind: str = YAML, note: str = "") -> tuple[int, str]:
    """Save a rulebook; the status, and what is told."""
    headers = {"Content-Type": kind} | ({} if match is None else {"If-Match": match})
    answer = client.put(HERE, content=text.encode(), headers=headers, params={"note": note} if note else {})
    found = answer.json()
    return answer.status_code, found.get("detail", str(found.get("revision")))


def test_rulebook_is_shown_as_it_was_written(still: World) -> None:
    """
    To the letter as YAML, its values as JSON, with the revision as entity tag.
    """
    client = still.program()
    answer = client.get(HERE)

    assert (200, RULEBOOK, '"1"') == (answer.status_code, answer.text, answer.headers["etag"])
    assert answer.headers["content-type"] == "application/yaml; charset=utf-8"
    assert RULEBOOK == client.get(HERE, headers={"Accept": YAML}).text

    as_json = client.get(HERE, headers={"Accept": "application/json"})

    assert ["ct", "mr"] == list(as_json.json()["rules"])
    assert '"1"' == as_json.headers["etag"]


@pytest.mark.parametrize(("known", "status"), [('"1"', 304), ("*", 304), ('"0", "1"', 304), ('"2"', 200), ("x", 400)])
def test_known_rulebook_is_not_sent_again(still: World, known: str, status: int) -> None:
    """
    Who has the revision that runs is told so.
    """
    answer = still.program().get(HERE, headers={"If-None-Match": known})

    assert status == answer.status_code


def test_no_rulebook_yet(world: World) -> None:
    """
    Before the first there is none to be shown; the first is saved over nothing.
    """
    client = world.program()

    assert client.get(HERE).status_code == 404
    assert (200, "1") == put(client, RULEBOOK, match='"0"')


def test_saving(busy: World) -> None:
    """
    What was saved runs, under the next number, with who and why.
    """
    client = busy.client(Authorization=f"Bearer {busy.token('ci')}")
    text = f"# Prüfkörper\n{RULEBOOK}"

    assert (200, "2") == put(client, text, match='"1"', note="more")
    assert (text, '"2"') == (client.get(HERE).text, client.get(HERE).headers["etag"])
    first = client.get(f"{HERE}/revisions").json()["items"][0]
    assert (2, "token:ci", "more") == (first["number"], first["author"], first["note"])
    assert ["token:ci"] == [
        event["actor"] for event in client.get("/api/v1/events?limit=499").json()["items"]
        if event["kind"] == "rulebook.saved" and event["detail"]["revision"] == 2
    ]  # fmt: skip


def test_saving_as_json(busy: World) -> None:
    """
    A rulebook is taken as JSON, and shown again as the YAML that it is.
    """
    client = busy.program()
    document = client.get(HERE, headers={"Accept": "application/json"}).text

    assert (200, "2") == put(client, document, kind="application/json")
    assert document == client.get(HERE, headers={"Accept": "application/json"}).text
    assert client.get(HERE).text.startswith('{\n  "targets": {')
    assert (422, "body.rules: is given twice") == put(client, '{"rules": {}, "rules": {}}', kind="application/json")


def test_saving_needs_to_know_what_it_changes(busy: World) -> None:
    """
    Without If-Match 428, with an older one 412 that says who was first; nothing is saved.
    """
    client = busy.client(Authorization=f"Bearer {busy.token('ci')}")
    put(client, RULEBOOK + "# by ci\n", note="for CI")

    assert (428, 'say which revision you began with: send its ETag as If-Match, such as `If-Match: "7"`') == put(
        client, RULEBOOK, match=None
    )
    assert (
        412,
        "the rulebook was changed meanwhile: you began with 1; revision 2 runs, saved by token:ci at "
        "2026-01-05 08:05:47 UTC (for CI); look at what it changed, and begin with that one",
    ) == put(client, RULEBOOK, match='"1"')
    assert 412 == put(client, RULEBOOK, match='W/"2"')[0]
    assert 400 == put(client, RULEBOOK, match="two")[0]
    assert 2 == busy.rulebooks.revisions.latest()


def test_two_who_save_at_once(busy: World) -> None:
    """
    Of two people who began with one revision and save at once one succeeds, and the other is told by whom.
    """
    names = ["ada", "bob"]
    clients = [busy.client(Authorization=f"Bearer {busy.token(name)}") for name in names]
    gate = threading.Barrier(2)
    came: dict[str, tuple[int, str]] = {}

    def work(name: str, client: TestClient) -> None:
        gate.wait(10)
        came[name] = put(client, f"{RULEBOOK}# {name}\n", match='"1"')

    threads = [threading.Thread(target=work, args=pair) for pair in zip(names, clients, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    first, second = sorted(names, key=lambda name: came[name][0])

    assert (200, "2") == came[first]
    assert 412 == came[second][0]
    assert f"revision 2 runs, saved by token:{first}" in came[second][1]


def test_what_is_wrong_is_told_with_its_place(busy: World) -> None:
    """
    A rulebook that cannot be used is refused whole: each problem with path, line and column, and the old one runs.
    """
    client = busy.program()
    answer = client.put(HERE, content=BAD, headers={"Content-Type": YAML, "If-Match": '"1"'})
    problems = {each["field"]: each for each in answer.json()["errors"]}

    assert (422, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
    assert {"rules.ct.when": 4, "rules.mr.send": 5} == {name: each["line"] for name, each in problems.items()}
    assert "^" in problems["rules.ct.when"]["message"]
    assert problems["rules.mr.send"]["message"].endswith("did you mean 'archive'?")
    assert 1 == busy.rulebooks.revisions.latest()


@pytest.mark.parametrize(
    ("text", "kind", "status"),
    [
        ("", YAML, 422),
        ("[]", YAML, 422),
        ("rules: {}\nrules: {}\n", YAML, 422),
        ("a: &a [*a]", YAML, 422),
        ("\x00", YAML, 422),
        ("rules: {}", "text/plain", 415),
        ("rules: {}", "", 415),
        ("rules: {}", "application/json", 400),
        ("{}", "multipart/form-data", 415),
        ('{"rules": NaN}', "application/json", 422),
        ("rules: {}", "text/yaml", 200),
        ("rules: {}", "application/x-yaml; charset=utf-8", 200),
    ],
)
def test_odd_rulebooks(busy: World, text: str, kind: str, status: int) -> None:
    """
    What is no rulebook is refused for what it is.
    """
    assert status == put(busy.program(), text, kind=kind)[0]


def test_bytes_that_are_no_text(busy: World) -> None:
    """
    A rulebook in another encoding is refused, with the line.
    """
    headers = {"Content-Type": YAML, "If-Match": "*"}
    answer = busy.program().put(HERE, content=b"# ok\n# \xe9\n", headers=headers)

    assert (422, 2) == (answer.status_code, answer.json()["errors"][0]["line"])


def test_revisions_are_walked(busy: World) -> None:
    """
    Revisions are listed a page at a time, the newest first, each can be read, and two compared.
    """
    client = busy.program()
    for number in range(2, 6):
        put(client, f"{RULEBOOK}# {number}\n")
    numbers, after = [], ""
    while True:
        page = client.get(f"{HERE}/revisions?limit=2{after}").json()
        numbers += [item["number"] for item in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"

    assert [5, 4, 3, 2, 1] == numbers
    assert f"{RULEBOOK}# 3\n" == client.get(f"{HERE}/revisions/3").json()["text"]
    assert "-# 3\n+# 5\n" in client.get(f"{HERE}/diff?from=3&to=5").json()["diff"]
    assert "" == client.get(f"{HERE}/diff?from=1&to=1").json()["diff"]


def test_rolling_back(busy: World) -> None:
    """
    An earlier revision runs again as a new one; what is not there, runs already, or was overtaken is refused.
    """
    client = busy.program()
    put(client, "rules: {}\n")
    back = client.post(f"{HERE}/rollback", json={"revision": 1}, headers={"If-Match": '"2"'})

    assert (200, 3, '"3"') == (back.status_code, back.json()["revision"], back.headers["etag"])
    assert RULEBOOK == client.get(HERE).text
    assert "rollback to 1" == client.get(f"{HERE}/revisions/3").json()["note"]
    assert 404 == client.post(f"{HERE}/rollback", json={"revision": 9}).status_code
    assert 409 == client.post(f"{HERE}/rollback", json={"revision": 3}).status_code
    assert 412 == client.post(f"{HERE}/rollback", json={"revision": 1}, headers={"If-Match": '"2"'}).status_code
    assert 422 == client.post(f"{HERE}/rollback", json={"revision": "1"}).status_code


def test_target_is_tried_out(busy: World, tmp_path: Path) -> None:
    """
    A check tells what it found; a far end that does not answer is a finding, a target that is not there 404.
    """
    client = busy.client(Authorization=f"Bearer {busy.token('olga', scope=Scope.OPERATE)}")
    (tmp_path / "there").mkdir()
    here = RULEBOOK.replace("/nowhere/archive", str(tmp_path / "there"))
    busy.apply(here.replace("10.0.0.5, port: 104", "127.0.0.1, port: 9"))
    good = client.post("/api/v1/targets/archive/check").json()
    bad = client.post("/api/v1/targets/pacs/check").json()
    none = client.post("/api/v1/targets/pax/check")

    assert (True, "archive") == (good["ok"], good["target"])
    assert all(found["ok"] for found in good["findings"])
    assert bad["ok"] is False
    assert "127.0.0.1:9" in bad["findings"][-1]["text"]
    assert (404, "target 'pax' is not in revision 2 of the rulebook; there are: archive, pacs") == (
        none.status_code, none.json()["detail"]
    )  # fmt: skip


# -- secrets --


class Vault(Target):
    """A target with a secret."""

    kind: ClassVar[str] = "vault"

    password: SecretStr
    """It opens it."""
    hint: str = ""
    """What it is like."""

    def check(self) -> Findings:
        """Nothing to reach."""
        return (Finding(ok=True, text="there"),)


SECRET = "correct-horse-17"
WITH_SECRET = f"# mine\ntargets:\n  vault: {{kind: vault, password: {SECRET}}}  # keep\nrules: {{}}\n"


@pytest.fixture
def vault(world: World) -> World:
    """A site whose rulebook holds a secret."""
    shelves = Shelves(targets={"vault": Vault})
    world.rulebooks = Rulebooks(Revisions(world.ledger), shelves=shelves, cache=world.folder / "running.yaml")
    world.apply(WITH_SECRET)
    return world


def test_secrets_are_never_shown(vault: World) -> None:
    """
    No form of the rulebook, and no comparison, shows a secret; all else is as it was written.
    """
    client = vault.program()
    put(client, WITH_SECRET.replace("# mine", "# ours"))
    told = [
        client.get(HERE), client.get(HERE, headers={"Accept": "application/json"}), client.get(f"{HERE}/revisions/1"),
        client.get(f"{HERE}/diff?from=1&to=2"), client.get(f"{HERE}/revisions"),
    ]  # fmt: skip

    assert [200] * 5 == [answer.status_code for answer in told]
    assert not [answer.text for answer in told if SECRET in answer.text]
    assert WITH_SECRET.replace(SECRET, MASK).replace("# mine", "# ours") == told[0].text
    assert MASK == told[1].json()["targets"]["vault"]["password"]


@pytest.mark.parametrize("written", ['"correct\\x2dhorse-17"', ">-\n      correct-horse-17", "'correct-horse-17'"])
def test_secret_in_any_writing_is_masked(vault: World, written: str) -> None:
    """
    However a secret is written, it is not shown.
    """
    client = vault.program()
    text = f"targets:\n  vault:\n    kind: vault\n    password: {written}\nrules: {{}}\n"

    assert 200 == put(client, text)[0]
    shown = client.get(HERE).text
    assert "horse" not in shown
    assert MASK in shown


def test_mask_is_not_kept_as_a_secret(vault: World) -> None:
    """
    What was shown cannot be saved as it is: the mask would take the secret's place.
    """
    client = vault.program()
    shown = client.get(HERE).text
    answer = client.put(HERE, content=shown, headers={"Content-Type": YAML, "If-Match": "*"})

    assert 422 == answer.status_code
    assert ("targets.vault.password", 3) == (
        answer.json()["errors"][0]["field"], answer.json()["errors"][0]["line"]
    )  # fmt: skip


def test_wrong_secret_is_not_repeated(vault: World) -> None:
    """
    A problem with a secret says where, not what it was.
    """
    text = f"targets:\n  vault: {{kind: vault, password: [{SECRET}], hint: 5}}\nrules: {{}}\n"
    answer = vault.program().put(HERE, content=text, headers={"Content-Type": YAML, "If-Match": "*"})

    assert 422 == answer.status_code
    assert SECRET not in answer.text
