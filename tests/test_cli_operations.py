"""The commands that act on work: what they choose, what they say, how they end."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from talaria.cli import main
from talaria.testing import synthetic_ct


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a rulebook, and a study of three images that was imported and sent to a folder."""
    for name in [name for name in os.environ if name.startswith("TALARIA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TALARIA_HOME", str(tmp_path / "home"))
    (tmp_path / "out").mkdir()
    (tmp_path / "book.yaml").write_text(
        f"targets: {{out: {{kind: folder, path: {tmp_path}/out}}}}\nrules: {{never: {{when: 'False', send: [out]}}}}\n"
    )
    assert 0 == run("init").exit_code
    assert 0 == run("apply", str(tmp_path / "book.yaml")).exit_code
    synthetic_ct(tmp_path / "ct", slices=3, side=16)
    taken = run("import", str(tmp_path / "ct"), "--rule", "never")
    assert (0, True) == (taken.exit_code, taken.stdout.startswith("took 3 images; refused 0, skipped 0 in "))
    return tmp_path / "home"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def study() -> str:
    return str(json.loads(run("studies", "list", "--json").stdout)["items"][0]["study_uid"])


def test_study_is_routed_and_sent(home: Path) -> None:
    """
    Each way for a study says which jobs it made; what was asked before is refused with what to do.
    """
    uid = study()

    assert "taken to rule 'never': job 1\n" == run("studies", "route", uid, "--rule", "never").stdout
    again = run("studies", "route", uid, "--rule", "never")
    assert (1, True) == (again.exit_code, "`talaria jobs restart 1` does it again" in again.stderr)
    assert "goes to out: job 2\n" == run("studies", "send", uid, "--to", "out").stdout
    assert {"jobs": [3], "already_at": []} == json.loads(run("studies", "send", uid, "--to", "out", "--json").stdout)


def test_acts_by_filter(home: Path) -> None:
    """
    An act counts what was done and what was refused, and ends with 1 where anything was refused.
    """
    uid = study()
    for _ in range(3):
        run("studies", "send", uid, "--to", "out")

    assert (0, "would hold: 3 jobs\n") == outcome("jobs", "hold", "--target", "out", "--dry-run")
    assert (0, "hold: 3 jobs\n") == outcome("studies", "hold", uid)
    assert (0, "release: 1 job\n") == outcome("jobs", "release", "2")
    assert (1, "release: 2 jobs, 1 refused\n") == outcome("deliveries", "release", "--all")
    assert (0, "cancel: 3 jobs\n") == outcome("jobs", "cancel", "--study", uid, "--since", "1h", "--ae", "IMPORT")
    assert (0, "cancel: 0 jobs\n") == outcome("jobs", "cancel", "--until", "1h")
    delivery = json.loads(run("deliveries", "list", "--json").stdout)["items"][0]["id"]
    assert (0, "restart: 1 job\n") == outcome("deliveries", "restart", delivery)
    assert delivery in run("deliveries", "show", delivery).stdout


def outcome(*arguments: str) -> tuple[int, str]:
    result = run(*arguments)
    return result.exit_code, result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "hold"), ("jobs", "hold", "3", "--all"), ("jobs", "hold", "--since", "soon"), ("pause", "cooking"),
        ("studies", "hold", "1.2", "--study", "1.2"), ("import",), ("import", "x", "--calling", "A" * 17),
    ],
)  # fmt: skip
def test_unusable_arguments(home: Path, arguments: tuple[str, ...]) -> None:
    """
    Nothing chosen, or chosen twice, is no argument.
    """
    uid = study() if arguments[0] == "studies" else ""

    assert 2 == run(*(uid if word == "1.2" else word for word in arguments)).exit_code


def test_pause_is_shown_and_ends(home: Path) -> None:
    """
    What is paused stands under the jobs that wait for it.
    """
    run("studies", "send", study(), "--to", "out")
    assert 0 == run("pause", "dispatch", "out", "--reason", "it moves").exit_code

    for command in (("jobs", "list"), ("deliveries", "list"), ("queue",)):
        last = run(*command).stdout.splitlines()[-1]
        assert last.startswith("paused ")
        assert ": dispatch to out, by local:" in last
        assert last.endswith(": it moves")
    assert (0, "goes on: dispatch to out\n") == outcome("resume", "dispatch", "out")
    assert 1 == run("resume", "dispatch", "out").exit_code


def test_drain_waits_and_ends(home: Path) -> None:
    """
    With nothing active a drain is over soon; it stays until it is ended.
    """
    assert 1 == run("drain", "--timeout", "0s").exit_code
    drained = run("drain")
    assert (0, True) == (drained.exit_code, drained.stdout.startswith("drained: nothing is active; "))
    assert ": drain, by local:" in run("jobs", "list").stdout
    assert (0, "goes on\n") == outcome("drain", "--end")
    assert (0, "nothing was drained\n") == outcome("drain", "--end")


def test_import_again_and_of_nothing(home: Path, tmp_path: Path) -> None:
    """
    Repeats are counted; where there is no image at all something is wrong.
    """
    again = json.loads(run("import", str(tmp_path / "ct"), "--json").stdout)
    assert (3, 0, 3) == (again["taken"], again["new"], again["repeat"])
    nothing = run("import", str(tmp_path / "book.yaml"))
    assert (1, True) == (nothing.exit_code, nothing.stdout.startswith("took 0 images; refused 0, skipped 1 in "))
    absent = run("import", str(tmp_path / "ct"), "--rule", "nevr")
    assert "talaria: rule 'nevr' is not in revision 2 of the rulebook; there are: never\n" == absent.stderr
