"""Settings of a server or worker process: one frozen value, read once at the start.

Each setting comes from the first of these that has it: a flag of the command line, the environment
(`TENURE_` and the name in capitals), the configuration file (TOML), the default. An invalid value
is refused with the place that it comes from. Tokens come from the environment or from a file, never
from a flag, because every user of the machine could read it.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tenure.errors import InvalidInput
from tenure.rules.retention import FOREVER_SECONDS, age
from tenure.values import durations
from tenure.values.names import check_queues
from tenure.values.numbers import whole
from tenure.values.redaction import without_password

T = TypeVar("T")

DEFAULT_DATABASE = "sqlite:///tenure.db"
MAX_CONCURRENCY = 1_000
DAY = 86_400.0
KUBERNETES = "tcp://"
"""Start of the TENURE_PORT that Kubernetes sets for a service called `tenure`; it is ignored."""


@functools.lru_cache(100)
def is_loopback(host: str) -> bool:
    """Return whether `host` names this machine's loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _text(value: Any, where: str) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not text.isprintable():
        raise InvalidInput("give one line, without control characters", path=where)
    if not text:
        raise InvalidInput("give a string that is not empty", path=where)
    return text


_dialect = re.compile(r"^(?:(sqlite)|postgres(?:ql)?)(?:\+\w+)?:(?=//)")
_host = r"(?:\[[^\]\s]*\]|[^\s:/?,@\[\]]*)(?::\d{0,5})?"
_is_postgres = re.compile(
    rf"postgresql://(?:[^\s@/]*@)?{_host}(?:,{_host})*(?:/[^\s?]*)?(?:\?\S*)?"
).fullmatch
_broken_escape = re.compile(r"%(?![0-9A-Fa-f]{2})")


def database_url(url: Any, where: str = "") -> str:
    """Return the URL of a database as Tenure writes it, given one of SQLAlchemy or `postgres://`.

    Only the name of a driver is dropped, as in `postgresql+asyncpg://` or `sqlite+aiosqlite:///`.
    Raises InvalidInput for what is no text, such as a path, for other databases, and for a URL that
    SQLite or libpq would refuse at the first use. The second may repeat a part of a password.
    """
    if not isinstance(url, str):
        said = f"give a URL, such as sqlite:///jobs.db, not a value of type {type(url).__name__}"
        raise InvalidInput(said, path=where)
    name: str = _dialect.sub(lambda found: f"{found[1] or 'postgresql'}:", url)
    if is_sqlite(name, where):
        in_memory = name == "sqlite://"  # in SQLAlchemy
        if name != name.rstrip() or not (name.startswith("sqlite:///") or in_memory):
            said = f"{without_password(name)!r} is not the URL of a SQLite file; write sqlite:///jobs.db"
            raise InvalidInput(f"{said} or sqlite:////var/lib/jobs.db", path=where)
    elif not _is_postgres(name) or _broken_escape.search(name):
        raise InvalidInput(
            "not a PostgreSQL URL: write postgresql://user:password@host:5432/database, the port a "
            "number, without spaces, and @ / % in a password as %40 %2F %25",
            path=where,
        )
    return name


def is_sqlite(url: str, where: str = "") -> bool:
    """Whether a URL names an SQLite file and not a PostgreSQL database.

    Raises InvalidInput if it names neither.
    """
    if not url.startswith(("sqlite:", "postgresql:", "postgres:")):
        raise InvalidInput(
            f"{without_password(url)!r} is not a database URL: use sqlite:///jobs.db or "
            "postgresql://host/db",
            path=where,
        )
    return url.startswith("sqlite:")


def _database(value: Any, where: str) -> str:
    return database_url(_text(value, where), where)


def _whole(low: int, high: int) -> Callable[[Any, str], int]:
    def read(value: Any, where: str) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
            value = int(value)
        return whole(value, low, high, where)

    return read


def _yes_or_no(value: Any, where: str) -> bool:
    known = {True: True, False: False, "true": True, "false": False}
    if not isinstance(value, bool | str) or value not in known:
        raise InvalidInput("give true or false", path=where)
    return known[value]


def _age(value: Any, where: str) -> float | None:
    seconds = age(value, where)
    return None if seconds == FOREVER_SECONDS else seconds


def _names(value: Any, where: str) -> tuple[str, ...] | None:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise InvalidInput("give a list of names, separated by commas", path=where)
    return tuple(_text(part, where) for part in value) or None


def _queues(value: Any, where: str) -> tuple[str, ...] | None:
    names = _names(value, where)
    is_empty = isinstance(value, str) and not value.strip()  # as good as left out
    if names is None and not is_empty:
        raise InvalidInput("name at least one queue, or leave it out for every queue", path=where)
    return check_queues(names, where)


_is_host_name = re.compile(r"[a-z0-9_.-]{1,253}").fullmatch


def _hosts(value: Any, where: str) -> tuple[str, ...]:
    """Read names as `http/guard.py` compares them: without port and brackets."""
    names = tuple(name.lower().strip("[]") for name in _names(value, where) or ())
    for name in names:
        try:
            known = _is_host_name(name) or ipaddress.ip_address(name)
        except ValueError:
            known = None
        if not known:
            said = "give names such as jobs.example.com, without scheme, port, path and *"
            raise InvalidInput(said, path=where)
    return names


def _keys(value: Any, where: str) -> tuple[str, ...]:
    return _names(value, where) or ()


def _one_of(*choices: str) -> Callable[[Any, str], str]:
    def read(value: Any, where: str) -> str:
        if value not in choices:
            raise InvalidInput(f"choose one of {', '.join(choices)}", path=where)
        return str(value)

    return read


check_migrate = _one_of("new", "auto", "never")


def check_token(value: Any, where: str) -> str:
    """Return a token without spaces around it; raises InvalidInput, without what was given."""
    token = value.strip() if isinstance(value, str) else ""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidInput(
            "not a token: use visible ASCII without spaces, as `openssl rand -hex 32` makes it",
            path=where,
        )
    return token


def _tokens(value: Any, where: str) -> tuple[str, ...]:
    """Read tokens from the environment, separated by commas so that two are valid at once."""
    parts = value.split(",") if isinstance(value, str) else [value]
    return tuple(check_token(part, where) for part in parts)


def _token_file(value: Any, where: str) -> tuple[str, ...]:
    path = Path(_text(value, where))
    try:
        with path.open(encoding="ascii") as file:
            writable = os.fstat(file.fileno()).st_mode & stat.S_IWOTH
            lines = file.read().splitlines()
    except OSError as error:
        raise InvalidInput(
            f"the token file cannot be read: {error.strerror}", path=where
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInput("the token file is not plain ASCII", path=where) from error
    if writable:
        raise InvalidInput(
            "every user of this machine can write to the token file: chmod 600 it", path=where
        )
    tokens = tuple(check_token(line, where) for line in lines if line.strip())
    if not tokens:
        raise InvalidInput("the token file holds no token: put one on each line", path=where)
    return tokens


def _setting(read: Callable[[Any, str], Any], default: T, *, repr: bool = True) -> T:
    """Declare a setting; `read` checks a value, with the place that it comes from."""
    return field(default=default, repr=repr, metadata={"read": read})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a server or worker process.

    - `database`: URL of the database, which may contain a password. Default: `sqlite:///tenure.db`.
    - `migrate`: `new` makes the schema of a new database only, `auto` also upgrades an older one,
      `never` leaves both to `tenure migrate`. Default: `new`.
    - `host`, `port`: address that the server listens on; port 0 means any free one. Default:
      `127.0.0.1`, 8080.
    - `allowed_hosts`: names that the Host header may have beside those of loopback. Default: none.
    - `tokens`: tokens that allow every call of the HTTP API. Default: none.
    - `token_file`: the file that some of `tokens` were read from. Default: None.
    - `concurrency`: jobs that a worker runs at once, 1 to 1,000. Default: 16.
    - `queues`: queues that a worker takes jobs from; None means every queue. Default: None.
    - `lease_seconds`: time after which the jobs of a silent worker run elsewhere, 1 to 86,400.
      Default: 30.
    - `grace_seconds`: time that running jobs have to finish when the process is asked to stop.
      Default: 30.
    - `keep_completed`, `keep_cancelled`, `keep_failed`: seconds after which settled jobs are
      deleted; None keeps them forever. Default: 7, 7 and 30 days.
    - `redact`: keys of payloads and results whose values are hidden. Default: none.
    - `webhooks_private`: whether webhooks may go to addresses that are not public. Default: false.
    - `log_format`: `text` or `json`. Default: `text`.
    - `log_level`: `debug`, `info`, `warning` or `error`. Default: `info`.
    """

    database: str = _setting(_database, DEFAULT_DATABASE, repr=False)
    migrate: str = _setting(check_migrate, "new")
    host: str = _setting(_text, "127.0.0.1")
    port: int = _setting(_whole(0, 65_535), 8080)
    allowed_hosts: tuple[str, ...] = _setting(_hosts, ())
    tokens: tuple[str, ...] = _setting(_tokens, (), repr=False)
    token_file: str | None = _setting(_token_file, None)
    concurrency: int = _setting(_whole(1, MAX_CONCURRENCY), 16)
    queues: tuple[str, ...] | None = _setting(_queues, None)
    lease_seconds: float = _setting(durations.lease, 30.0)
    grace_seconds: float = _setting(durations.seconds, 30.0)
    keep_completed: float | None = _setting(_age, 7 * DAY)
    keep_cancelled: float | None = _setting(_age, 7 * DAY)
    keep_failed: float | None = _setting(_age, 30 * DAY)
    redact: tuple[str, ...] = _setting(_keys, ())
    webhooks_private: bool = _setting(_yes_or_no, False)
    log_format: str = _setting(_one_of("text", "json"), "text")
    log_level: str = _setting(_one_of("debug", "info", "warning", "error"), "info")

    @property
    def is_exposed(self) -> bool:
        """Whether requests of other machines may arrive, directly or through a proxy."""
        return not all(map(is_loopback, (self.host, *self.allowed_hosts)))

    @property
    def cautions(self) -> list[str]:
        """Warnings to log at the start.

        A token file that other users can read is allowed: secrets of containers are such files.
        """
        if self.token_file is None or not Path(self.token_file).stat().st_mode & stat.S_IROTH:
            return []
        return [f"every user of this machine can read {self.token_file}: chmod 600 it"]

    @property
    def keep(self) -> dict[str, float]:
        """Seconds to keep settled jobs, by status. A missing status is kept forever."""
        ages = {
            "completed": self.keep_completed,
            "cancelled": self.keep_cancelled,
            "failed": self.keep_failed,
        }
        return {status: age for status, age in ages.items() if age is not None}


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    each.name: each.metadata["read"] for each in fields(Settings)
}


def _flag(name: str) -> str:
    """Return the option of commands that has a setting: `--lease` has `lease_seconds`."""
    return f"--{name.removesuffix('_seconds').replace('_', '-')}"


def load(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Read the settings from flags, environment and configuration file.

    - `flags`: values by name of a setting; None means not given. `config` (or TENURE_CONFIG) names
      the configuration file, `token_file` a file of tokens, one on each line.
    - `environ`: the environment.

    Raises InvalidInput, with the flag, variable or file as its path.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if "tokens" in given:
        raise InvalidInput(
            "a token on the command line can be read by every user of the machine: put it in "
            "the environment as TENURE_TOKEN, or in a file named by --token-file",
            path="--token",
        )
    config = given.pop("config", None) or environ.get("TENURE_CONFIG")
    in_file = {name: (value, f"{config}: {name}") for name, value in _read_toml(config).items()}
    in_flags = {name: (value, _flag(name)) for name, value in given.items()}
    for name, (_, where) in {**in_file, **in_flags}.items():
        if name not in _READERS or name == "tokens":
            known = ", ".join(name for name in _READERS if name != "tokens")
            raise InvalidInput(f"no such setting; known: {known}", path=where)
    in_environment = {
        name: (environ[variable], variable)
        for name in _READERS
        for variable in reversed(_variables(name))
        if variable in environ and not environ[variable].startswith(KUBERNETES)
    }
    found = {**in_file, **in_environment, **in_flags}
    values = {name: _READERS[name](value, where) for name, (value, where) in found.items()}
    if "token_file" in values:
        values["tokens"] = (*values.get("tokens", ()), *values["token_file"])
        values["token_file"] = _text(*found["token_file"])
    return Settings(**values)


def default_of(name: str, environ: Mapping[str, str]) -> str:
    """Return a setting for programs that do not give it; raises InvalidInput."""
    known = {each: environ[each] for each in _variables(name) if each in environ}
    return str(getattr(load({}, known), name))


def _variables(name: str) -> tuple[str, ...]:
    """Return the variables that set a setting; the first of them counts."""
    special = {"tokens": ("TENURE_TOKEN",), "port": ("TENURE_PORT", "PORT")}
    return special.get(name, (f"TENURE_{name.upper()}",))


def _read_toml(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", path=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not valid TOML: {error}", path=path) from error
