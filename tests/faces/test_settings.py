"""Settings: which source counts, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tenure import Tenure
from tenure.errors import InvalidInput
from tenure.settings import DAY, Settings, load
from tests.support.http import api_client

TOKEN = "a-token-for-tests"


def test_defaults() -> None:
    settings = load({}, {})
    assert settings == Settings()
    assert settings.database == "sqlite:///tenure.db"
    assert (settings.host, settings.port, settings.concurrency) == ("127.0.0.1", 8080, 16)
    assert settings.keep == {"completed": 7 * DAY, "cancelled": 7 * DAY, "failed": 30 * DAY}
    assert settings.tokens == ()


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "tenure.toml"
    file.write_text('port = 1\nhost = "localhost"\nconcurrency = 2\n')
    environ = {"TENURE_CONFIG": str(file), "TENURE_PORT": "3", "TENURE_CONCURRENCY": "4"}
    settings = load({"concurrency": "5", "port": None}, environ)
    assert (settings.host, settings.port, settings.concurrency) == ("localhost", 3, 5)
    assert load({"config": str(file)}, {}).port == 1


def test_port_alone_counts_less() -> None:
    assert load({}, {"PORT": "5000"}).port == 5000
    assert load({}, {"PORT": "5000", "TENURE_PORT": "0"}).port == 0


def test_every_setting_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "tenure.toml"
    file.write_text(
        """
        database = "postgresql://db/x"
        allowed_hosts = ["Queue.example", "b"]
        queues = ["mail", "slow"]
        lease_seconds = 20
        grace_seconds = "1m"
        keep_completed = "forever"
        keep_failed = "90d"
        log_format = "json"
        log_level = "debug"
        """
    )
    settings = load({"config": file}, {})
    assert settings.database == "postgresql://db/x"
    assert settings.allowed_hosts == ("queue.example", "b")
    assert settings.queues == ("mail", "slow")
    assert (settings.lease_seconds, settings.grace_seconds) == (20.0, 60.0)
    assert settings.keep == {"cancelled": 7 * DAY, "failed": 90 * DAY}
    assert (settings.log_format, settings.log_level) == ("json", "debug")
    environ = {
        "TENURE_QUEUES": "mail, slow",
        "TENURE_LEASE_SECONDS": "20",
        "TENURE_GRACE_SECONDS": "1m",
        "TENURE_KEEP_COMPLETED": "forever",
    }
    again = load({}, environ)
    assert (again.queues, again.lease_seconds) == (settings.queues, settings.lease_seconds)
    assert (again.grace_seconds, again.keep_completed) == (60.0, None)
    assert load({"queues": ("a", "b")}, {}).queues == ("a", "b")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("postgresql+asyncpg://me@db/jobs?schema=x", "postgresql://me@db/jobs?schema=x"),
        ("postgresql+psycopg://db/jobs", "postgresql://db/jobs"),
        ("postgresql+psycopg2:///jobs?host=/run", "postgresql:///jobs?host=/run"),
        ("postgres://db/jobs", "postgresql://db/jobs"),
        ("sqlite+aiosqlite:///jobs.db", "sqlite:///jobs.db"),
        ("sqlite+pysqlite:////var/jobs.db", "sqlite:////var/jobs.db"),
        ("sqlite:///a+b://c.db", "sqlite:///a+b://c.db"),
    ],
)
def test_a_url_of_sqlalchemy_means_the_same_everywhere(
    given: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer's DATABASE_URL was no database URL."""
    assert load({"database": given}, {}).database == meant
    assert load({}, {"TENURE_DATABASE": given}).database == meant
    app = Tenure(given)
    assert app.database == meant
    app.database = given
    assert app.database == meant
    monkeypatch.setenv("TENURE_DATABASE", given)
    assert Tenure().database == meant


@pytest.mark.parametrize(
    "given", ["redis://me:hunter2@h/0", "mysql+pymysql://h/x", "sqliteql:///jobs.db", "jobs.db", ""]
)
def test_an_address_of_another_kind_is_refused_where_it_is_given(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program with a mistake in the address started, and failed at its first use."""
    said = "is not a database URL: use sqlite:///jobs.db or postgresql://host/db"
    app = Tenure(f"sqlite:///{tmp_path / 'jobs.db'}")
    for give in (Tenure, lambda url: setattr(app, "database", url)):
        with pytest.raises(InvalidInput, match=said) as refused:
            give(given)
        assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("TENURE_DATABASE", given)
    with pytest.raises(InvalidInput, match=f"^TENURE_DATABASE: .*{said if given else ''}"):
        Tenure()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [" ", "\n", "\r\n"])
def test_an_address_with_the_end_of_its_line_names_no_file(tmp_path: Path, end: str) -> None:
    """As read from a file of a secret: a file with that name was made."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    with pytest.raises(InvalidInput, match="is not the URL of a SQLite file"):
        Tenure(f"{url}{end}")
    assert load({"database": f"{url}{end}"}, {}).database == url
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sqlite://jobs.db", "write sqlite:///jobs.db"),
        ("sqlite:jobs.db", "write sqlite:///jobs.db"),
        ("postgres:/x", "not a PostgreSQL URL"),
        ("postgresql://me:hunter2@h:port/x", "not a PostgreSQL URL"),
        ("postgresql://me:hunter2/y@h/x", "not a PostgreSQL URL"),
        ("postgresql://me:y@hunter2@h/x", "not a PostgreSQL URL"),
        ("postgresql://me:hunter2%@h/x", "not a PostgreSQL URL"),
        ("postgresql://me:hunter2@h/my jobs", "not a PostgreSQL URL"),
        ("postgresql://me:hunter2@h:5432,i:two/x", "not a PostgreSQL URL"),
    ],
)
def test_a_malformed_address_is_refused_where_it_is_given(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed at the first use, some as a database that did not answer."""
    app = Tenure(f"sqlite:///{tmp_path / 'jobs.db'}")
    file = tmp_path / "tenure.toml"
    file.write_text(f'database = "{given}"\n')
    for give in (
        Tenure,
        lambda url: setattr(app, "database", url),
        lambda url: load({"database": url}, {}),
        lambda _: load({}, {"TENURE_CONFIG": str(file)}),
    ):
        with pytest.raises(InvalidInput, match=said) as refused:
            give(given)
        assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("TENURE_DATABASE", given)
    with pytest.raises(InvalidInput, match=f"^TENURE_DATABASE: .*{said}"):
        Tenure()


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://",
        "postgresql:///jobs?host=%2Frun",
        "postgresql://me:a%40b@[::1]:5432/jobs?sslmode=require",
        "postgresql://me:a:b@h:5432,i,j:5433/jobs?options=-c%20x=y",
        "postgresql://%2Frun/jobs",
        "postgresql://h?dbname=jobs",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///jo bs%.db",
    ],
)
def test_an_address_that_libpq_or_sqlite_understands_is_kept(given: str) -> None:
    assert Tenure(given).database == given


def test_tokens_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}-1\n\n  {TOKEN}-2  \n")
    environ = {"TENURE_TOKEN": f"{TOKEN}-3,{TOKEN}-4", "TENURE_TOKEN_FILE": str(file)}
    settings = load({}, environ)
    assert settings.tokens == (f"{TOKEN}-3", f"{TOKEN}-4", f"{TOKEN}-1", f"{TOKEN}-2")
    assert load({"token_file": str(file)}, {}).tokens == (f"{TOKEN}-1", f"{TOKEN}-2")


def test_secrets_are_not_in_the_repr() -> None:
    settings = Settings(tokens=(TOKEN,), database="postgresql://u:hunter2@h/d")
    assert TOKEN not in repr(settings)
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("flags", "environ", "where"),
    [
        ({}, {"TENURE_PORT": "http"}, "TENURE_PORT"),
        ({}, {"PORT": "-1"}, "PORT"),
        ({"port": "65536"}, {}, "--port"),
        ({"port": ""}, {}, "--port"),
        ({"concurrency": 0}, {}, "--concurrency"),
        ({"concurrency": True}, {}, "--concurrency"),
        ({"lease_seconds": "0.5s"}, {}, "--lease"),
        ({"lease_seconds": "1d1s"}, {}, "--lease"),
        ({"grace_seconds": "soon"}, {}, "--grace"),
        ({"log_format": "xml"}, {}, "--log-format"),
        ({"colour": "red"}, {}, "--colour"),
        ({"tokens": TOKEN}, {}, "--token"),
        ({}, {"TENURE_TOKEN": ""}, "TENURE_TOKEN"),
        ({}, {"TENURE_TOKEN": " "}, "TENURE_TOKEN"),
        ({}, {"TENURE_TOKEN": f"{TOKEN},"}, "TENURE_TOKEN"),
        ({}, {"TENURE_TOKEN": "pass word"}, "TENURE_TOKEN"),
        ({}, {"TENURE_TOKEN": "pässword"}, "TENURE_TOKEN"),
        ({}, {"TENURE_DATABASE": " "}, "TENURE_DATABASE"),
        ({}, {"TENURE_KEEP_FAILED": "long"}, "TENURE_KEEP_FAILED"),
        *(
            ({}, {"TENURE_ALLOWED_HOSTS": name}, "TENURE_ALLOWED_HOSTS")
            for name in ("https://a.example", "a.example:8080", "*.a.example", "a.example/b", "1:2")
        ),
        ({"token_file": "/does/not/exist"}, {}, "--token-file"),
        ({"config": "/does/not/exist.toml"}, {}, "/does/not/exist.toml"),
    ],
)
def test_a_refusal_says_where(flags: dict[str, Any], environ: dict[str, str], where: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(flags, environ)
    assert refused.value.path == where


@pytest.mark.parametrize("given", ["[2001:db8::7]", "2001:DB8::7", "A.example", "192.0.2.7", "a_b"])
def test_a_name_of_a_host_is_served(app: Tenure, given: str) -> None:
    """An address of IPv6 in brackets was never found in the header."""
    settings = load({}, {"TENURE_ALLOWED_HOSTS": given, "TENURE_TOKEN": 2 * TOKEN})
    name = f"[{given.strip('[]')}]" if ":" in given else given
    with api_client(app, settings) as api:
        assert api.get("/health", headers={"Host": f"{name}:8080"}).status_code == 200


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("ports = 1", "ports"),
        ("port = '8080x'", "port"),
        ("port = 80.5", "port"),
        ("tokens = ['secret-token-in-file']", "tokens"),
        ("queues = 3", "queues"),
        ("queues = []", "queues"),
        ("queues = ['a', '']", "queues"),
        ("queues = ','", "queues"),
        ("queues = ['*']", "queues"),
        ("[server]\nport = 1", "server"),
        ("port = ", ""),
    ],
)
def test_a_refusal_in_the_file_names_file_and_key(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "tenure.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        load({"config": str(file)}, {})
    assert refused.value.path == f"{file}: {where}" if where else str(file)
    assert "secret-token-in-file" not in str(refused.value)


@pytest.mark.parametrize("given", [",", " , ", "*", "mail*", "a b"])
def test_queues_that_cannot_be_are_refused_where_they_are_given(given: str) -> None:
    """`,`, which two empty parts of a template make, meant every queue.

    Of a bad name a worker said that it runs jobs, and then that `queues` is wrong.
    """
    with pytest.raises(InvalidInput, match=r"^TENURE_QUEUES: "):
        load({}, {"TENURE_QUEUES": given})
    assert load({}, {"TENURE_QUEUES": " "}).queues is None
    assert load({}, {"TENURE_QUEUES": "a,,b,"}).queues == ("a", "b")


@pytest.mark.parametrize("text", ["", "\n \n", "two words\n", "é\n"])
def test_a_token_file_without_good_tokens_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(InvalidInput, match="token"):
        load({"token_file": str(file)}, {})
