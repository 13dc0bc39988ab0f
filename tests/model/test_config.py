"""The machine's configuration: one file and the environment."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.config import SIZE_LIMIT_BYTES, Config, default_home, read_secret
from talaria.model.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes talaria.toml, readable by its owner alone."""

    def written(text: str) -> Path:
        path = tmp_path / "talaria.toml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return written


def refusal(path: Path | None, **environ: str) -> str:
    """Why a configuration is refused."""
    with pytest.raises(ConfigError) as raised:
        Config.load(path, environ)
    return str(raised.value)


def refused_with(path: Path) -> str | None:
    """Why a configuration is refused; None where it can be used."""
    try:
        Config.load(path, {"TALARIA_HOME": "/srv/t"})
    except ConfigError as error:
        return str(error)
    return None


def test_defaults(tmp_path: Path) -> None:
    """
    With a home and nothing else, everything else follows from it.
    """
    config = Config.load(None, {"TALARIA_HOME": str(tmp_path)})

    assert (tmp_path, tmp_path / "spool", tmp_path / "secret.key") == (
        config.home,
        config.spool,
        config.secret_key_file,
    )
    assert f"sqlite:///{tmp_path}/ledger.db" == config.database_url.get_secret_value()
    assert ("0.0.0.0", 11112, None) == (config.dicom_host, config.dicom_port, config.dicom_tls_port)
    assert ("127.0.0.1", 8000) == (config.web_host, config.web_port)
    assert (1, "info", "console") == (config.receiver_processes, config.log_level, config.log_format)


def test_environment_wins_over_file(write: Write) -> None:
    """
    A variable wins over the file, and the file over what is usual.
    """
    path = write('dicom_port = 1104\nweb_port = 8001\nspool = "images"\n')
    config = Config.load(path, {"TALARIA_HOME": "/srv/t", "TALARIA_DICOM_PORT": "2104", "TALARIA_METRICS_OPEN": "true"})

    assert (2104, 8001, True) == (config.dicom_port, config.web_port, config.metrics_open)
    assert Path("/srv/t/images") == config.spool


def test_file_in_the_home_is_found(write: Write) -> None:
    """
    The file is looked for in the home; one that TALARIA_CONFIG names comes before it, and one that is given first.
    """
    path = write("web_port = 8001\n")
    other, third = path.with_name("other.toml"), path.with_name("third.toml")
    other.write_text("web_port = 8002\n")
    third.write_text("web_port = 8003\n")
    environ = {"TALARIA_HOME": str(path.parent)}

    assert 8001 == Config.load(None, environ).web_port
    assert 8002 == Config.load(None, {**environ, "TALARIA_CONFIG": str(other)}).web_port
    assert 8003 == Config.load(third, {**environ, "TALARIA_CONFIG": str(other)}).web_port


def test_home_of_the_file(write: Write) -> None:
    """
    A file that is named can say where the home is.
    """
    config = Config.load(write('home = "/srv/talaria"\n'), {})

    assert Path("/srv/talaria/spool") == config.spool


def test_tilde_is_the_users_folder(write: Write) -> None:
    """
    `~/` is the folder of the user in the environment.
    """
    config = Config.load(write('home = "~/t"\nspool = "~/s"\n'), {"HOME": "/home/ada"})

    assert (Path("/home/ada/t"), Path("/home/ada/s")) == (config.home, config.spool)


def test_usual_home() -> None:
    """
    Without a word about it the home is where systems keep such things.
    """
    assert default_home({"HOME": "/home/ada"}) in {
        Path("/var/lib/talaria"),
        Path("/home/ada/.local/share/talaria"),
    }


def test_every_problem_of_a_file_is_told(write: Write) -> None:
    """
    A file is refused with everything that is wrong with it, each with its line.
    """
    path = write(
        "# ports\n"
        "dicom_prt = 104\n"
        'dicom_port = "104"\n'
        "web_port = 70000\n"
        'log_level = "inf"\n'
        'artim_timeout = "10"\n'
        "disk_clean_percent = 101\n"
        "metrics_open = 1\n"
        "[web]\n"
        "port = 1\n"
    )

    assert sorted(
        f"{path}, line {line}"
        for line in (
            "2: dicom_prt: unknown key; did you mean 'dicom_port'?",
            "3: dicom_port: should be a whole number, is text",
            "4: web_port: should be at most 65535, is 70000",
            "5: log_level: should be one of: debug, info, warning, error; is 'inf'; did you mean 'info'?",
            "6: artim_timeout: '10' is not a duration; write 90s, 15m, 2h, 3d or never",
            "7: disk_clean_percent: should be at most 100, is 101",
            "8: metrics_open: should be true or false, is a number",
            "9: web: unknown key",
        )
    ) == sorted(refusal(path).splitlines())


def test_problem_of_a_variable(tmp_path: Path) -> None:
    """
    A variable that is wrong is named as such.
    """
    assert "TALARIA_DICOM_PORT: should be at least 1, is 0\nTALARIA_WEB_PORT: should be a whole number, is text" == (
        refusal(None, TALARIA_HOME=str(tmp_path), TALARIA_DICOM_PORT="0", TALARIA_WEB_PORT="x")
    )


def test_unknown_variables_mean_nothing(tmp_path: Path) -> None:
    """
    Variables that are no key, and empty ones, are passed over.
    """
    environ = {"TALARIA_HOME": str(tmp_path), "TALARIA_SOMETHING": "1", "TALARIA_WEB_PORT": ""}

    assert 8000 == Config.load(None, environ).web_port


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = \n", "{path}: cannot be read as TOML: Invalid value (at line 1, column 5)"),
        ("a = 1\na = 2\n", "{path}: cannot be read as TOML: Cannot overwrite a value (at line 2, column 6)"),
        ("x" * (SIZE_LIMIT_BYTES + 1), f"{{path}}: is larger than {SIZE_LIMIT_BYTES} bytes; this is no such file"),
        ("dicom_tls_port = 2762", "{path}: dicom_tls_port: DICOM over TLS is not available in this version; "
                                  "leave it out"),
        ('web_tls_key = "k"', "{path}: web_tls_certificate and web_tls_key belong together; give both or none"),
        ('spool = "."', "{path}: spool: {home} holds the home; give it a folder of its own"),
        ('web_host = "0.0.0.0"', "{path}: web_host: 0.0.0.0 can be reached by others, without TLS; "
                                 "give web_tls_certificate and web_tls_key, or set allow_plain_http"),
        ('database_url = "mysql://u:secret@h/d"', "{path}, line 1: database_url: should begin with sqlite:/// or "
                                                  "postgresql://"),
    ],
)  # fmt: skip
def test_file_that_is_refused(write: Write, text: str, message: str) -> None:
    """
    What cannot be read, or does not go together, is refused with what to do, and with no secret in it.
    """
    path = write(text)

    assert message.format(path=path, home=path.parent) == refusal(path, TALARIA_HOME=str(path.parent))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """
    A file that was named must be there, and be a file.
    """
    missing = tmp_path / "no.toml"

    assert f"{missing}: does not exist; make it, or name another" == refusal(missing)
    assert f"{tmp_path}: is a folder; name the file in it" == refusal(tmp_path)
    assert f"{missing}: does not exist; make it, or name another" == refusal(None, TALARIA_CONFIG=str(missing))


def test_file_in_another_encoding(tmp_path: Path) -> None:
    """
    A file that is not UTF-8 is refused by that name; a byte order mark is fine.
    """
    path = tmp_path / "talaria.toml"
    path.write_bytes("web_port = 1".encode("utf-16"))

    assert f"{path}: is not UTF-8; save it as UTF-8" == refusal(path)

    path.write_bytes(b"\xef\xbb\xbfweb_port = 1")

    assert 1 == Config.load(path, {"TALARIA_HOME": "/h"}).web_port


def test_secret_from_a_file(tmp_path: Path) -> None:
    """
    A secret can come from a file, without its line end, and is shown nowhere.
    """
    secret = tmp_path / "url"
    secret.write_text("postgresql://u:s3cret@h/d\n")
    secret.chmod(0o400)
    config = Config.load(None, {"TALARIA_HOME": str(tmp_path), "TALARIA_DATABASE_URL_FILE": str(secret)})

    assert "postgresql://u:s3cret@h/d" == config.database_url.get_secret_value()
    assert "s3cret" not in repr(config)
    assert "s3cret" not in config.model_dump_json()


def test_administrators_token(tmp_path: Path) -> None:
    """
    TALARIA_ADMIN_TOKEN_FILE names the file with the administrator's token.
    """
    token = tmp_path / "token"
    token.write_text("t0ken")
    token.chmod(0o600)
    config = Config.load(None, {"TALARIA_HOME": str(tmp_path), "TALARIA_ADMIN_TOKEN_FILE": str(token)})

    assert config.admin_token
    assert "t0ken" == config.admin_token.get_secret_value()


def test_secret_given_twice(tmp_path: Path) -> None:
    """
    A secret that is given as a value and as a file is refused.
    """
    assert "TALARIA_ADMIN_TOKEN and TALARIA_ADMIN_TOKEN_FILE are both given; leave one out" == refusal(
        None, TALARIA_HOME=str(tmp_path), TALARIA_ADMIN_TOKEN="a", TALARIA_ADMIN_TOKEN_FILE="/b"
    )


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o602])
def test_secret_that_others_can_read(tmp_path: Path, mode: int) -> None:
    """
    A file with a secret that others can read or change is refused, with the command that mends it.
    """
    secret = tmp_path / "token"
    secret.write_text("t0ken")
    secret.chmod(mode)

    with pytest.raises(ConfigError) as raised:
        read_secret(secret)

    assert f"{secret}: holds a secret and can be read by others (mode {mode:04o}); run: chmod 600 {secret}" == str(
        raised.value
    )


def test_file_with_a_secret_that_others_can_read(write: Write) -> None:
    """
    A configuration that holds a secret is refused when others can read it; one without may be read by all.
    """
    path = write('database_url = "postgresql://u:secret@h/d"\n')
    path.chmod(0o644)

    assert f"{path}: holds a secret and can be read by others (mode 0644); run: chmod 600 {path}" == refusal(path)

    path.write_text('database_url = "sqlite:////srv/ledger.db"\n')

    assert "sqlite:////srv/ledger.db" == Config.load(path, {}).database_url.get_secret_value()


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\n", "is empty; it should hold a secret"), (b"\xff", "is no text; it should hold a secret")],
)
def test_file_without_a_secret(tmp_path: Path, data: bytes, message: str) -> None:
    """
    An empty file, or one that is no text, is no secret.
    """
    secret = tmp_path / "token"
    secret.write_bytes(data)
    secret.chmod(0o600)

    with pytest.raises(ConfigError) as raised:
        read_secret(secret)

    assert f"{secret}: {message}" == str(raised.value)


WRONG = ("[]", "{}", "-1", "1.5", "true", '"?"', "1979-05-27", "nan", "99999999999999999999", '""')


@pytest.mark.parametrize("key", sorted(Config.model_fields))
def test_wrong_type_for_each_key(write: Write, key: str) -> None:
    """
    Every key refuses values of the wrong kind with its line, and falls over none.
    """
    refusals = [refused_with(write(f"{key} = {value}\n")) for value in WRONG]
    told = [refusal for refusal in refusals if refusal is not None]

    assert len(told) >= 5
    assert all(str(write("").parent) in refusal for refusal in told)


@given(st.text())
def test_anything_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """
    Whatever a file says, it is read or refused.
    """
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    assert str(path) in (refused_with(path) or str(path))


def test_whole_example_cut_anywhere(tmp_path: Path) -> None:
    """
    A file that was cut off is read or refused.
    """
    text = 'dicom_port = 104\nspool = "/s"\nadmin_token = "x"\n[limits]\na = """\n'
    path = tmp_path / "talaria.toml"
    path.touch(mode=0o600)
    for end in range(len(text)):
        path.write_text(text[:end])

        assert str(path) in (refused_with(path) or str(path))
