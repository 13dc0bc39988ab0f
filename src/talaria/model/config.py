"""The machine that Talaria runs on: ports, paths, limits, secrets; from one file and the environment, read once."""

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from talaria.model.errors import ConfigError
from talaria.model.quantity import Size, Span
from talaria.model.wording import in_words

FILE_NAME = "talaria.toml"

#: Of the configuration file, and of a file with a secret.
SIZE_LIMIT_BYTES = 1 << 20

#: Keys whose value is shown to nobody; each can also be given as a file, by `TALARIA_<KEY>_FILE`.
SECRET_KEYS = frozenset({"database_url", "admin_token"})

#: Keys whose value is a path; a relative one is taken from the home.
_PATH_KEYS = (
    "spool", "tls_certificate", "tls_key", "tls_ca", "web_tls_certificate", "web_tls_key", "secret_key_file",
)  # fmt: skip

Port = Annotated[int, Field(ge=1, le=65535)]


class Config(BaseModel):
    """
    What this machine is told once, at the start of each process.

    Each field is a key of `talaria.toml` and, as `TALARIA_<KEY>`, a variable of the environment, which wins. A
    relative path is taken from the home, `~/` from the user's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    home: Path
    """Where Talaria keeps what is its own. Not given: /var/lib/talaria for root, else `$XDG_DATA_HOME/talaria`, which
    is ~/.local/share/talaria where nothing else is said."""
    database_url: SecretStr
    """The ledger: `sqlite:///PATH` or `postgresql://...`; not given: ledger.db in the home."""
    spool: Path
    """Where the images lie; not given: spool in the home."""
    dicom_host: str = "0.0.0.0"  # noqa: S104 - a receiver that nobody can reach receives nothing
    """The address on which DICOM is answered; all of them."""
    dicom_port: Port = 11112
    """The port on which DICOM is answered."""
    dicom_tls_port: Port | None = None
    """The port on which DICOM is answered over TLS; not answered where it is not given."""
    tls_certificate: Path | None = None
    """Our certificate for DICOM over TLS, PEM."""
    tls_key: Path | None = None
    """Its key, PEM."""
    tls_ca: Path | None = None
    """Certificates by which those of senders are checked, PEM."""
    web_host: str = "127.0.0.1"
    """The address on which the pages are served."""
    web_port: Port = 8000
    """The port on which the pages are served."""
    web_tls_certificate: Path | None = None
    """The certificate of the pages, PEM."""
    web_tls_key: Path | None = None
    """Its key, PEM."""
    allow_plain_http: bool = False
    """Whether the pages may be served without TLS on an address that others can reach."""
    metrics_open: bool = False
    """Whether /metrics, which names no patient, is told without a token."""
    receiver_processes: Annotated[int, Field(ge=1, le=64)] = 1
    """How many processes receive, on one port."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    log_format: Literal["console", "json"] = "console"
    """How a line of the log looks."""
    secret_key_file: Path
    """Encrypts stored secrets; made by `talaria init`; not given: secret.key in the home."""
    admin_token: SecretStr | None = None
    """Becomes an administrator's API token at `init` or the first `serve`."""
    max_associations: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Accepted associations at a time, in each receiver process."""
    max_associations_per_address: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Of these from one address."""
    max_pending_connections: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Connections that have not asked for an association yet; beyond that the oldest is closed."""
    artim_timeout: Span = Field(default="10s", validate_default=True)
    """How long such a connection may take (ARTIM, PS3.8 9.1.5)."""
    idle_timeout: Span = Field(default="60s", validate_default=True)
    """How long an association may be silent."""
    max_instance_size: Size = Field(default="8g", validate_default=True)
    """A larger instance is refused."""
    disk_reserve: Size = Field(default="1g", validate_default=True)
    """With less than this free, nothing more is accepted (A700)."""
    disk_clean_percent: Annotated[int, Field(ge=1, le=100)] = 90
    """With more than this of the spool's disk in use, finished cases go before their time, the oldest first."""

    @classmethod
    def load(cls, path: Path | None, environ: Mapping[str, str]) -> Self:
        """
        Read the file and the environment.

        Args:
            path: The file of `--config`; else that of `TALARIA_CONFIG`; else talaria.toml in the home, if there is one.
            environ: The environment.

        Raises:
            ConfigError: Says for each thing that is wrong which file and line or which variable it is, and what to do.
        """
        home = _from_user(environ.get("TALARIA_HOME") or str(default_home(environ)), environ).absolute()
        told = environ.get("TALARIA_CONFIG")
        named = path or (_from_user(told, environ) if told else None)
        file = _File.read(named or home / FILE_NAME, must_exist=named is not None)
        problems = [*file.problems(), *_environment_problems(environ)]
        if problems:
            raise ConfigError("\n".join(problems))
        values = {**file.values, **_from_environment(environ)}
        values["home"] = home if environ.get("TALARIA_HOME") else _from_user(str(values.get("home", home)), environ)
        try:
            return cls.model_validate(_with_defaults(values, environ))
        except ValidationError as error:
            details = error.errors(include_input=False, include_url=False)
            raise ConfigError("\n".join(_told(file.place, detail, value=None) for detail in details)) from None

    @field_validator("database_url")
    @classmethod
    def _is_a_ledger(cls, url: SecretStr) -> SecretStr:
        if not re.match(r"sqlite:///.|postgresql://.", url.get_secret_value()):
            raise ValueError("should begin with sqlite:/// or postgresql://")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key in ("dicom_tls_port", "tls_certificate", "tls_key", "tls_ca"):
            if getattr(self, key):
                raise ValueError(f"{key}: DICOM over TLS is not available in this version; leave it out")
        if bool(self.web_tls_certificate) != bool(self.web_tls_key):
            raise ValueError("web_tls_certificate and web_tls_key belong together; give both or none")
        if self.spool == self.home or self.spool in self.home.parents:
            raise ValueError(f"spool: {self.spool} holds the home; give it a folder of its own")
        if not (self.allow_plain_http or self.web_tls_key or _is_loopback(self.web_host)):
            raise ValueError(
                f"web_host: {self.web_host} can be reached by others, without TLS; "
                "give web_tls_certificate and web_tls_key, or set allow_plain_http"
            )
        return self


def default_home(environ: Mapping[str, str]) -> Path:
    """Where Talaria lives when nothing is said: the system's folder for root, else the user's folder for data."""
    if os.geteuid() == 0:
        return Path("/var/lib/talaria")
    return Path(environ.get("XDG_DATA_HOME") or _from_user("~/.local/share", environ)) / "talaria"


def read_secret(path: Path) -> SecretStr:
    """
    A secret from its file, without the line end that editors leave.

    Raises:
        ConfigError: It is missing, empty, no text, or others can read it.
    """
    data = _read(path)
    refuse_if_others_read(path)
    try:
        text = data.decode().strip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text; it should hold a secret") from None
    if not text:
        raise ConfigError(f"{path}: is empty; it should hold a secret")
    return SecretStr(text)


def refuse_if_others_read(path: Path) -> None:
    """
    See that a file with secrets is for its owner, and at most a group.

    Raises:
        ConfigError: Others can read or change it.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(f"{path}: holds a secret and can be read by others (mode {mode:04o}); run: chmod 600 {path}")


class _File:
    """A configuration file, read."""

    def __init__(self, path: Path, text: str, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values
        self._lines = text.splitlines()

    @classmethod
    def read(cls, path: Path, *, must_exist: bool) -> Self:
        """The file; an empty one where it is missing and may be."""
        if not must_exist and not _is_there(path):
            return cls(path, "", {})
        try:
            text = _read(path).decode("utf-8-sig")
            values = tomllib.loads(text)
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not UTF-8; save it as UTF-8") from None
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None
        if _holds_secret(values):
            refuse_if_others_read(path)
        return cls(path, text, values)

    def place(self, key: str) -> str:
        """Where a key stands in the file, for a message."""
        pattern = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=|\s*\[+\s*[\"']?{re.escape(key)}\b")
        lines = (number for number, line in enumerate(self._lines, 1) if pattern.match(line))
        number = next(lines, None)
        where = f"{self.path}, line {number}" if number else str(self.path)
        return f"{where}: {key}" if key else where

    def problems(self) -> list[str]:
        """Values of the wrong type, strictly: a port is a number, not a text."""
        return [
            _told(self.place, detail, value=self.values.get(str(detail["loc"][0])) if detail["loc"] else None)
            for detail in _strictly(self.values)
        ]


def _strictly(values: Mapping[str, Any]) -> Sequence[ErrorDetails]:
    """What is wrong with single values; not what is missing, nor how they go together."""
    try:
        Config.model_validate_json(json.dumps({**_EXAMPLE, **values}, default=str), strict=True)
    except ValidationError as error:
        return [detail for detail in error.errors(include_input=False, include_url=False) if detail["loc"]]
    return []


#: Stands for what is worked out later.
_EXAMPLE = {"home": "/h", "spool": "/s", "database_url": "sqlite:///x", "secret_key_file": "/k"}


def _told(place: Any, detail: ErrorDetails, *, value: object) -> str:
    key = str(detail["loc"][0]) if detail["loc"] else ""
    return f"{place(key)}: {in_words(detail, value=value, keys=tuple(Config.model_fields))}"


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment says, as text; an empty variable says nothing."""
    given = {key: environ.get(_variable(key), "") for key in Config.model_fields}
    values: dict[str, Any] = {key: value for key, value in given.items() if value}
    for key in sorted(SECRET_KEYS):
        file = environ.get(f"{_variable(key)}_FILE")
        if file and key in values:
            raise ConfigError(f"{_variable(key)} and {_variable(key)}_FILE are both given; leave one out")
        if file:
            values[key] = read_secret(Path(file)).get_secret_value()
    return values


def _environment_problems(environ: Mapping[str, str]) -> list[str]:
    values = _from_environment(environ)
    try:
        Config.model_validate({**_EXAMPLE, **values})
    except ValidationError as error:
        details = [detail for detail in error.errors(include_input=False, include_url=False) if detail["loc"]]
        return [_told(_variable, detail, value=_number_or_text(values, detail)) for detail in details]
    return []


def _number_or_text(values: Mapping[str, Any], detail: ErrorDetails) -> object:
    """The value as it was meant, for a message: a variable is always text."""
    text = str(values.get(str(detail["loc"][0]), ""))
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) else text


def _variable(key: str) -> str:
    return f"TALARIA_{key.upper()}"


def _with_defaults(values: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """With the paths that follow from the home, all of them absolute."""
    home = Path(values["home"]).absolute()
    usual = {
        "database_url": f"sqlite:///{home}/ledger.db",
        "spool": "spool",
        "secret_key_file": "secret.key",
    }
    whole = {**usual, **values, "home": home}
    for key in _PATH_KEYS:
        if whole.get(key):
            whole[key] = home / _from_user(str(whole[key]), environ)
    return whole


def _from_user(path: str, environ: Mapping[str, str]) -> Path:
    """With `~/` as the user's own folder."""
    if path.startswith("~/") and environ.get("HOME"):
        return Path(environ["HOME"]) / path[2:]
    return Path(path)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _holds_secret(values: Mapping[str, Any]) -> bool:
    """Whether a file says something that others should not read; where a SQLite file lies is none."""
    given = {key: str(values[key]) for key in SECRET_KEYS if key in values}
    return any(not value.startswith("sqlite:") for value in given.values())


def _is_there(path: Path) -> bool:
    """Whether anything is at a path; also where it cannot be told, so that reading it says why."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist; make it, or name another") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the file in it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > SIZE_LIMIT_BYTES:
        raise ConfigError(f"{path}: is larger than {SIZE_LIMIT_BYTES} bytes; this is no such file")
    return data
