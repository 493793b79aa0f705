"""Dashboards behind TLS: asked for tokens as others are, and trusted by their certificates."""

import datetime
import http.server
import importlib.metadata
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager

import psutil
import pytest
from cryptography import x509  # moto brings it
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from promptmill.actors.pool_sizes import ClusterError
from promptmill.configs.own_files import ROOT
from promptmill.jobs.clusters.jobs_api import Remote

TOKEN = "a-token-that-is-long-enough-to-be-one"


def beyond_loopback() -> str:
    """An address of this machine that others may reach."""
    own = (at.address for addresses in psutil.net_if_addrs().values() for at in addresses if at.family == socket.AF_INET)
    return next(address for address in own if not address.startswith("127."))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate that its own key signed, and the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a dashboard")])
    hosts = [x509.IPAddress(ipaddress.ip_address(host)) for host in ("127.0.0.1", beyond_loopback())]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file = tmp_path_factory.mktemp("tls") / "dashboard.pem"
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return file


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Says what a dashboard says that has no jobs, under a proxy's path or not."""

    mode = "token"

    def do_GET(self):
        path = self.path.removeprefix("/ray").rstrip("/")
        if path == "/api/authentication_mode":
            return self.answer(200, {"authentication_mode": self.mode})
        if self.mode == "token" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {})
        version = {"ray_version": importlib.metadata.version("ray"), "version": "4"}
        return self.answer(200, {"/api/version": version, "/api/jobs": []}[path])

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def served(certificate, mode, host="127.0.0.1"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    handler = type("Handler", (Dashboard,), {"mode": mode})
    with http.server.ThreadingHTTPServer((host, 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"https://{host}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["", "/ray/"])
def test_a_dashboard_behind_tls_that_asks_for_a_token_gets_it(certificate, path, tmp_path):
    with served(certificate, "token") as address:
        command = [sys.executable, "-m", "promptmill", "job", "list", "--address", address + path]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        given = {
            "RAY_AUTH_TOKEN": TOKEN,
            "REQUESTS_CA_BUNDLE": str(certificate),
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT / "src"),
        }
        listed = subprocess.run(command, env={**kept, **given}, capture_output=True, text=True, timeout=60)
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "", "")


def test_a_dashboard_behind_tls_that_is_open_to_anybody_is_refused(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with served(certificate, "disabled", beyond_loopback()) as address, pytest.raises(ClusterError) as raised:
        Remote(address)
    assert str(raised.value).startswith(f"{address}: listens beyond loopback and asks for no token")


def test_a_certificate_that_is_not_trusted_and_authorities_that_are_not_there_are_one_line(certificate, monkeypatch, tmp_path):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with served(certificate, "token") as address:
        with pytest.raises(
            ClusterError, match=r"its certificate is not trusted \(self.signed certificate\); set REQUESTS_CA_BUNDLE"
        ):
            Remote(address)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
        with pytest.raises(ClusterError, match=r"REQUESTS_CA_BUNDLE: .*none\.pem: No such file"):
            Remote(address)


def test_nothing_that_answers_by_tls_is_no_dashboard(certificate, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        silent.close()
        with pytest.raises(ClusterError, match="no Ray dashboard answers there"):
            Remote(address)
