"""Webhooks over TLS: who receives has to prove its name to an authority that is trusted here."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import Job, RetryPolicy, Tenure
from tenure.webhooks import deliveries as delivery_jobs
from tenure.webhooks import request as outbound
from tenure.webhooks.deliveries import WEBHOOK
from tests.support.waiting import wait_until
from tests.support.workers import transitions, wait_until_completed, wait_until_failed
from tests.worker.receiver import delivering, receiving

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """An authority of the test's own; its certificate is the file `path`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "authority.pem"
        self._openssl(
            *("req", "-x509", *KEY, "-keyout", "authority.key", "-out", self.path.name),
            *("-days", "2", "-subj", "/CN=Authority of a test"),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )

    def certify(self, name: str) -> ssl.SSLContext:
        """What a server shows that has a certificate for `name`."""
        extensions = self._folder / "extensions"
        extensions.write_text(f"subjectAltName=DNS:{name}\nauthorityKeyIdentifier=keyid\n")
        self._openssl(
            *("req", "-new", *KEY, "-keyout", "server.key", "-out", "server.csr"),
            *("-subj", f"/CN={name}"),
        )
        self._openssl(
            *("x509", "-req", "-in", "server.csr", "-out", "server.pem", "-days", "2"),
            *("-CA", self.path.name, "-CAkey", "authority.key", "-CAcreateserial"),
            *("-extfile", extensions.name),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "server.pem", self._folder / "server.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=self._folder, check=True, capture_output=True, timeout=30
        )


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    """An authority that this machine does not trust; what is trusted is looked up anew."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by the openssl command, which is not here")
    monkeypatch.setattr(delivery_jobs, "BACKOFF", RetryPolicy(base=0))
    monkeypatch.setattr(delivery_jobs, "MAX_RETRIES", 2)
    outbound._tls.cache_clear()
    yield Authority(tmp_path)
    outbound._tls.cache_clear()


def delivery(app: Tenure, port: int) -> Job:
    """The delivery of one move to `localhost`, where the receiver listens."""
    app.webhooks.create("shop", f"https://localhost:{port}/in", ["enqueued"])
    app.enqueue("mail")
    (job,) = wait_until(
        lambda: (app.core.forward_to_webhooks(), app.find(type=WEBHOOK))[1], "a delivery"
    )
    return job


def test_a_certificate_of_a_trusted_authority_for_the_name_is_accepted(
    app: Tenure, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with receiving(tls=authority.certify("localhost")) as receiver:
        one = delivery(app, receiver.server_port)
        with delivering(app):
            wait_until_completed(app, one)
    ((path, headers, _),) = receiver.requests
    assert (path, headers["host"]) == ("/in", f"localhost:{receiver.server_port}")


@pytest.mark.parametrize(
    ("trusted", "name", "why"),
    [(False, "localhost", "issuer certificate"), (True, "example.com", "not valid for")],
    ids=["of an unknown authority", "for another name"],
)
def test_any_other_certificate_is_refused_before_a_word_is_sent(
    app: Tenure,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
    name: str,
    why: str,
) -> None:
    """And tried again like any failure: it may be mended meanwhile."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with receiving(tls=authority.certify(name)) as receiver:
        one = delivery(app, receiver.server_port)
        with delivering(app):
            error = wait_until_failed(app, one)
        assert receiver.requests == []
    assert "the certificate of localhost is not accepted" in error
    assert why in error
    assert "SSL_CERT_FILE" in error
    assert transitions(app, one).count("failed") == 2
