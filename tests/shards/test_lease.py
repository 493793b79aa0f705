import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from promptmill.shards import lease as lease_module
from promptmill.shards.lease import EXPIRES_S, GRACE_S, RENEW_S, Holder, LeaseError, hold
from promptmill.shards.storage import SCRATCH, StorageError, delete, get, join, names, put, put_if_absent

ROOT = Path(__file__).parents[2]
QUICK = {"renew_s": 0.1, "expires_s": 0.6, "grace_s": 0.4}
NOBODY = 2**31 - 2  # a pid beyond what Linux gives

HOLDER = """
import json, sys
from promptmill.shards.lease import hold
with hold(sys.argv[1], **json.loads(sys.argv[2])) as lease:
    lease.on_lost = lambda: print("lost:", lease.why, flush=True)
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    return join(request.getfixturevalue("s3_bucket"), "out") if request.param == "s3" else str(tmp_path / "out")


@contextmanager
def another_process(output, **intervals):
    """A process of its own that holds an output; it releases it when it is sent a line."""
    command = [sys.executable, "-c", HOLDER, output, json.dumps(intervals)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        end = threading.Timer(40, process.kill)  # so that whoever waits for its words in vain fails
        end.start()
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            end.cancel()
            process.kill()


def lie_there(output, number=1, **changes):
    """The lease file of a process of this machine that is gone, with some things otherwise."""
    put(join(output, "lease", f"{number:06d}.json"), replace(Holder.here(0.6), pid=NOBODY, **changes).to_json())


def leases(output):
    return list(names(join(output, "lease")))


def holder_of(output, number):
    return Holder.from_json(get(join(output, "lease", f"{number:06d}.json")))


def wait_until(true):
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_second_holder_is_refused_in_one_line_that_names_the_first(output):
    with hold(output) as first:
        with pytest.raises(LeaseError) as refused, hold(output):
            pass
        assert re.fullmatch(
            rf"{re.escape(output)}: is being written by process {os.getpid()} on {re.escape(socket.gethostname())} "
            r"\(user \S+\) since 20\d\d-\d\d-\d\d \d\d:\d\d UTC; "
            r"stop it, or wait until its lease expires \(at most 60 s after it died\)",
            str(refused.value),
        )
        assert leases(output) == ["000001.json"] and not first.lost


def test_a_holder_in_another_process_is_refused_to_others_until_it_releases(output):
    with another_process(output, renew_s=0.1, expires_s=0.6) as process:
        time.sleep(1)  # it renews: long after its first stamp expired it still holds
        with pytest.raises(LeaseError, match=f" process {process.pid} on "), hold(output):
            pass
        process.communicate("\n")
        with hold(output) as ours:
            assert not ours.lost and leases(output) == ["000001.json"]


def _race(output, environment, gate, results, done):
    os.environ.update(environment)
    put(join(output, f"warm-{os.getpid()}"), b"")  # imports and connections
    gate.wait(60)
    try:
        with hold(output):
            results.put("held")
            done.wait(60)
    except Exception as error:
        results.put(str(error))


def test_of_eight_processes_that_take_at_once_exactly_one_wins(output, monkeypatch):
    if output.startswith("s3"):
        # S3 looks and writes in one; this server does not.
        from moto.s3.responses import S3Response

        whole, lock = S3Response.put_object, threading.Lock()

        def one_at_a_time(response):
            with lock:
                return whole(response)

        monkeypatch.setattr(S3Response, "put_object", one_at_a_time)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["promptmill.shards.object_stores", "promptmill.shards.lease"])
    gate, results, done = processes.Barrier(8), processes.Queue(), processes.Event()
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    racers = [processes.Process(target=_race, args=(output, environment, gate, results, done), daemon=True) for _ in range(8)]
    for racer in racers:
        racer.start()
    outcomes = [results.get(timeout=60) for _ in racers]
    done.set()
    for racer in racers:
        racer.join()
    assert outcomes.count("held") == 1
    assert sum("is being written by process" in outcome for outcome in outcomes) == 7
    assert leases(output) == []


def test_of_many_that_take_and_release_in_turn_never_two_hold(tmp_path):
    output, end = str(tmp_path / "out"), time.monotonic() + 1.5
    inside, held, wrong = [], [], []

    def go():
        while time.monotonic() < end:
            try:
                with hold(output) as ours:
                    inside.append(ours)
                    wrong.extend([ours] * (len(inside) > 1))
                    time.sleep(random.uniform(0, 0.005))
                    inside.remove(ours)
                    held.append(ours.lost)
            except LeaseError:
                time.sleep(random.uniform(0, 0.002))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(held) > 5 and not any(held)


def test_a_holder_killed_on_this_machine_is_taken_over_at_once(output):
    said = []
    with another_process(output) as process:
        process.kill()
        # It stays a zombie: nobody has asked how it ended.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        began = time.monotonic()
        with hold(output, said.append):
            assert time.monotonic() - began < EXPIRES_S / 4
            assert leases(output) == ["000001.json", "000002.json"]
    assert len(said) == 1 and re.search(rf": process {process.pid} on \S+ \(user .*\) since .* UTC is gone; taking over$", said[0])
    assert leases(output) == []


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    output = str(tmp_path)
    here = Holder.here(60)
    put(join(output, "lease", "000001.json"), replace(here, start_time=here.start_time - 1).to_json())
    with hold(output):
        assert leases(output) == ["000001.json", "000002.json"]
    put(join(output, "lease", "000001.json"), here.to_json())
    with pytest.raises(LeaseError), hold(output):
        pass


@pytest.mark.parametrize("other", [{"boot_id": "another"}, {"pid_namespace": 1}, {"host": "another"}, {"boot_id": None}])
def test_a_holder_elsewhere_is_taken_over_only_after_it_expired(tmp_path, other):
    output = str(tmp_path)
    began = time.monotonic()
    lie_there(output, expires_s=0.4, **other)
    while True:
        try:
            with hold(output, grace_s=0.2):
                taken = time.monotonic() - began
                break
        except LeaseError:
            time.sleep(0.05)
    assert 0.4 + 0.2 <= taken < 5
    assert leases(output) == []


def test_on_s3_a_holder_elsewhere_is_taken_over_only_after_it_expired(s3_bucket):
    lie_there(s3_bucket, boot_id="another", expires_s=30)
    with pytest.raises(LeaseError), hold(s3_bucket, **QUICK):
        pass
    lie_there(s3_bucket, boot_id="another", renewed=time.time() - 1)
    with hold(s3_bucket, **QUICK):
        assert leases(s3_bucket) == ["000001.json", "000002.json"]
    assert leases(s3_bucket) == []


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_clock_that_is_wrong_costs_a_living_holder_nothing_and_saves_no_dead_one(tmp_path, ahead):
    output, said, over = str(tmp_path), [], threading.Event()

    def renew():
        while not over.wait(0.1):
            lie_there(output, boot_id="another", renewed=time.time() + ahead)

    lie_there(output, boot_id="another", renewed=time.time() + ahead)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseError), hold(output, said.append, grace_s=5):
            pass
    finally:
        over.set()
        thread.join()
    with hold(output, said.append, grace_s=0.4):
        pass
    assert [line.partition(" UTC ")[2] for line in said] == [f"looks expired; watching it for {grace} s" for grace in (5, 0)]


CHANGES = {
    "released": lambda output: delete(join(output, "lease", "000001.json")),
    "taken": lambda output: lie_there(output, 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_who_watches_a_lease_sees_that_it_was_released_or_taken(tmp_path, change):
    output = str(tmp_path)
    lie_there(output, boot_id="another", renewed=0)
    timer = threading.Timer(0.2, CHANGES[change], [output])
    timer.start()
    began = time.monotonic()
    with hold(output, grace_s=3):
        assert time.monotonic() - began < 2.5
    timer.join()


def test_a_holder_that_was_stopped_finds_its_lease_lost_and_leaves_the_new_one(output):
    with another_process(output, **QUICK) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.7)
        with hold(output, **QUICK) as ours:
            process.send_signal(signal.SIGCONT)
            said = process.stdout.readline()
            assert said.startswith(f"lost: {output}: was taken over by process {os.getpid()} on ")
            assert process.communicate("\n")[0] == "released\n" and process.returncode == 0
            assert leases(output) == ["000002.json"] and holder_of(output, 2).pid == os.getpid()
            time.sleep(0.3)
            assert not ours.lost
    assert leases(output) == []


@pytest.mark.parametrize("loss", ["taken over", "gone"])
def test_a_lease_that_is_lost_says_so_once(tmp_path, loss):
    output, calls = str(tmp_path), []
    with hold(output, **QUICK) as ours:
        ours.on_lost = lambda: calls.append((threading.current_thread().name, ours.lost))
        assert not ours.lost and ours.why == ""
        if loss == "gone":
            delete(join(output, "lease", "000001.json"))
        else:
            lie_there(output, 2)
        wait_until(lambda: calls)
        assert loss in ours.why and "\n" not in ours.why
        time.sleep(0.3)
    assert calls == [("lease", True)]
    assert leases(output) == ([] if loss == "gone" else ["000002.json"])


def test_a_released_lease_leaves_nothing_of_its_own_or_of_dead_holders(tmp_path):
    output = tmp_path / "out"
    for number in (1, 2):
        lie_there(str(output), number)
    (output / "lease" / f"{SCRATCH}0123456789abcdef").write_bytes(b"{")
    held = hold(str(output), **QUICK)
    held.__enter__()
    time.sleep(0.3)
    assert leases(str(output)) == ["000001.json", "000002.json", "000003.json"]
    assert not held.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # what fails inside goes its way
    assert list(output.iterdir()) == []


def test_a_released_lease_leaves_what_others_put_beside_it(tmp_path):
    with hold(str(tmp_path)):
        (tmp_path / "lease" / "notes").write_bytes(b"")
    assert leases(str(tmp_path)) == ["notes"]


BROKEN = [b'{\n "boot_id": "x",\n "expi', b"", b"[]", b"{}", b"\xff", replace(Holder.here(60), renewed=float("inf")).to_json()]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_lease_file_counts_as_expired_only_after_it_was_watched(tmp_path, content):
    output, said = str(tmp_path), []
    put(join(output, "lease", "000007.json"), content)
    began = time.monotonic()
    with hold(output, said.append, grace_s=0.2):
        assert time.monotonic() - began >= 0.2
        assert leases(output) == ["000007.json", "000008.json"]
    assert len(said) == 1 and "a process that its broken lease/000007.json does not name" in said[0]
    assert leases(output) == []


def test_a_broken_lease_file_that_is_written_again_is_somebodys(output):
    uri = join(output, "lease", "000001.json")
    put(uri, b"{")
    timer = threading.Timer(0.2, put, [uri, b'{"'])
    timer.start()
    with pytest.raises(LeaseError, match=f"^{output}: is being written by a process that its broken lease/000001.json"):
        hold(output, grace_s=2).__enter__()
    timer.join()


def _failing(*_):
    raise StorageError("s3://bucket/out: unreachable")


@pytest.mark.parametrize("operation", ["names", "get", "put"])
def test_a_storage_that_fails_for_a_while_does_not_lose_the_lease(output, monkeypatch, operation):
    failures = []
    with hold(output, renew_s=0.05, expires_s=30) as ours:
        with monkeypatch.context() as broken:
            broken.setattr(lease_module, operation, lambda *_: failures.append(1) or _failing())
            wait_until(lambda: len(failures) >= 4)
        before = leases(output), get(join(output, "lease", "000001.json"))
        wait_until(lambda: get(join(output, "lease", "000001.json")) != before[1])
        assert not ours.lost and before[0] == ["000001.json"]
    assert leases(output) == []


def test_a_storage_that_fails_for_longer_than_the_lease_lasts_loses_it_and_release_does_not_fail(tmp_path, monkeypatch):
    calls, said = [], []
    with hold(str(tmp_path), said.append, **QUICK) as ours:
        ours.on_lost = lambda: calls.append(time.monotonic())
        began = time.monotonic()
        monkeypatch.setattr(lease_module, "names", _failing)
        wait_until(lambda: calls)
    assert calls[0] - began > QUICK["expires_s"] - QUICK["renew_s"] - 0.05
    assert re.fullmatch(rf"{tmp_path}: its lease could not be renewed for \d+ s: s3://bucket/out: unreachable", ours.why)
    assert said == ["s3://bucket/out: unreachable; the lease stays there and expires by itself"]


def test_a_judgement_that_was_overtaken_is_made_anew(tmp_path, monkeypatch):
    """Between looking and putting, somebody else takes over, releases, and a third takes the first number again."""
    output, third = str(tmp_path), []
    lie_there(output)

    def late(uri, content):
        monkeypatch.undo()
        delete(join(output, "lease", "000001.json"))
        third.append(hold(output))
        third.append(third[0].__enter__())
        return put_if_absent(uri, content)

    monkeypatch.setattr(lease_module, "put_if_absent", late)
    with pytest.raises(LeaseError, match="is being written by"), hold(output):
        pass
    assert leases(output) == ["000001.json"] and not third[1].lost
    third[0].__exit__(None, None, None)
    assert leases(output) == []


def test_a_put_that_was_answered_as_refused_but_written_takes_the_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "put_if_absent", lambda uri, content: put_if_absent(uri, content) and False)
    with hold(str(tmp_path)) as ours:
        assert leases(str(tmp_path)) == ["000001.json"] and not ours.lost


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/file/lease/000001.json: Not a directory$"), hold(str(tmp_path / "file")):
        pass


def test_the_grace_is_longer_than_two_renewals_and_a_lease_than_both():
    assert 2 * RENEW_S < GRACE_S < EXPIRES_S
