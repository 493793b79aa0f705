"""Uploads a finished dataset to a repository of the Hugging Face Hub, in commits of whole shards.

Files that the repository has already, by hash, are not sent again: a push that was cut off goes on at the shards that are missing,
and a push after a repair or a retry sends the changed files. index.json and _SUCCESS are removed first where shards are to be
replaced, and come last.

A repository that holds anything but this dataset is refused. Only files that a push put into a repository are ever removed there.
"""

import hashlib
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptmill.configs.errors import shown
from promptmill.configs.json_values import parse_json
from promptmill.jobs.sharing.hub_errors import PushError, may_pass, one_line
from promptmill.shards.card import CARD
from promptmill.shards.commits import READERS, CommitRecord, FileRecord, parse_shard_name, read_records, shard_name
from promptmill.shards.index import INDEX, SUCCESS, encode_index
from promptmill.shards.places_to_write import own_file
from promptmill.shards.storage import (
    OddFileError,
    StorageError,
    TooLargeError,
    get,
    is_local,
    join,
    local_path,
    names,
    open_regular,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi

FILES_A_COMMIT = 96  # the Hub asks for fewer than 100
BYTES_AT_ONCE = 256 * 2**20  # of files of a remote storage in memory, but one file in any case
PAUSES = (1.0, 5.0, 20.0)  # seconds before a commit is tried again
MARKS = (CARD, INDEX, SUCCESS)
PLAN = ("plan", "plan/shards", "plan/earlier")
NAMED_ALIKE = {("data", ".tar"), ("metadata", ".parquet"), ("commits", ".json")}  # by their shard
PLANNED = re.compile(r"plan/(plan\.json|hardware\.json|shards/[0-9]{6,}\.json\.gz|earlier/[0-9a-f]{64}\.json)")
STATS = re.compile(r"stats/[0-9]{8}T[0-9]{6}\.[0-9]{6}-[0-9]{4,}\.jsonl")
UNTOUCHED = re.compile(r"\.git[a-z]+|README\.md|LICEN[CS]E[^/]*")  # files that the Hub's own form for a new repository makes

Say = Callable[[str], None]


@dataclass(frozen=True)
class File:
    """Holds one file to be in the repository, as it should be; its content is read, and compared with this, when the file is sent.

    Attributes:
        blob: The file's id in git; of large files the id is not known, nor needed.
    """

    record: FileRecord
    blob: str | None = None

    @property
    def path(self) -> str:
        return self.record.path

    @classmethod
    def of(cls, path: str, content: bytes) -> "File":
        return cls(FileRecord.of(path, content), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())

    def is_there(self, oid: str) -> bool:
        """Return whether a file of the repository with this id, of its LFS object or its git blob, is the same."""
        return oid in (self.record.sha256, self.blob)


@dataclass(frozen=True)
class Pushed:
    """Holds the result of a push: the URL, the files sent and their bytes, how many were there before, how many were removed."""

    url: str
    sent: int
    bytes: int
    there: int
    removed: int


def push(
    output: str,
    repository: str,
    private: bool = False,
    revision: str | None = None,
    plan: bool = True,
    stats: bool = False,
    replace: bool = False,
    say: Say = lambda line: None,
) -> Pushed:
    """Make a dataset repository equal to a finished output; a repository that is not there is created.

    Args:
        output: The dataset's URI.
        repository: As owner/name; a name alone is one of the token's owner.
        private: Create the repository as private, and refuse one that is public.
        revision: A branch, created where it is not there; main if None.
        plan, stats: Whether those folders go along; parts never do.
        replace: Replace another dataset in the repository.
        say: Called with a line for every commit.

    Raises:
        PushError: The output is not finished or not whole, the repository holds other data, or the Hub does not accept the push.
        CommitError: A commit record is broken.
    """
    files, last = finished(output, plan, stats, say)
    family = _family(output)
    with one_line(repository):
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging

        disable_progress_bars()
        logging.set_verbosity_error()  # the client's warnings name signed addresses
        api = HfApi()
        owner = api.whoami()["name"]
    repository = repository if "/" in repository else f"{owner}/{repository}"
    with one_line(repository):
        url = str(api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True))
        if private and not api.repo_info(repository, repo_type="dataset").private:
            raise PushError(f"{repository} is public, and --private does not change that; make it private first, or name another")
        if revision:
            api.create_branch(repository, branch=revision, repo_type="dataset", exist_ok=True)
    hub = _Hub(api, repository, revision, output)
    with one_line(repository):
        there = hub.tree()
        if not replace and (other := _other(hub, there, family)):
            instead = "name another repository, or give --replace to put this dataset in the place of what is there"
            raise PushError(f"{repository}: {other}; {instead}")
    wanted = {file.path for file in (*files, *last)}
    stale = _stale(repository, there, wanted)
    missing = [file for file in files if not file.is_there(there.get(file.path, ""))]
    if (missing or stale) and {INDEX, SUCCESS} & set(there):
        # A reader in the meantime sees that the dataset is not finished.
        removed = [name for name in (INDEX, SUCCESS) if name in there]
        hub.commit("Begin to replace shards", [], removed)
        there = {path: oid for path, oid in there.items() if path not in removed}
    sent = 0
    for batch in _batches(missing):
        hub.commit(f"Add {batch[0].path} to {batch[-1].path}", batch)
        sent += len(batch)
        say(f"{sent:,} of {len(missing):,} files sent")
    changed = [file for file in last if not file.is_there(there.get(file.path, ""))]
    if changed or stale:
        hub.commit("Finish", changed, stale)
    size = sum(file.record.size for file in (*missing, *changed))
    return Pushed(url, len(missing) + len(changed), size, len(wanted) - len(missing) - len(changed), len(stale))


def finished(output: str, plan: bool, stats: bool, say: Say = lambda line: None) -> tuple[list[File], list[File]]:
    """Return the files of a finished output: those of its shards in order, with plan and stats; and the three that come last.

    Only names that promptmill makes are among them, and of a local output only regular files inside the output. Hashes of shards'
    files are taken from the records; whoever sends a file compares its content with the hash.

    Args:
        output: The dataset's URI.
        plan, stats: Whether those folders go along.
        say: Called with a line for each file in `plan` and `stats` that does not go along.

    Raises:
        PushError: The output is not finished, a file is missing, or is a link or a special file, or its index is not of its
            records.
    """
    top = set(names(output))
    if SUCCESS not in top:
        raise PushError(f"{output}: not finished; `promptmill status {output}` says what is left, and `run` finishes it")
    records = read_records(output)
    there = {f"{folder}/{name}" for folder in ("data", "metadata") for name in names(join(output, folder))}
    absent = [file.path for record in records for file in record.files if file.path not in there]
    absent += [name for name in MARKS if name not in top]
    if absent or not _is(join(output, INDEX), encode_index(records)):
        what = f"{absent[0]} is missing" if absent else f"{INDEX} does not agree with the commit records"
        raise PushError(f"{output}: {what}; `promptmill verify {output}` says all that is wrong")
    shards = [file for record in records for file in _files(record)]
    folders = [*(PLAN if plan else ()), *(("stats",) if stats else ())]
    paths = []
    for path in (f"{folder}/{name}" for folder in folders for name in names(join(output, folder))):
        if PLANNED.fullmatch(path) or STATS.fullmatch(path):
            paths.append(path)
        else:
            say(f"{shown(path)}: not sent; it is no file that promptmill makes")
    _check_own(output, [file.path for file in shards] + paths + list(MARKS))
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda path: File.of(path, get(join(output, path))), [*paths, *MARKS])
        others = list(read)
    return [*shards, *others[: len(paths)]], others[len(paths) :]


def _is(uri: str, content: bytes) -> bool:
    """Return whether a file has this content; a larger file is not read to its end."""
    try:
        return get(uri, len(content)) == content
    except TooLargeError:
        return False


def _check_own(output: str, paths: Iterable[str]) -> None:
    """Raise PushError where a file of the output is a link or lies behind one, which may lead to a file of this machine."""
    for path in paths:
        try:
            own_file(output, path)
        except FileNotFoundError:
            raise PushError(f"{join(output, path)}: gone; is a run under way there?") from None
        except StorageError as error:
            raise PushError(str(error)) from None


def _files(record: CommitRecord) -> list[File]:
    itself = File.of(f"commits/{shard_name(record.shard, record.generation)}.json", record.to_json())
    return [*(File(file) for file in record.files), itself]


def _family(output: str) -> set[str]:
    """Return the fingerprints of the present and earlier plans of an output; the plan may be of an older promptmill."""
    earlier = {name.removesuffix(".json") for name in names(join(output, "plan", "earlier"))}
    plan = [join(output, "plan", "plan.json")] if "plan.json" in names(join(output, "plan")) else []
    return earlier.union(*(_fingerprints(get(uri)) for uri in (*plan, join(output, INDEX))))


def _fingerprints(content: bytes) -> set[str]:
    """Return the fingerprints that an index, a commit record or a plan names; none for any other content."""
    try:
        said = parse_json(content)["fingerprint"]
    except (ValueError, LookupError, TypeError):
        return set()
    return {each for each in (said if isinstance(said, list) else [said]) if isinstance(each, str)}


def _other(hub: "_Hub", there: Iterable[str], family: set[str]) -> str | None:
    """Return the reason why a repository is neither empty nor of this dataset; None where it is."""
    holds = [path for path in there if not UNTOUCHED.fullmatch(path)]
    records = sorted(path for path in holds if path.startswith("commits/") and _is_ours(path))
    if not holds:
        return None
    # A push that replaces another dataset and was cut off leaves no index, and its own records first.
    says = INDEX if INDEX in there else records[0] if records else None
    if says is None:
        return f"holds {min(holds)}, and is not of a dataset like this"
    return None if _fingerprints(hub.read(says)) & family else f"holds another dataset, by its {says}"


def _is_ours(path: str) -> bool:
    """Return whether a path is one of those that only a push of promptmill makes, and may remove."""
    folder, _, name = path.partition("/")
    stem, dot, ending = name.rpartition(".")
    return PLANNED.fullmatch(path) is not None or ((folder, dot + ending) in NAMED_ALIKE and parse_shard_name(stem) is not None)


def _stale(repository: str, there: Iterable[str], wanted: set[str]) -> list[str]:
    """Return the paths that an earlier push left and that are no longer part of the dataset.

    Raises:
        PushError: The repository has files that no push made and that would be read as part of the dataset.
    """
    for path in there:
        if re.fullmatch(r"data/[^/]*\.tar|metadata/[^/]*\.parquet", path) and not _is_ours(path):
            raise PushError(
                f"{repository}: holds {path}, which would be read as part of the dataset; remove it, or name another repository"
            )
    return [path for path in there if path not in wanted and _is_ours(path)]


def _batches(files: Iterable[File]) -> Iterator[list[File]]:
    """Yield the files of one commit each; files of a shard stay together."""
    batch: list[File] = []
    shard: list[File] = []
    for file in files:
        if shard and _shard_of(file) != _shard_of(shard[0]):
            batch, shard = [*batch, *shard], []
            if len(batch) > FILES_A_COMMIT - 3:
                yield batch
                batch = []
        shard.append(file)
    if batch or shard:
        yield [*batch, *shard]


def _shard_of(file: File) -> str:
    return file.path.partition("/")[2].partition(".")[0]


@dataclass(frozen=True)
class _Hub:
    """Sends files of an output to one repository."""

    api: "HfApi"
    repository: str
    revision: str | None
    output: str

    def tree(self) -> dict[str, str]:
        """Return the files of the repository: by path, the SHA-256 of an LFS object, or the id of a git blob."""
        found = self.api.list_repo_tree(self.repository, recursive=True, revision=self.revision, repo_type="dataset")
        files: list[Any] = [entry for entry in found if hasattr(entry, "blob_id")]
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    def read(self, path: str) -> bytes:
        """Read a small file of the repository."""
        with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
            got = self.api.hf_hub_download(self.repository, path, revision=self.revision, repo_type="dataset", local_dir=folder)
            return Path(got).read_bytes()

    def commit(self, message: str, files: list[File], removed: Iterable[str] = ()) -> None:
        """Send files, large ones first and a few at a time, and make one commit of them."""
        with one_line(self.repository), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the client warns of cards without all of the Hub's fields
            additions: list[CommitOperationAdd] = []
            for some in self._handfuls(files):
                adding = [self._addition(file) for file in some]
                self._persistently(
                    lambda adding=adding: self.api.preupload_lfs_files(  # type: ignore[misc]
                        self.repository, adding, repo_type="dataset", revision=self.revision
                    )
                )
                additions += adding
            self._persistently(self._committing(message, list(zip(files, additions, strict=True)), list(removed)))

    def _committing(
        self, message: str, additions: Sequence[tuple[File, "CommitOperationAdd"]], removed: Sequence[str]
    ) -> Callable[[], None]:
        """Return an action that makes one commit; a second call commits only what is missing, since an answer may be lost."""
        from huggingface_hub import CommitOperationDelete

        tried = False

        def commit() -> None:
            nonlocal tried
            there = self.tree() if tried else None
            tried = True
            operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
                *(addition for file, addition in additions if there is None or not file.is_there(there.get(file.path, ""))),
                *(CommitOperationDelete(path) for path in removed if there is None or path in there),
            ]
            if operations:
                self.api.create_commit(
                    self.repository, operations, commit_message=message, repo_type="dataset", revision=self.revision
                )

        return commit

    def _handfuls(self, files: Iterable[File]) -> Iterator[list[File]]:
        some: list[File] = []
        for file in files:
            if some and sum(each.record.size for each in some) + file.record.size > BYTES_AT_ONCE:
                yield some
                some = []
            some.append(file)
        if some:
            yield some

    def _addition(self, file: File) -> "CommitOperationAdd":
        from huggingface_hub import CommitOperationAdd

        uri = join(self.output, file.path)
        try:
            if not is_local(uri):
                content = get(uri, most=file.record.size)
                self._check(file, FileRecord.of(file.path, content))
                return CommitOperationAdd(file.path, content)
            with open_regular(own_file(self.output, file.path)) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size != file.record.size:
                    self._check(file, FileRecord(file.path, size, ""))
                digest = hashlib.file_digest(stream, "sha256")
                self._check(file, FileRecord(file.path, stream.tell(), digest.hexdigest()))
        except FileNotFoundError:
            raise PushError(f"{uri}: gone; is a run under way there?") from None
        except OddFileError as error:
            raise PushError(f"{error}; `promptmill verify {self.output}` says all that is wrong") from None
        addition = CommitOperationAdd(file.path, local_path(uri))
        addition.upload_info.sha256 = digest.digest()
        return addition

    def _check(self, file: File, found: FileRecord) -> None:
        if found != file.record:
            raise PushError(f"{join(self.output, file.path)}: altered; `promptmill verify {self.output}` says all that is wrong")

    def _persistently(self, action: Callable[[], object]) -> None:
        """Repeat an action after errors that may pass, which the client does not; the action has to be safe to repeat."""
        for pause in (*PAUSES, None):
            try:
                action()
                return
            except Exception as error:
                if pause is None or not may_pass(error):
                    raise
                time.sleep(pause)
