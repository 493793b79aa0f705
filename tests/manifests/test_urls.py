import socket
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from promptmill.manifests import urls
from promptmill.manifests.urls import HostError, UrlError, allowed, fetch, is_public

BODY = b"picture" * 1000


class Pages(BaseHTTPRequestHandler):
    """What a host may answer, by path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind = self.path.split("?")[0].strip("/")
        if kind.startswith("to-"):
            self.answer(302, b"", Location=self.path.split("to-", 1)[1])
        elif kind == "missing":
            self.answer(404, b"no")
        elif kind.startswith("answer-"):
            self.answer(int(kind.removeprefix("answer-")), b"no")
        elif kind == "silent":
            time.sleep(1.5)
        elif kind == "trickle":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif kind == "early":
            self.answer(200, BODY, **{"Content-Length": str(len(BODY) + 5)})
            self.close_connection = True
        elif kind == "unsized":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)
            self.close_connection = True
        elif kind == "chunked":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npicture\r\n0\r\n\r\n")
        elif kind == "garbage":
            self.wfile.write(b"\0\1\2 what is this\r\n\r\n")
            self.close_connection = True
        else:
            self.answer(200, self.path.encode() if kind.startswith("echo") else BODY)

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(context=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.handle_error = lambda *_: None  # a client that has had enough hangs up
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


@pytest.fixture
def loopback_is_public(monkeypatch):
    monkeypatch.setattr(urls, "is_public", lambda address: True)


def get(port, path, most=10**6):
    return fetch(f"http://127.0.0.1:{port}/{path}", [f"127.0.0.1:{port}"], most)


@pytest.mark.usefixtures("loopback_is_public")
def test_an_allowed_host_is_asked_and_its_redirects_are_followed(port):
    assert get(port, "picture.png") == BODY
    assert get(port, "unsized") == BODY and get(port, "chunked") == b"picture"
    assert get(port, "to-/to-/picture.png") == BODY
    assert get(port, f"to-http://127.0.0.1:{port}/picture.png") == BODY


@pytest.mark.usefixtures("loopback_is_public")
def test_a_url_is_asked_for_as_it_stands_but_for_what_has_to_be_encoded(port):
    assert get(port, "echo/a b%20ü.png?w=1&h=[2]") == b"/echo/a%20b%20%C3%BC.png?w=1&h=[2]"


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("to-http://localhost:{port}/picture.png", "localhost:{port} is none of runtime.url_hosts"),
        ("to-http://example.com/picture.png", "example.com is none of runtime.url_hosts"),
        ("to-file:///etc/passwd", "not a URL of http or https"),
        ("missing", "answers 404 Not Found"),
        ("early", "ends 5 bytes early"),
        ("garbage", "127.0.0.1: "),
    ],
)
def test_what_does_not_come_whole_from_an_allowed_host_is_refused(port, path, says):
    with pytest.raises(UrlError) as caught:
        get(port, path.format(port=port))
    assert says.format(port=port) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    ("path", "again"),
    [
        ("answer-500", True), ("answer-503", True), ("answer-429", True), ("early", True), ("garbage", True), ("silent", True),
        ("missing", False), ("answer-403", False), ("answer-410", False), ("to-http://example.com/picture.png", False),
    ],
)  # fmt: skip
def test_what_another_try_may_bring_is_told_from_what_it_will_not(port, monkeypatch, path, again):
    monkeypatch.setattr(urls, "SILENCE_S", 0.2)
    with pytest.raises(UrlError) as caught:
        get(port, path)
    assert isinstance(caught.value, HostError) == again


@pytest.mark.usefixtures("loopback_is_public")
def test_redirects_in_a_circle_end(port, monkeypatch):
    monkeypatch.setattr(Pages, "do_GET", lambda self: self.answer(302, b"", Location="/again"))
    with pytest.raises(UrlError, match="redirected more than 5 times"):
        get(port, "again")


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("path", ["picture.png", "unsized"])
def test_no_more_than_the_allowed_bytes_are_taken(port, path):
    assert len(get(port, path, most=len(BODY))) == len(BODY)
    with pytest.raises(UrlError, match="larger than 6,999 bytes"):
        get(port, path, most=len(BODY) - 1)


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    ("path", "limit", "says"), [("silent", "SILENCE_S", "nothing came for 0.2 s"), ("trickle", "WHOLE_S", "not whole after 0.2 s")]
)
def test_a_slow_host_is_not_waited_for(port, monkeypatch, path, limit, says):
    monkeypatch.setattr(urls, limit, 0.2)
    began = time.monotonic()
    with pytest.raises(UrlError, match=says):
        get(port, path)
    assert time.monotonic() - began < 1.2


def test_this_machine_is_no_host_even_where_its_name_is_allowed(port):
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(UrlError, match="is not a public one"):
            fetch(f"http://{host}:{port}/picture.png", [f"{host}:{port}"], 10**6)


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch):
    answers = iter([["1.1.1.1", "127.0.0.1"], ["127.0.0.1"]])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 80)) for address in next(answers)])
    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(UrlError, match=r"rebound\.example: refused"):
        fetch("http://rebound.example/a.png", ["rebound.example"], 10)
    assert asked == [("1.1.1.1", 80)]


@pytest.mark.parametrize(
    "address",
    """
    127.0.0.1 127.8.9.1 10.0.0.1 172.16.5.5 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 240.0.0.1 255.255.255.255
    192.0.2.1 198.18.0.1 ::1 :: fe80::1 fe80::1%1 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
    fec0::1 feff::1 192.88.99.1 192.88.99.255 ::ffff:192.88.99.1 2002:c058:6301::1 64:ff9b::c058:6301
    2002:7f00:1::1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
    """.split(),  # noqa: SIM905 (a list of them is as long as wide)
)
def test_addresses_that_are_not_the_internets_are_refused(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_addresses_of_the_internet_are_taken(address):
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://example.com/a", ["example.com"]),
        ("https://EXAMPLE.com/a", ["example.com"]),
        ("https://example.com:443/a", ["example.com"]),
        ("https://example.com/a", ["example.com:443"]),
        ("https://example.com:8443/a", ["other.com", "example.com:8443"]),
        ("http://[2606:4700::1111]:80/a", ["[2606:4700::1111]"]),
    ],
)
def test_hosts_are_allowed_by_name_and_at_other_ports_by_name_and_port(url, hosts):
    assert allowed(url, hosts).hostname


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com:8080/a",
        "http://sub.example.com/a",
        "http://example.com.evil.com/a",
        "http://evil.com/example.com",
        "http://example.com@evil.com/a",
        "http://user@example.com/a",
        "http://evil.com#@example.com/a",
        "http://evil.com\\@example.com/a",
        "http://example.com:x/a",
        "http://[::1/a",
        "ftp://example.com/a",
        "http:///a",
        "http:example.com",
    ],
)
def test_what_only_looks_like_an_allowed_host_is_refused(url):
    with pytest.raises(UrlError):
        allowed(url, ["example.com"])


@given(st.text(max_size=40), st.sampled_from(["http://", "https://", "http://example.com", "HTTP:/", ""]))
def test_any_text_is_allowed_or_refused_in_one_line(text, start):
    try:
        parts = allowed(start + text, ["example.com"])
    except UrlError as error:
        said = str(error)
    else:
        said = parts.hostname
    assert said == "example.com" or ("\n" not in said and len(said) > 8)


@pytest.mark.usefixtures("loopback_is_public")
def test_https_is_held_to_the_hosts_certificate(tmp_path, monkeypatch):
    authority = certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=authority)
    with serving(context) as port:
        url = f"https://localhost:{port}/picture.png"
        with pytest.raises(UrlError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(url, [f"localhost:{port}"], 10**6)
        monkeypatch.setattr(urls, "_tls", lambda: trusting)
        assert fetch(url, [f"localhost:{port}"], 10**6) == BODY
        with pytest.raises(UrlError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(url.replace("localhost", "127.0.0.1"), [f"127.0.0.1:{port}"], 10**6)


def certificate(folder, host):
    """A self-signed certificate, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return folder / "cert.pem"
