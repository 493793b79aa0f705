import datetime
import errno
import http.server
import ipaddress
import os
import random
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from promptmill.shards import object_stores, retries
from promptmill.shards.retries import GaveUpError, PassingError, is_passing, persistently
from promptmill.shards.storage import StorageError, delete, get, join, names, put, put_if_absent
from tests.chaos.proxy import CONDITIONAL, KINDS, FaultyProxy
from tests.shards.test_storage import OPERATIONS


@pytest.fixture
def through(s3_bucket, s3_endpoint, monkeypatch):
    """Starts a faulty proxy, which from then on stands between the storage and the bucket."""
    proxies = []

    def start(share, **options):
        proxy = FaultyProxy(s3_endpoint, share, seed=5, **{"stall": 0.6, **options})
        proxy.start()
        proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    yield start
    for proxy in proxies:
        proxy.stop()


def _use_everything(uri, seed):
    """All operations on files of one's own, each checked; returns how many there were."""
    chance = random.Random(seed)
    first, second = (chance.randbytes(chance.choice([0, 1, 1_000, 70_000])) + bytes([n]) for n in range(2))
    put(join(uri, "a"), first)
    assert get(join(uri, "a")) == first
    put(join(uri, "a"), second)
    assert get(join(uri, "a")) == second
    assert put_if_absent(join(uri, "b"), first) is True
    assert put_if_absent(join(uri, "b"), second) is False
    assert get(join(uri, "b")) == first
    assert list(names(uri)) == ["a", "b"]
    delete(join(uri, "a"))
    delete(join(uri, "a"))
    with pytest.raises(FileNotFoundError):
        get(join(uri, "a"))
    assert list(names(uri)) == ["b"]
    assert list(names(join(uri, "none"))) == []
    return 13


def use_everything_at_once(uri):
    """All operations on 32 folders by 16 threads, and eight claims of one file six times over; returns how many there were."""
    with ThreadPoolExecutor(16) as workers:
        done = sum(workers.map(lambda number: _use_everything(f"{uri}/{number}", number), range(32)))
        for number in range(6):
            claims = [f"{number} by {writer}".encode() for writer in range(8)]
            outcomes = list(workers.map(lambda claim, number=number: put_if_absent(f"{uri}/claim-{number}", claim), claims))
            (winner,) = [claim for claim, won in zip(claims, outcomes, strict=True) if won]
            assert get(f"{uri}/claim-{number}") == winner
    return done + 54


def test_with_a_third_of_the_requests_harmed_everything_succeeds_with_the_right_contents(quick, through, s3_bucket):
    proxy = through(0.3)
    assert use_everything_at_once(s3_bucket) == 470 and proxy.faults.total() > 100
    # Conditional puts are few here: chance may spare them a kind that is theirs alone. They have tests of their own below.
    assert set(KINDS) - set(CONDITIONAL) <= set(proxy.faults)


def test_what_goes_in_parts_arrives_whole_through_faults(quick, through, s3_bucket, monkeypatch):
    monkeypatch.setattr(object_stores, "WHOLE_UPLOAD", 2**20)
    monkeypatch.setattr(object_stores, "PART", 5 * 2**20)  # the least that S3 takes
    proxy = through(0.25)
    for number in range(6):
        content = random.Random(number).randbytes(12 * 2**20 + number)
        put(join(s3_bucket, "large"), content)
        assert get(join(s3_bucket, "large")) == content
    assert proxy.requests["POST"] >= 12 and proxy.faults.total() > 5


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_so_it_does_on_googles_storage(quick, through, s3_bucket, monkeypatch, share):
    """On moto, as far as Google's XML API is that of S3; the proxy translates what makes a put conditional."""
    proxy = through(share)
    for name, value in {"GOOGLE_BASE_URL": proxy.url, "GOOGLE_BEARER_TOKEN": "test"}.items():
        monkeypatch.setenv(name, value)
    assert use_everything_at_once(s3_bucket.replace("s3://", "gs://") + "/deep") == 470
    assert (proxy.faults.total() > 100) == (share > 0)


def test_so_it_does_with_the_clients_own_tries_first(through, s3_bucket, monkeypatch):
    monkeypatch.setattr(object_stores, "READ_TIMEOUT", 1.0)
    proxy = through(0.1)
    with ThreadPoolExecutor(8) as workers:
        assert list(workers.map(lambda number: _use_everything(f"{s3_bucket}/{number}", number), range(8)))
    assert proxy.faults.total() > 0


EACH = {
    "put": lambda bucket: put(join(bucket, "a"), b"one") is None,
    "get": lambda bucket: get(join(bucket, "there")) == b"x" * 1000,
    "put if absent": lambda bucket: put_if_absent(join(bucket, "b"), b"two") is True,
    "put where one is": lambda bucket: put_if_absent(join(bucket, "there"), b"two") is False,
    "names": lambda bucket: list(names(bucket)) == ["a", "b", "there"],
    "delete": lambda bucket: delete(join(bucket, "a")) is None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_harm_alone_is_survived(quick, through, s3_bucket, kind):
    limit = 1 if kind == "stall" else 2  # each takes its time
    harmed = {"conflict": {"put if absent": limit, "put where one is": limit}, "exists_after": {"put if absent": 1}}
    proxy = through(1.0, kinds=[kind], limit=0)
    put(join(s3_bucket, "there"), b"x" * 1000)
    for operation, succeeds in EACH.items():
        before = proxy.faults.total()
        proxy.limit = before + limit
        assert succeeds(s3_bucket), operation
        assert proxy.faults.total() - before == harmed.get(kind, dict.fromkeys(EACH, limit)).get(operation, 0), operation
    proxy.limit = 0
    assert get(join(s3_bucket, "b")) == b"two" and list(names(s3_bucket)) == ["b", "there"]


def test_a_conditional_put_whose_answer_is_lost_was_written_by_us(quick, through, s3_bucket):
    for kind in ("reset_after", "cut", "exists_after"):
        proxy = through(1.0, kinds=[kind], limit=1)
        assert put_if_absent(join(s3_bucket, kind), b"mine") is True
        assert proxy.faults == {kind: 1} and get(join(s3_bucket, kind)) == b"mine"
        assert put_if_absent(join(s3_bucket, kind), b"another's") is False


def test_of_contents_put_at_once_through_faults_exactly_one_is_written_and_stands(quick, through, s3_bucket):
    proxy = through(0.6, kinds=["conflict", "exists_after", "reset_after", "cut"])
    with ThreadPoolExecutor(8) as workers:
        for number in range(6):  # so many that chance spares neither kind below
            uri = join(s3_bucket, f"record-{number}")
            contents = [f"{number} by {writer}".encode() for writer in range(8)]
            outcomes = list(workers.map(lambda content, uri=uri: put_if_absent(uri, content), contents))
            (winner,) = [content for content, won in zip(contents, outcomes, strict=True) if won]
            assert get(uri) == winner
    assert proxy.faults["conflict"] and proxy.faults["reset_after"]


@pytest.mark.parametrize("size", [1, 1_000, 3_000_000])
def test_a_body_that_always_breaks_off_is_never_returned(quick, through, s3_bucket, size, monkeypatch):
    monkeypatch.setattr(retries, "TRIES", 3)
    put(join(s3_bucket, "a"), b"x" * size)
    proxy = through(1.0, kinds=["cut"])
    with pytest.raises(StorageError, match=r"tried 3 times in \d s\)$"):
        get(join(s3_bucket, "a"))
    assert proxy.requests == {"GET": 3}


@pytest.mark.parametrize("kind", ["error", "slow_down", "reset_before", "stall"])
def test_when_all_tries_fail_one_line_says_how_often(quick, through, s3_bucket, monkeypatch, kind):
    monkeypatch.setattr(retries, "TRIES", 3)
    monkeypatch.setattr(object_stores, "READ_TIMEOUT", 0.2)
    proxy = through(1.0, kinds=[kind], stall=0.4)
    for operation in OPERATIONS.values():
        proxy.requests.clear()
        with pytest.raises(StorageError, match=rf"^{s3_bucket}/x: \S.* \(tried 3 times in \d s\)$") as caught:
            operation(f"{s3_bucket}/x")
        assert "\n" not in str(caught.value)
        assert 3 <= proxy.requests.total() <= 6  # the client's pool sends once more what a reset connection took


def test_a_server_that_takes_nothing_in_does_not_hold_an_upload_forever(quick, s3_bucket, monkeypatch):
    monkeypatch.setattr(object_stores, "UPLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(object_stores, "SLOWEST_UPLOAD", 10**9)
    monkeypatch.setattr(object_stores, "READ_TIMEOUT", 60.0)
    monkeypatch.setattr(retries, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StorageError, match=rf"^{s3_bucket}/x: .*tried 2 times"):
            put(f"{s3_bucket}/x", b"x" * 30_000_000)
        assert time.monotonic() - began < 8


def test_what_will_not_pass_is_not_tried_again(through, s3_bucket, s3_endpoint):
    proxy = through(0.0)
    began = time.monotonic()
    for operation in ("put", "put_if_absent"):
        with pytest.raises(StorageError, match=f"^{s3_bucket}-not/x: .*does not exist$"):
            OPERATIONS[operation](f"{s3_bucket}-not/x")
    with pytest.raises(FileNotFoundError):
        get(f"{s3_bucket}/none")
    assert proxy.requests == {"PUT": 2, "GET": 1} and time.monotonic() - began < 5


@pytest.fixture
def answering(s3_bucket, monkeypatch):
    """Starts a server that gives each request one and the same answer, which from then on is the storage."""
    servers = []

    def start(status, body):
        class Answer(http.server.BaseHTTPRequestHandler):
            requests = 0

            def answer(self):
                type(self).requests += 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        return Answer

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "passing"),
    [
        (500, "InternalError", True),
        (502, "", True),
        (503, "SlowDown", True),
        (504, "", True),
        (429, "", True),
        (400, "RequestTimeout", True),
        (400, "BadDigest", True),
        (409, "ConditionalRequestConflict", True),
        (409, "", True),
        (404, "NoSuchUpload", True),
        (400, "InvalidArgument", False),
        (403, "AccessDenied", False),
        (403, "", False),
        (404, "NoSuchBucket", False),
        (404, "NoSuchKey", False),
        (401, "", False),
        (501, "NotImplemented", False),
    ],
)
def test_it_is_known_what_passes_and_what_was_answered_is_said(quick, answering, s3_bucket, monkeypatch, status, code, passing):
    monkeypatch.setattr(retries, "TRIES", 2)
    said = f"<Error><Code>{code}</Code><Message>Said so</Message></Error>" if code else ""
    for operation in ("put", "put_if_absent", "names"):
        server = answering(status, said.encode())
        if operation == "names" and status == 404 and not passing:
            assert list(names(s3_bucket)) == []
        else:
            wanted = "Said so" if code else f"answered {status}"
            with pytest.raises(StorageError, match=rf"^{s3_bucket}\S*: {wanted}{' .tried 2 times in 0 s.' if passing else ''}$"):
                OPERATIONS[operation](s3_bucket if operation == "names" else f"{s3_bucket}/x")
        assert server.requests == 1 + passing


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (PassingError(), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (PermissionError(), False),
        (FileNotFoundError(), False),
        (ValueError(), False),
    ],
)
def test_an_error_passes_by_what_it_came_from(error, passing):
    assert is_passing(error) is passing
    wrapped = OSError("translated")
    wrapped.__cause__ = error
    assert is_passing(wrapped) is passing


def test_a_file_that_is_there_is_known_from_every_form_of_the_answer(monkeypatch):
    """Not all of fsspec's storages make a FileExistsError of it."""
    for error in (FileExistsError(), OSError(errno.EEXIST, "there")):

        def failing(*arguments, error=error, **options):
            raise error

        put("memory://known/x", b"one")
        with monkeypatch.context() as patch:
            patch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", failing)
            assert put_if_absent("memory://known/x", b"two") is False
            assert put_if_absent("memory://known/x", b"one") is True


def test_a_certificate_that_nobody_trusts_is_not_asked_for_again(quick, s3_bucket, monkeypatch, tmp_path):
    certificate, server = untrusted(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(StorageError, match=rf"^{s3_bucket}/x: its certificate is not trusted \(\w+\)$"):
        get(f"{s3_bucket}/x")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with pytest.raises(StorageError, match="answered 501"):
        put(f"{s3_bucket}/x", b"1")
    server.shutdown()
    server.server_close()


def untrusted(tmp_path):
    """A server with a certificate that it made itself."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "promptmill test")])
    now = datetime.datetime.now(datetime.UTC)
    names_ = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    made = made.add_extension(names_, False).add_extension(x509.BasicConstraints(False, None), True).sign(key, hashes.SHA256())
    place = tmp_path / "certificate.pem"
    place.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    whole = tmp_path / "both.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    whole.write_bytes(place.read_bytes() + private)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # which answers 501
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(whole)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return place, server


def test_pauses_grow_to_a_bound_with_chance_and_the_tries_end_by_number_and_by_time(monkeypatch):
    now, pauses = [0.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def fail(taking):
        now[0] += taking
        raise ConnectionResetError

    with pytest.raises(GaveUpError, match=r"^tried 8 times in \d+ s$"):
        persistently(lambda: fail(0))
    assert len(pauses) == retries.TRIES - 1 and sum(pauses) < 60
    for pause, whole in zip(pauses, [0.5, 1, 2, 4, 8, 15, 15], strict=True):
        assert whole / 2 <= pause <= whole
    assert len({pause / whole for pause, whole in zip(pauses, [0.5, 1, 2, 4, 8, 15, 15], strict=True)}) == 7
    now[0] = 0.0
    with pytest.raises(GaveUpError, match=r"^tried 2 times in 12\d s$"):
        persistently(lambda: fail(60))
    with pytest.raises(GaveUpError, match=r"^tried 1 time in 200 s$"):
        persistently(lambda: fail(200))


def test_a_link_whose_answer_is_lost_was_written_by_us(tmp_path, monkeypatch):
    link = os.link

    def forgetful(source, place):
        link(source, place)
        raise FileExistsError

    monkeypatch.setattr(os, "link", forgetful)
    assert put_if_absent(str(tmp_path / "a"), b"one") is True
    monkeypatch.setattr(os, "link", link)
    assert put_if_absent(str(tmp_path / "a"), b"one") is False


def test_the_proxy_passes_on_what_it_does_not_harm(through, s3_endpoint):
    """Chunked bodies, heads, and a connection that is kept."""
    import http.client

    proxy = through(0.0)
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"))
    name = f"/c{threading.get_ident()}"
    for method, path, body, status in [
        ("PUT", name, None, 200),
        ("PUT", f"{name}/key", iter([b"one", b"two"]), 200),
        ("HEAD", f"{name}/key", None, 200),
        ("GET", f"{name}/key", None, 200),
        ("POST", f"{name}?delete", b"<Delete><Object><Key>key</Key></Object></Delete>", 200),
        ("GET", f"{name}/key", None, 404),
        ("DELETE", name, None, 204),
    ]:
        headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}
        connection.request(method, path, body, headers, encode_chunked=True)
        socket_before = connection.sock
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == status, (method, content)
        assert connection.sock is socket_before is not None
        if method == "GET" and status == 200:
            assert content == b"onetwo"
        if method == "HEAD":
            assert answer.getheader("Content-Length") == "6"
    assert proxy.faults == {} and proxy.requests.total() == 7
