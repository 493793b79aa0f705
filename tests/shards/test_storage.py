import errno
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time

import boto3
import fsspec
import moto
import pytest

from promptmill.shards import object_stores
from promptmill.shards.storage import (
    SCRATCH,
    FolderGoneError,
    OddFileError,
    StorageError,
    TooLargeError,
    delete,
    flush_files,
    get,
    get_range,
    join,
    names,
    put,
    put_if_absent,
    put_unflushed,
    staying,
)


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3_bucket")
    return str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}"


def test_what_is_put_is_there_whole_and_may_be_replaced(folder):
    uri = join(folder, "data", "000000.tar")
    put(uri, b"one")
    put(uri, b"two")
    assert get(uri) == b"two" and list(names(join(folder, "data"))) == ["000000.tar"]


def test_what_is_put_unflushed_is_there_whole_and_may_be_replaced_and_flushed(folder):
    uris = [join(folder, "shards", f"{number:02d}") for number in range(40)]
    for content in (b"one", b"two"):
        for uri in uris:
            put_unflushed(uri, content + uri.encode())
    flush_files(iter(uris))
    assert [get(uri) for uri in uris] == [b"two" + uri.encode() for uri in uris]
    assert list(names(join(folder, "shards"))) == [f"{number:02d}" for number in range(40)]


def test_a_file_that_is_not_there_cannot_be_flushed(tmp_path):
    put_unflushed(f"{tmp_path}/out/a", b"x")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/out/b: No such file or directory$"):
        flush_files([f"{tmp_path}/out/{name}" for name in "ab"])


def test_of_two_puts_if_absent_the_first_stands(folder):
    uri = join(folder, "commits", "000000.json")
    assert put_if_absent(uri, b"one") is True
    assert put_if_absent(uri, b"two") is False
    assert get(uri) == b"one" and list(names(join(folder, "commits"))) == ["000000.json"]


def test_deleting_twice_and_listing_nothing_are_no_errors(folder):
    assert list(names(join(folder, "nowhere"))) == []
    put(join(folder, "a"), b"")
    delete(join(folder, "a"))
    delete(join(folder, "a"))
    with pytest.raises(FileNotFoundError):
        get(join(folder, "a"))


# Not forked from this process: its other threads, those of S3 and torch, may hold memory's locks just then.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["promptmill.shards.object_stores", "promptmill.shards.lease"])


def _race(uri, number, gate, results):
    gate.wait()
    results.put((number, put_if_absent(uri, str(number).encode() * 10_000)))


def test_of_eight_processes_exactly_one_writes_and_its_content_stands(tmp_path):
    uri, results = str(tmp_path / "x" / "record"), PROCESSES.Queue()
    gate = PROCESSES.Barrier(8)
    racers = [PROCESSES.Process(target=_race, args=(uri, number, gate, results)) for number in range(8)]
    for racer in racers:
        racer.start()
    outcomes = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    (winner,) = [number for number, won in outcomes.items() if won]
    assert get(uri) == str(winner).encode() * 10_000
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["record"]


def _write_forever(folder):
    number = 0
    while True:
        put_if_absent(f"{folder}/{number:06d}", bytes([number % 256]) * 200_000)
        put(f"{folder}/latest", bytes([number % 256]) * 200_000)
        number += 1


@pytest.mark.parametrize("moment", [0.05, 0.2, 0.35])
def test_a_writer_killed_at_any_moment_leaves_whole_files_only(tmp_path, moment):
    writer = PROCESSES.Process(target=_write_forever, args=(str(tmp_path),))
    writer.start()
    while not (tmp_path / "latest").exists():
        time.sleep(0.001)
    time.sleep(moment)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    found = list(names(str(tmp_path)))
    assert len(found) > 1
    for name in found:
        content = get(f"{tmp_path}/{name}")
        assert content == content[:1] * 200_000
    assert all(name.startswith(SCRATCH) for name in {p.name for p in tmp_path.iterdir()} - set(found))


def test_a_write_that_is_refused_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/file/below: (Not a directory|File exists)$"):
        put(str(tmp_path / "file" / "below"), b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


OPERATIONS = {
    "put": lambda uri: put(uri, b"x"),
    "put_if_absent": lambda uri: put_if_absent(uri, b"x"),
    "get": get,
    "delete": delete,
    "names": lambda uri: list(names(uri)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("uri", ["foo://x/y", "gs://bucket/y"])
def test_a_storage_that_nobody_here_knows_is_one_line_that_begins_with_its_uri(operation, uri, monkeypatch):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError) as caught:
        OPERATIONS[operation](uri)
    assert str(caught.value).startswith(f"{uri}: ") and "\n" not in str(caught.value)
    # Workers send it to the driver as it is.
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is StorageError and str(again) == str(caught.value)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_s3_without_credentials_is_one_line(operation, s3_bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match=f"^{s3_bucket}/x: .*redentials"):
        OPERATIONS[operation](f"{s3_bucket}/x")


def test_a_signal_is_served_while_a_storage_does_not_answer(s3_bucket):
    """Else Ctrl-C would wait until the storage gave up."""
    code = f"""
import os, signal, socket, threading
from promptmill.shards.storage import get
deaf = socket.create_server(("127.0.0.1", 0))
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{{deaf.getsockname()[1]}}"
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    get("{s3_bucket}/x")
except KeyboardInterrupt:
    os._exit(42)
"""
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 42 and time.monotonic() - began < 15


def test_a_process_forked_from_one_that_used_object_stores_says_so_and_does_not_hang(s3_bucket):
    code = f"""
import multiprocessing
from promptmill.shards.storage import StorageError, put
def child():
    try:
        put("{s3_bucket}/y", b"1")
    except StorageError as error:
        assert "spawn processes instead" in str(error), error
    else:
        raise AssertionError("it works")
put("{s3_bucket}/x", b"1")
forked = multiprocessing.get_context("fork").Process(target=child)
forked.start()
forked.join(20)
raise SystemExit(forked.exitcode)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_fsspecs_settings_for_s3_hold_and_one_that_is_not_used_is_named(s3_bucket, s3_endpoint, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    said = {"endpoint_url": s3_endpoint, "key": "test", "secret": "test", "client_kwargs": {"region_name": "us-east-1"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", said)
    put(f"{s3_bucket}/x", b"1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {**said, "config_kwargs": {}})
    with pytest.raises(StorageError, match=rf"^{s3_bucket}/x: the setting config_kwargs of fsspec's S3 is not used here"):
        put(f"{s3_bucket}/x", b"1")
    with pytest.raises(StorageError, match="give the alias of the access point"):
        put("s3://arn:aws:s3:us-west-2:123456789012:accesspoint/mine/a", b"1")


def test_a_profile_of_aws_gives_credentials_region_and_endpoint(s3_bucket, s3_endpoint, monkeypatch, tmp_path):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile mine]\nregion = eu-west-3\nendpoint_url = {s3_endpoint}\n")
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = test\naws_secret_access_key = test\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    put(f"{s3_bucket}/x", b"1")
    assert get(f"{s3_bucket}/x") == b"1"


def test_the_region_that_a_bucket_of_aws_is_in_is_asked_of_aws(monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": "t", "AWS_SECRET_ACCESS_KEY": "t", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
        given, _ = object_stores._aws("elsewhere")
    assert (given["region"], given["endpoint"]) == ("eu-west-3", "https://s3.eu-west-3.amazonaws.com")


def test_a_bucket_that_is_not_there_cannot_be_written_and_holds_nothing(s3_bucket):
    for operation in ("put", "put_if_absent"):
        with pytest.raises(StorageError, match=f"^{s3_bucket}-not/x: "):
            OPERATIONS[operation](f"{s3_bucket}-not/x")
    with pytest.raises(FileNotFoundError):
        get(f"{s3_bucket}-not/x")


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for operation in ("put", "put_if_absent"):
        with pytest.raises(StorageError, match=rf"^{tmp_path}/out/x: No space left on device$"):
            OPERATIONS[operation](f"{tmp_path}/out/x")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("prefix", ["", "file://", "local://"])
def test_a_local_place_may_be_written_in_three_ways_and_begin_at_home(tmp_path, prefix, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(f"{prefix}{tmp_path}/a", b"x")
    assert get(f"{prefix}~/a") == b"x" and list(names(f"{prefix}~")) == ["a"]


def odd_files(folder):
    """What a stranger may put in a file's place, by what is said of it."""
    os.mkfifo(folder / "fifo")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    (folder / "to-fifo").symlink_to("fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.close()
    return {"fifo": "FIFO", "zero": "device", "folder": "folder", "to-fifo": "FIFO", "socket": "socket"}


def test_special_files_are_neither_waited_for_nor_read(tmp_path):
    for name, kind in odd_files(tmp_path).items():
        for reader in (get, lambda uri: get(uri, 7), lambda uri: get_range(uri, 0, 7)):
            with pytest.raises(OddFileError, match=rf"^{tmp_path}/{name}: is a {kind}, not a regular file$"):
                reader(f"{tmp_path}/{name}")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert get(f"{tmp_path}/link") == b"content"
    (tmp_path / "broken").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        get(f"{tmp_path}/broken")


def test_a_file_larger_than_it_may_be_is_not_read(tmp_path, s3_bucket):
    for folder in (str(tmp_path), s3_bucket):
        put(join(folder, "file"), b"content")
        put(join(folder, "empty"), b"")
        assert get(join(folder, "file"), 7) == b"content" and get(join(folder, "empty"), 0) == b""
        with pytest.raises(TooLargeError, match="is of 7 bytes, more than the 6") as raised:
            get(join(folder, "file"), 6)
        again = pickle.loads(pickle.dumps(raised.value))
        assert (again.size, again.said, str(again)) == (7, raised.value.said, str(raised.value))
        with pytest.raises(FileNotFoundError):
            get(join(folder, "nothing"), 6)
    # A sparse file of a terabyte takes no room, and would take all memory.
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OddFileError, match="is of 1,099,511,627,776 bytes"):
        get(str(tmp_path / "huge"), 2**20)


def test_a_range_is_never_longer_than_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert get_range(str(tmp_path / "file"), 3, 10**18) == b"tent"
    assert get_range(str(tmp_path / "file"), 10**18, 10**19) == b""


def test_a_folder_that_stays_is_not_made_again_once_it_was_moved_away(tmp_path):
    output = str(tmp_path / "out")
    put(f"{output}/plan/plan.json", b"{}")
    with staying(output):
        put(f"{output}/stats/deep/1", b"1")
        (tmp_path / "out").rename(tmp_path / "elsewhere")
        for write in (put, put_if_absent, put_unflushed):
            with pytest.raises(FolderGoneError, match="^" + re.escape(f"{output}: is gone: it was moved or deleted")):
                write(f"{output}/parts/1", b"1")
        assert not (tmp_path / "out").exists()
        put(f"{tmp_path}/other/1", b"1")
    assert (tmp_path / "elsewhere/stats/deep/1").read_bytes() == b"1"
    put(f"{output}/parts/1", b"1")


def test_a_process_that_used_object_stores_waits_for_their_threads_at_its_end(s3_bucket):
    """Python is aborted where such a thread enters it while it ends."""
    code = f"""
import atexit, time
from promptmill.shards.storage import put
began = []
atexit.register(lambda: print(time.monotonic() - began[0] >= 0.1))
put("{s3_bucket}/x", b"1")
atexit.register(lambda: began.append(time.monotonic()))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
