import multiprocessing
import os
import signal
import time

import pytest

from shards.storage import SCRATCH, delete, get, join, names, put, put_if_absent


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


def _race(uri, number, results):
    results.put((number, put_if_absent(uri, str(number).encode() * 10_000)))


def test_of_eight_processes_exactly_one_writes_and_its_content_stands(tmp_path):
    uri, results = str(tmp_path / "x" / "record"), multiprocessing.Queue()
    racers = [multiprocessing.Process(target=_race, args=(uri, number, results)) for number in range(8)]
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
    writer = multiprocessing.Process(target=_write_forever, args=(str(tmp_path),))
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
    with pytest.raises((NotADirectoryError, FileExistsError)):
        put(str(tmp_path / "file" / "below"), b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
