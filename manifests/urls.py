"""Fetches files by http(s): from allowed hosts only, at public addresses only, bounded in bytes and in time.

An address is checked and then connected to itself, so a name that changes its address in between gains nothing. Proxies are
therefore not used.
"""

import functools
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL, responses
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from promptmill.configs.errors import shown

SILENCE_S = 10.0  # without a byte
WHOLE_S = 120.0  # for one file
REDIRECTS = 5
REDIRECTING = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}
# Left as they stand in a path or query; everything else is percent-encoded.
SAFE = "/%:@!$&'()*+,;=~?-._[]"

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
RELAYS = ipaddress.IPv4Network("192.88.99.0/24")  # once of 6to4: whoever answers there may be near


BUSY = (408, 425, 429)  # answers that ask for another try; so do all from 500 on


class UrlError(ValueError):
    """A URL that is refused or cannot be fetched; the message says why."""


class HostError(UrlError):
    """The host cannot be reached, is busy or breaks off: another try may succeed."""


class NotAllowedError(UrlError):
    """The host is none of those that URLs may name."""


def allowed(url: str, hosts: Collection[str]) -> SplitResult:
    """The parts of a URL whose host may be asked.

    Args:
        url: As a row gives it.
        hosts: Host names, which stand for the usual ports, or host:port.

    Raises:
        NotAllowedError: It may not.
        UrlError: This is no URL of http or https.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlError(f"not a URL: {_reason(error)}") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise UrlError("not a URL of http or https")
    if parts.username is not None:
        raise UrlError("URLs with a user's name or password are refused")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = port in (None, PORTS[parts.scheme])
    if not (usual and host in hosts) and f"{host}:{port or PORTS[parts.scheme]}" not in hosts:
        raise NotAllowedError(f"{shown(host) if usual else f'{shown(host)}:{port}'} is none of runtime.url_hosts")
    return parts


def fetch(url: str, hosts: Collection[str], most: int) -> bytes:
    """What lies at a URL, redirects followed as far as they lead to allowed hosts.

    Args:
        url: Of http or https.
        hosts: As for `allowed`.
        most: Bytes; more is an error.

    Raises:
        HostError: Nothing whole came from there this time.
        UrlError: It is refused, not there, or too large.
    """
    for _ in range(REDIRECTS + 1):
        parts = allowed(url, hosts)
        try:
            content, target = _get(parts, most)
        except UrlError:
            raise
        except (InvalidURL, ValueError) as error:
            raise UrlError(f"{parts.hostname}: {_reason(error)}") from None
        except (OSError, HTTPException) as error:
            raise HostError(f"{parts.hostname}: {_reason(error)}") from None
        if target is None:
            return content
        url = urljoin(url, target)
    raise UrlError(f"redirected more than {REDIRECTS} times")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {SILENCE_S:g} s"
    return shown(" ".join(str(error).split()), 200) or type(error).__name__


def _get(parts: SplitResult, most: int) -> tuple[bytes, str | None]:
    """The content, or else where it is redirected to."""
    assert parts.hostname is not None
    secure = parts.scheme == "https"
    sock = _connect(parts.hostname, parts.port or PORTS[parts.scheme])
    began = time.monotonic()
    # A server that sends a byte now and then would never be silent, so the whole is cut off too, by a second handle.
    lever = sock.dup()
    timer = threading.Timer(WHOLE_S, _cut, (lever,))
    timer.daemon = True
    timer.start()
    try:
        kind = functools.partial(HTTPSConnection, context=_tls()) if secure else HTTPConnection
        connection: HTTPConnection = kind(parts.hostname, parts.port or PORTS[parts.scheme])
        with closing(connection):
            connection.sock = _tls().wrap_socket(sock, server_hostname=parts.hostname) if secure else sock
            target = quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")
            connection.request(
                "GET", target, headers={"User-Agent": "promptmill", "Accept": "image/*", "Accept-Encoding": "identity"}
            )
            with connection.getresponse() as response:
                answer = _answer(response, most)
    except (OSError, HTTPException, UrlError):
        if time.monotonic() - began >= WHOLE_S:
            raise HostError(f"{parts.hostname}: not whole after {WHOLE_S:g} s") from None
        raise
    finally:
        timer.cancel()
        lever.close()
        sock.close()
    return answer


def _answer(response: HTTPResponse, most: int) -> tuple[bytes, str | None]:
    target = response.headers.get("Location")
    if response.status in REDIRECTING and target:
        return b"", target
    if response.status != 200:
        kind = HostError if response.status in BUSY or response.status >= 500 else UrlError
        raise kind(f"answers {response.status} {responses.get(response.status, '')}".rstrip())
    if response.length is None or response.length <= most:
        content = response.read(most + 1)
        if response.length:
            raise HostError(f"ends {response.length} bytes early")
        if len(content) <= most:
            return content, None
    raise UrlError(f"larger than {most:,} bytes")


def _connect(host: str, port: int) -> socket.socket:
    """A connection to the first of a host's public addresses that takes one."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except UnicodeError:
        raise UrlError(f"{host}: no such host") from None
    except OSError:  # which is also what a name server out of reach looks like
        raise HostError(f"{host}: no such host") from None
    addresses = [address for address in dict.fromkeys(found) if is_public(address)]
    if not addresses:
        raise UrlError(f"{host}: its address {found[0]} is not a public one")
    for address in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((address, port), SILENCE_S)
    return socket.create_connection((addresses[-1], port), SILENCE_S)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's: not this machine's, a private network's or a reserved one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        ip = inner or ip
    if isinstance(ip, ipaddress.IPv4Address) and ip in RELAYS:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _cut(lever: socket.socket) -> None:
    with suppress(OSError):
        lever.shutdown(socket.SHUT_RDWR)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
