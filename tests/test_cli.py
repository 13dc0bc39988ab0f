"""The command line: help, errors, exit codes."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from talaria import app
from talaria.cli import main
from talaria.cli.running import _SERVICES


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that is set up."""
    for name in [name for name in os.environ if name.startswith("TALARIA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TALARIA_HOME", str(tmp_path / "home"))
    assert 0 == run("init").exit_code
    return tmp_path / "home"


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=text, catch_exceptions=False)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), list(commands(main)), ids=lambda value: str(value)[:40])
def test_every_command_has_help(path: tuple[str, ...], command: click.Command) -> None:
    """
    Each command says in a sentence what it does, and each of its options too.
    """
    options = [param for param in command.params if isinstance(param, click.Option)]

    assert command.help
    assert [] == [option.name for option in options if not option.help]
    assert 0 == run(*path, "--help").exit_code


def test_services_are_those_of_the_composition_page() -> None:
    """
    The names that `serve` knows without importing the services are theirs.
    """
    assert app.SERVICES == _SERVICES


def test_init_again_keeps_what_is_there(home: Path) -> None:
    """
    A second `init` makes another one-time link and changes nothing else.
    """
    identity = (home / "identity").read_text()
    key = (home / "secret.key").read_text()
    again = run("init")

    assert 0 == again.exit_code
    assert (identity, key) == ((home / "identity").read_text(), (home / "secret.key").read_text())
    assert "/login?link=" in again.output
    assert 0o600 == (home / "secret.key").stat().st_mode & 0o777


def test_apply_export_check(home: Path, tmp_path: Path) -> None:
    """
    What was applied is exported as it was written, comments and all.
    """
    text = "# mine\nrules: {}   # none yet\n"
    (tmp_path / "book.yaml").write_text(text)

    assert 0 == run("check", str(tmp_path / "book.yaml")).exit_code
    assert "revision 2 runs: 0 rules, 0 targets, 0 modules\n" in run("apply", str(tmp_path / "book.yaml")).output
    assert text == run("export").output
    assert "rulebook revision 2" in run("check").output


def test_apply_of_what_others_changed_meanwhile_is_refused(home: Path) -> None:
    """
    Who began with an older revision is told.
    """
    assert 0 == run("apply", "-", "--expect", "1", text="rules: {}\n").exit_code
    late = run("apply", "-", "--expect", "1", text="rules: {}\n")

    assert 1 == late.exit_code
    told = late.output.splitlines()[-1]
    assert told.startswith("talaria: the rulebook was changed meanwhile: you began with 1; revision 2 runs, saved by ")
    assert told.endswith("; look at what it changed, and begin with that one")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jobs", "show", "7"), "talaria: there is no job 7; `talaria jobs list` shows what there is\n"),
        (("studies", "show", "1.2"), "talaria: no study 1.2 is known here; `talaria studies list` shows all\n"),
        (("jobs", "retry", "7"), "talaria: there is no job 7; `talaria jobs list` shows what there is\n"),
        (("target", "check", "x"), "talaria: target 'x' is not in revision 1 of the rulebook; there are: none yet\n"),
        (("token", "revoke", "x"), "talaria: no token is called 'x'; `talaria token list` shows what there is\n"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(home: Path, arguments: tuple[str, ...], said: str) -> None:
    """
    Exit code 1 and one line that says what to do.
    """
    result = run(*arguments)

    assert (1, said) == (result.exit_code, result.output)


@pytest.mark.parametrize(
    "arguments",
    [
        ("send", "x", "--to", "nowhere", "--called", "A"), ("send", "--to", "h:104", "--called", "A"),
        ("echo", "--to", "h:99999", "--called", "A"), ("echo", "--to", "h:104", "--called", "A" * 17),
        ("serve", "nothing"), ("jobs", "show", "x"),
    ],
)  # fmt: skip
def test_unusable_arguments_end_with_2(arguments: tuple[str, ...]) -> None:
    """
    What cannot be understood ends with exit code 2.
    """
    assert 2 == run(*arguments).exit_code


def test_home_that_is_not_set_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every command that needs a home says how to make one.
    """
    monkeypatch.setenv("TALARIA_HOME", str(tmp_path / "none"))
    result = run("studies", "list")

    assert 1 == result.exit_code
    assert "for a new home run `talaria init`" in result.output


def test_empty_lists_say_what_to_do(home: Path) -> None:
    """
    An empty table is no riddle.
    """
    assert "talaria send FOLDER" in run("studies", "list").output
    assert "No job fits.\n" == run("jobs", "list").output
    assert "talaria token create NAME" in run("token", "list").output


def test_lists_as_json(home: Path) -> None:
    """
    Lists are paged the same way as in the API.
    """
    expected: Mapping[str, object] = {"items": [], "next": None}

    assert expected == json.loads(run("studies", "list", "--json").output)
    assert expected == json.loads(run("jobs", "list", "--json").output)


def test_token_is_shown_once(home: Path) -> None:
    """
    The list shows names and dates, never a token.
    """
    secret = run("token", "create", "robot").output.strip()
    listed = run("token", "list").output

    assert len(secret) >= 40
    assert "robot" in listed
    assert secret not in listed
    assert "revoked 1\n" == run("token", "revoke", "robot").output


def test_secret_key_that_others_can_read_is_refused(home: Path) -> None:
    """
    A key is for its owner; the error says how to mend it.
    """
    (home / "secret.key").chmod(0o644)
    result = run("check")

    assert 1 == result.exit_code
    assert f"chmod 600 {home}/secret.key" in result.output


def test_export_of_a_revision_that_is_not_there(home: Path) -> None:
    """
    There is no revision 0.
    """
    assert 1 == run("export", "--revision", "0").exit_code


# -- revisions and tokens --


def test_history_diff_rollback(home: Path) -> None:
    """
    Revisions are listed with who and why, compared, and brought back under a new number.
    """
    assert 0 == run("apply", "-", "--note", "mine", text="# mine\nrules: {}\n").exit_code
    listed = json.loads(run("history", "--json").output)["items"]

    assert [(2, "mine"), (1, "made by init")] == [(line["number"], line["note"]) for line in listed]
    assert "mine" in run("history").output
    assert "+# mine\n" in run("diff", "1", "2").output
    assert "revision 3 runs, with the text of revision 1: 0 rules, 0 targets, 0 modules\n" in (
        run("rollback", "1", "--expect", "2").output
    )
    assert "rollback to 1" == json.loads(run("history", "--json").output)["items"][0]["note"]
    late = run("rollback", "2", "--expect", "2")
    assert (1, True) == (late.exit_code, "you began with 2; revision 3 runs, saved by local:" in late.output)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rollback", "9"), "talaria: there is no revision 9 of the rulebook; the running one is 1\n"),
        (("rollback", "1"), "talaria: revision 1 is the one that runs; name an earlier one\n"),
        (("diff", "1", "9"), "talaria: there is no revision 9 of the rulebook; the running one is 1\n"),
        (
            ("token", "create", "a/b"),
            "talaria: token: 'a/b' is no name; use 1 to 64 letters, digits, blanks and _ . + - ( ) @, without '..'\n",
        ),
    ],
)
def test_revisions_and_tokens_that_are_refused(home: Path, arguments: tuple[str, ...], said: str) -> None:
    """
    Exit code 1 and one line that says why.
    """
    result = run(*arguments)

    assert (1, said) == (result.exit_code, result.output)


def test_what_is_wrong_names_the_file(home: Path, tmp_path: Path) -> None:
    """
    Each problem of a rulebook, and each warning, begins with the file's name; standard input is called so.
    """
    (tmp_path / "bad.yaml").write_text("rules:\n  a: {when: tags.Modality = 5, send: [x]}\n")
    checked = run("check", str(tmp_path / "bad.yaml"))
    plain = [line for line in checked.output.splitlines() if not line.startswith(" ")]

    assert 1 == checked.exit_code
    assert all(line.removeprefix("talaria: ").startswith(f"{tmp_path}/bad.yaml: line 2: ") for line in plain)
    assert len(plain) >= 2
    assert "standard input: line 1: " in run("apply", "-", text="rules: []\n").output
    (tmp_path / "good.yaml").write_text("rules: {}\n")
    assert f"warning: {tmp_path}/good.yaml: " in run("check", str(tmp_path / "good.yaml")).output


def test_token_list_tells_scope_use_and_end(home: Path) -> None:
    """
    What a token is good for, whether it was used, and when it ends.
    """
    run("token", "create", "ci", "--scope", "operate", "--days", "3")
    (line,) = json.loads(run("token", "list", "--json").output)

    assert ("ci", "operate", None, False) == (line["name"], line["scope"], line["seen"], line["expired"])
    assert {"operate", "never"} <= set(run("token", "list").output.split())
    assert 2 == run("token", "create", "x", "--scope", "everything").exit_code
