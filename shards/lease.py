"""Who is writing an output: a second driver finds the first one's lease, and takes it over soon after the first one died.

It spares work and protects nothing: whatever two drivers write is the same, whole and never over another's. How it goes:

- OUT/lease/000001.json, 000002.json, …: the highest number holds. Taking is put_if_absent of the next one, so of many takers one
  wins. Its holder writes it again every RENEW_S, and it expires EXPIRES_S after the last time. On release all of them go.
- A holder of this machine and pid namespace that is gone is taken over at once. Of any other only the stamp is known, and two
  machines' clocks differ. So a file that looks expired, or comes from a future as far away, is also watched for GRACE_S by the own
  clock, and is over if it does not change: a live holder is taken over only if it is paused or cut off from the storage, or if its
  clock is wrong by EXPIRES_S and it misses two renewals besides. A broken file has no stamp, and is watched likewise.
- Numbers begin again after a release, so a file is ours by its token. And whoever has put its own looks again: is it the highest,
  and does the one that was judged still lie there as it was? If not, the judgement was about the past: it steps back, looks anew.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from promptmill.shards.lease_holder import Holder
from promptmill.shards.places_to_write import check_folders
from promptmill.shards.storage import (
    SCRATCH,
    FolderGoneError,
    StorageError,
    TooLargeError,
    check_stays,
    delete,
    get,
    is_local,
    join,
    local_path,
    names,
    put,
    put_if_absent,
    staying,
)

FOLDER = "lease"
NAME = re.compile(r"([0-9]{6,9})\.json")
MOST_BYTES = 2**16  # of a lease file
RENEW_S = 10.0
EXPIRES_S = 60.0
GRACE_S = 25.0  # two renewals and a half
TRIES = 20  # at taking, each begun by somebody else who took or released in the very same moment


class LeaseError(RuntimeError):
    """Somebody else is writing the output; the message is one line."""


@dataclass(frozen=True)
class Seen:
    """A lease file as it was found."""

    number: int
    content: bytes

    @property
    def holder(self) -> Holder | None:
        return Holder.from_json(self.content)

    def who(self) -> str:
        holder = self.holder
        return str(holder) if holder else f"a process that its broken {FOLDER}/{_name(self.number)} does not name"


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _numbers(output: str) -> list[int]:
    found = (NAME.fullmatch(name) for name in names(join(output, FOLDER)))
    return sorted(int(parsed[1]) for parsed in found if parsed is not None)


def _look(output: str) -> Seen | None:
    """The file that holds; None where there is none."""
    for number in reversed(_numbers(output)):
        with suppress(FileNotFoundError):  # released since the listing
            return Seen(number, _content(join(output, FOLDER, _name(number))))
    return None


def _content(uri: str) -> bytes:
    """Read a lease file; one that is far too large is a broken one."""
    try:
        return get(uri, MOST_BYTES)
    except TooLargeError:
        return b""


def holder_of(output: str) -> Holder | None:
    """Who writes an output right now, as far as can be told at a glance; None where nobody does."""
    seen = _look(output)
    holder = seen.holder if seen else None
    if holder is None or holder.is_gone() or abs(time.time() - holder.renewed) > holder.expires_s:
        return None
    return holder


class Lease:
    """An output that this process holds; made by `hold`.

    Attributes:
        output: Its URI.
        why: Why it is lost, one line; empty while it is held.
        on_lost: Called once, from the renewing thread, when it is lost. Set by whoever holds it; must not wait for the release.
    """

    def __init__(self, output: str, renew_s: float, expires_s: float) -> None:
        self.output = output
        self.why = ""
        self.on_lost: Callable[[], None] | None = None
        self._renew_s = renew_s
        self._holder = Holder.here(expires_s)
        self._number = 0
        self._renewed = 0.0  # by our monotonic clock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether somebody took it over, its file is gone, or it could not be renewed before it expired."""
        return bool(self.why)

    def _take(self, grace_s: float, say: Callable[[str], None]) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                if self._try(grace_s, say):
                    self._thread.start()
                    return
            except StorageError as error:
                # Locally a release removes the folder, perhaps from under us.
                vanished = is_local(self.output) and isinstance(error.__cause__, FileNotFoundError | FileExistsError)
                if not vanished or attempt == TRIES:
                    raise
            time.sleep(random.uniform(0, 0.1))
        raise LeaseError(f"{self.output}: others are taking its lease at the same time; try again")

    def _try(self, grace_s: float, say: Callable[[str], None]) -> bool:
        before = _look(self.output)
        if before is not None and not self._is_over(before, grace_s, say):
            return False
        self._number = before.number + 1 if before else 1
        # The answer says less than a look: a put that is tried again is refused because of its own first try.
        self._write(put_if_absent)
        now = _look(self.output)
        if now is not None and self._is_ours(now) and (before is None or self._lies_there(before)):
            return True
        self._remove(below=False)
        return False

    def _is_over(self, seen: Seen, grace_s: float, say: Callable[[str], None]) -> bool:
        """Whether its holder is dead or as good as dead. False: it gave way to another or to none, so look again.

        Raises:
            LeaseError: It lives.
        """
        holder = seen.holder
        if holder is not None and holder.is_gone():
            say(f"{self.output}: {holder} is gone; taking over")
            return True
        if holder is not None and abs(time.time() - holder.renewed) <= holder.expires_s:
            raise self._refusal(seen)
        say(f"{self.output}: the lease of {seen.who()} looks expired; watching it for {grace_s:.0f} s")
        until = time.monotonic() + grace_s
        while time.monotonic() < until:
            time.sleep(grace_s / 10)
            now = _look(self.output)
            if now is not None and now.number == seen.number and now != seen:
                raise self._refusal(now)
            if now != seen:
                return False
        return True

    def _refusal(self, seen: Seen) -> LeaseError:
        expires_s = (seen.holder or self._holder).expires_s
        remedy = f"stop it, or wait until its lease expires (at most {expires_s:.0f} s after it died)"
        return LeaseError(f"{self.output}: is being written by {seen.who()}; {remedy}")

    def _uri(self, number: int) -> str:
        return join(self.output, FOLDER, _name(number))

    def _write(self, how: Callable[[str, bytes], object]) -> None:
        began = time.monotonic()
        how(self._uri(self._number), replace(self._holder, renewed=time.time()).to_json())
        self._renewed = began

    def _is_ours(self, seen: Seen) -> bool:
        holder = seen.holder
        return seen.number == self._number and holder is not None and holder.token == self._holder.token

    def _lies_there(self, seen: Seen) -> bool:
        try:
            return _content(self._uri(seen.number)) == seen.content
        except FileNotFoundError:
            return False

    def _keep(self) -> None:
        while not self.why and not self._over.wait(self._renew_s):
            try:
                self.why = self._renew()
            except StorageError as error:  # tried again at the next turn, while the lease lasts
                lasted = time.monotonic() - self._renewed
                if lasted > self._holder.expires_s:
                    self.why = f"{self.output}: its lease could not be renewed for {lasted:.0f} s: {error}"
        if self.why and self.on_lost is not None and not self._over.is_set():
            self.on_lost()

    def _renew(self) -> str:
        """Renew it; returns why it is lost, if it is."""
        now = _look(self.output)
        if now is None:
            try:
                check_stays(self.output)
            except FolderGoneError as error:
                return str(error)
            return f"{self.output}: its lease is gone: somebody removed {FOLDER}/{_name(self._number)}"
        if not self._is_ours(now):
            return f"{self.output}: was taken over by {now.who()}"
        self._write(put)
        return ""

    def _release(self, say: Callable[[str], None]) -> None:
        self._over.set()
        self._thread.join(self._holder.expires_s)
        try:
            if self._thread.is_alive():  # it would put back what is removed now
                raise StorageError(f"{self.output}: does not answer")
            self._remove(below=True)
        except StorageError as error:  # no reason to fail what was done while it was held
            say(f"{error}; the lease stays there and expires by itself")

    def _remove(self, below: bool) -> None:
        """Remove the file if it is ours; `below`: and, if it is the highest, what dead holders left below it, which goes first."""
        numbers = _numbers(self.output)
        try:
            ours = self._is_ours(Seen(self._number, _content(self._uri(self._number))))
        except FileNotFoundError:
            return
        if not ours:
            return
        alone = below and numbers[-1:] == [self._number]
        for number in numbers if alone else [self._number]:
            delete(self._uri(number))
        if alone and is_local(self.output):
            _remove_folder(local_path(join(self.output, FOLDER)))


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):  # somebody is taking the lease already
        for scratch in folder.glob(f"{SCRATCH}*"):  # of those killed at writing; a living taker's is written again
            scratch.unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def hold(
    output: str,
    say: Callable[[str], None] | None = None,
    *,
    renew_s: float = RENEW_S,
    expires_s: float = EXPIRES_S,
    grace_s: float = GRACE_S,
) -> Iterator[Lease]:
    """Hold an output as its only writer, as far as others ask. Where it is moved or deleted meanwhile, it is not made again.

    Args:
        output: Its URI.
        say: Told in one line why it takes long, that a dead holder is taken over, or that the lease could not be removed.
        renew_s: Seconds from one renewal to the next.
        expires_s: Seconds after the last one when others may take over.
        grace_s: Seconds for which a lease that looks expired is watched; more than two renewals of its holder.

    Raises:
        LeaseError: Somebody else holds it, or takes it at the same time.
        OutsideError: A folder of the output is a link that leads out of it: whoever holds an output writes and deletes in these.
        StorageError: The output cannot be read or written.
    """
    check_folders(output)
    tell = say or (lambda line: None)
    lease = Lease(output, renew_s, expires_s)
    lease._take(grace_s, tell)
    with staying(output):
        try:
            yield lease
        finally:
            lease._release(tell)


def await_holder(output: str, wait_s: float, say: Callable[[str], None]) -> None:
    """Wait for whoever writes an output; that of a dead one on another machine looks alive until its lease expires.

    Args:
        output: The dataset's URI.
        wait_s: Seconds to wait at the most.
        say: Told at every look who holds the output.
    """
    until = time.monotonic() + wait_s
    while time.monotonic() < until and (holder := holder_of(output)) is not None:
        say(f"waiting for {holder}")
        time.sleep(min(5.0, max(0.0, until - time.monotonic())))
