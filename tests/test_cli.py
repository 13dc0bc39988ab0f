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
    assert "talaria: the rulebook was changed meanwhile: you began with 1, now 2 runs" == late.output.splitlines()[-1]


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
