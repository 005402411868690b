"""One signed request to the receiver of a webhook, within bounds. It knows nothing about jobs.

It is signed as Standard Webhooks says
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
A URL must not reach what only this machine can reach: the name is resolved once, each of its
addresses must be public, and the connection goes to an address that was checked. Redirects are not
followed. Of the answer, only the status and `Retry-After` are read.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from tenure.errors import InvalidInput

REQUEST_SECONDS = 10.0
"""Limit for resolving, connecting, TLS, sending and reading the head of the answer together."""
MAX_READ = 64 * 1024
"""Bytes of an answer that are read."""
MAX_URL = 2_000
"""Characters of a URL."""
BEGINNING = "whsec_"
"""The beginning of a secret, as in Standard Webhooks; 32 random bytes in base64 follow."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that lead to an IPv4 one, their last 32 bits (RFC 6052)."""
PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        "168.63.129.16/32",  # each virtual machine of Azure reaches its host by this one
        *("2001::/23", "2001:db8::/32", "3fff::/20"),
    )
)
"""The networks in IANA's registries of special addresses. The list is here, because `is_global`
depends on the patch version of Python."""

_retry_after = re.compile(rb"\r\nretry-after:[ \t]*([!-~ ]{1,40})\r\n", re.IGNORECASE).search
_status = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n").match


class ReceiverAnswer(NamedTuple):
    """What a receiver answered: a status, and its `Retry-After`, or nothing."""

    status: int
    retry_after: str


class NotSent(Exception):
    """The request got no answer or was not allowed; the message says why."""


class TimedOut(NotSent):
    """The receiver did not answer in time."""


def new_secret() -> str:
    """Return a random secret of 256 bits."""
    return BEGINNING + base64.b64encode(secrets.token_bytes(32)).decode()


def key_of(secret: str) -> bytes:
    """Return the bytes that sign; raises ValueError for anything but a secret."""
    return base64.b64decode(secret.removeprefix(BEGINNING), validate=True)


def signature(key: bytes, id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature`: version 1, HMAC-SHA256 of id, time and body."""
    signed = b"%b.%d.%b" % (id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def check_url(url: object, path: str) -> str:
    """Return `url` if requests can be sent there; raises InvalidInput.

    Each delivery checks its address, because a name can resolve to another one every day.
    """
    text = url if isinstance(url, str) and len(url) <= MAX_URL else ""
    fault = InvalidInput(
        "give a URL such as https://example.com/hook: http or https, visible ASCII, at most"
        f" {MAX_URL} characters, without user, password and fragment",
        path=path,
    )
    if not text.isascii() or not text.isprintable() or set(text) & set(' "<>\\^`{|}#'):
        raise fault
    try:
        parts = urlsplit(text)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        raise fault from None
    if not known or "@" in parts.netloc:
        raise fault
    return text


async def post(
    url: str, headers: Mapping[str, str], body: bytes, *, private: bool
) -> ReceiverAnswer:
    """Send a JSON body; return what the receiver answered. Raises NotSent.

    With `private`, also send to addresses that are not public.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await _exchange(parts, _request(parts, headers, body), private=private)
    except TimeoutError as error:
        raise TimedOut(f"no answer within {REQUEST_SECONDS:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise NotSent(
            f"the certificate of {parts.hostname} is not accepted: {error.verify_message}; give it "
            "one for this name, of an authority that the delivering machine trusts (add a private "
            "authority to the machine's, or name its file in SSL_CERT_FILE)"
        ) from error
    except OSError as error:
        raise NotSent(f"no connection: {error}") from error


def _request(parts: SplitResult, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the request. The URL was checked when it was stored: it has no line breaks."""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "User-Agent: tenure",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def _exchange(parts: SplitResult, request: bytes, *, private: bool) -> ReceiverAnswer:
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        addresses = await _addresses(host, port)
    except (socket.gaierror, UnicodeError) as error:
        raise NotSent(f"the name {host} does not resolve: {error}") from error
    if not private and (refused := [each for each in addresses if not is_public(each)]):
        where = host if host == refused[0] else f"{host} leads to {refused[0]}, which"
        raise NotSent(
            f"{where} is not a public address; where that is meant, "
            "set TENURE_WEBHOOKS_PRIVATE=true where deliveries run"
        )
    tls = {"ssl": _tls(), "server_hostname": host} if secure else {}
    reader, writer = await _connect(addresses, port, tls)
    try:
        writer.write(request)
        await writer.drain()
        return await _answer(reader)
    finally:
        writer.close()


async def _addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a name, each once, in the order to try them.

    A lookup cannot be interrupted, and can last much longer than the request. So it has a thread
    for itself: an executor would lack it for others, and wait for it at the end of the process.
    """
    found: Future[list[Any]] = Future()
    found.set_running_or_notify_cancel()  # from here on it is never cancelled, only left alone

    def look_up() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=look_up, name="tenure-lookup", daemon=True).start()
    addresses = await asyncio.wrap_future(found)
    return list(dict.fromkeys(str(address[0]) for *_, address in addresses))


async def _connect(
    addresses: Sequence[str], port: int, tls: Mapping[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first of these addresses that accepts.

    Those before the last have half of the time together: some answer nothing, as IPv6 addresses do
    that lead nowhere.
    """
    failure: OSError = OSError("the name has no address")
    seconds = REQUEST_SECONDS / 2 / max(len(addresses), 1)
    for address in addresses:
        try:
            async with asyncio.timeout(None if address == addresses[-1] else seconds):
                return await asyncio.open_connection(address, port, limit=MAX_READ, **tls)
        except OSError as error:
            failure = error
    raise failure


async def _answer(reader: asyncio.StreamReader) -> ReceiverAnswer:
    """Return the final answer; skips informational ones such as 100."""
    read = 0
    try:
        while read < MAX_READ:
            head = await reader.readuntil(b"\r\n\r\n")
            read += len(head)
            match = _status(head)
            if match is None:
                break
            if (status := int(match[1])) >= 200:
                asked = _retry_after(head)
                return ReceiverAnswer(status, asked[1].decode() if asked else "")
    except asyncio.IncompleteReadError as error:
        raise NotSent("the connection ended before an answer") from error
    except asyncio.LimitOverrunError as error:
        raise NotSent("the head of the answer is too long") from error
    raise NotSent("what came back is no HTTP answer")


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return the context that verifies servers by the authorities this machine trusts."""
    return ssl.create_default_context()


def is_public(address: str) -> bool:
    """Whether an address is public, also one that is embedded in an IPv6 address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in PUBLIC_IPV6:
            return False
    return not any(ip in network for network in NOT_PUBLIC)
