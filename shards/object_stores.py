"""Reads and writes files on S3, Google Cloud Storage and Azure Blob Storage, by obstore. A put is whole by itself.

Credentials and regions of AWS are found as AWS's own tools find them, by botocore; those of the other two as obstore finds them: in
the environment, in files of their command lines, from the machine. `fsspec`'s settings for S3 hold here as well.
"""

import atexit
import functools
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
import obstore
from fsspec.asyn import get_loop, sync
from obstore.exceptions import AlreadyExistsError, BaseError, JoinError

from promptmill.shards.retries import PASSING_STATUS, PassingError, persistently
from promptmill.shards.storage_errors import check_size

if TYPE_CHECKING:
    import botocore.session
    from obstore.store import ObjectStore

CONNECT_TIMEOUT = 5.0  # seconds until a server took a connection
READ_TIMEOUT = 20.0  # seconds without a byte of an answer
REQUEST_TRIES = 3  # of each request, by obstore itself, which pauses with jitter
# The read timeout runs while a request is being sent, too, so larger puts are bounded by these two alone.
SMALL_UPLOAD = 2**20  # bytes
UPLOAD_TIMEOUT = 60.0  # seconds for any upload, and those that its bytes take at
SLOWEST_UPLOAD = 100_000  # bytes per second
WHOLE_UPLOAD = 100 * 2**20  # bytes; what is larger goes in parts
PART = 32 * 2**20  # bytes
PARTS = 4  # under way at once
LONGEST_REQUEST = timedelta(days=1)  # obstore's own bound would end long downloads; READ_TIMEOUT and UPLOAD_TIMEOUT hold instead
STORES = 32  # kept
LEAVE_S = 0.1  # that obstore's threads have at a process's end for what they still do in Python

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfs", "abfss": "abfss"}
SETTINGS = ("AWS_", "GOOGLE_", "AZURE_", "FSSPEC_S3", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # variables that a store depends on

PASSING_CODES = frozenset(
    {
        "409",  # a conflict that says no more
        "BadDigest",  # these three: what arrived is not what was sent
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "ConditionalRequestConflict",  # another write of the same file is under way
        "OperationAborted",
        "InternalError",
        "NoSuchUpload",  # an upload in parts whose end was acknowledged, but the answer was lost
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
    }
)
STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
MESSAGE = re.compile(r"<Message>\s*([^<\n]{1,300})")
TOKEN_REQUEST = "Error performing token request"  # of a machine's own service, where nothing else has credentials
CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")
LAST = re.compile(r'(?:message|error): "([^"]{1,300})"')  # what the operating system said
BROKEN_ANSWERS = ("Error getting list response body", "Got invalid list response", "Got invalid XML", "body")

Result = TypeVar("Result")


class UnservedError(ValueError):
    """Reports a part of a URI or of the settings that object stores are not used with."""


class RefusedError(OSError):
    """Reports, in one line, the answer of a storage that will not pass."""


def serves(uri: str) -> bool:
    """Return whether a URI is one of a storage that this module reads and writes."""
    return uri.partition("://")[0].lower() in SCHEMES and "://" in uri


def put(uri: str, content: bytes) -> None:
    """Write a file, replacing the one that is there; tried again while it fails for a passing reason."""
    parts = {"use_multipart": len(content) > WHOLE_UPLOAD, "chunk_size": PART, "max_concurrency": PARTS}
    _persistently(uri, lambda store, key: obstore.put_async(store, key, content, **parts), content)  # type: ignore[arg-type]


def put_if_absent(uri: str, content: bytes) -> bool:
    """Write a file unless there is one; return False where one is there, which may be one's own if an answer was lost."""
    try:
        _persistently(uri, lambda store, key: obstore.put_async(store, key, content, mode="create"), content)
    except FileExistsError:
        return False
    return True


def get(uri: str, most: int | None) -> bytes:
    """Return a file's content, of one version of it; one of more than `most` bytes is not read, None for any size."""

    async def whole(store: "ObjectStore", key: str) -> bytes:
        found = await obstore.get_async(store, key)
        check_size(uri, found.meta["size"], most)
        return bytes(await found.bytes_async())

    return _persistently(uri, whole)


def get_range(uri: str, start: int, stop: int) -> bytes:
    """Return a file's bytes from `start` up to `stop`, or to its end where that comes first."""
    if stop <= start:
        return b""

    async def part(store: "ObjectStore", key: str) -> bytes:
        return bytes(await obstore.get_range_async(store, key, start=start, end=stop))

    return _persistently(uri, part)


def delete(uri: str) -> None:
    """Remove a file; raise FileNotFoundError where the storage says that there is none."""
    _persistently(uri, obstore.delete_async)


def names(folder: str) -> list[str]:
    """Return the names of the files directly inside a folder; none where there is no folder, or no bucket."""
    try:
        found = _persistently(folder, obstore.list_with_delimiter_async)
    except FileNotFoundError:
        return []
    return [entry["path"].rsplit("/", 1)[-1] for entry in found["objects"]]


_forked: list[int] = []  # the process that this one was forked from, if it had used obstore


def _note_fork() -> None:
    if _store.cache_info().currsize:
        _forked.append(os.getppid())


os.register_at_fork(after_in_child=_note_fork)


@functools.cache
def _leave_in_order() -> None:
    """Make the end of the process wait for obstore's threads: one that enters a Python that is ending aborts the process.

    Of 320 processes that renewed a lease until their end one was aborted; of 400 that waited none was.
    """
    atexit.register(time.sleep, LEAVE_S)


def _persistently(uri: str, action: Callable[["ObjectStore", str], Awaitable[Result]], content: bytes | None = None) -> Result:
    """Return the result of an idempotent action on a store and a key in it, tried again while it may help.

    Args:
        content: The bytes that the action sends, if any.
    """
    if _forked:
        # obstore's threads are not in this process: a call would wait for them for ever.
        raise UnservedError(f"process {_forked[0]} had used object stores before it forked this one; spawn processes instead")
    root, key = _place(uri)
    limit = None if content is None else UPLOAD_TIMEOUT + len(content) / SLOWEST_UPLOAD
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.upper().startswith(SETTINGS)))
    read_timeout = READ_TIMEOUT if len(content or b"") <= SMALL_UPLOAD else None
    store = _store(root, read_timeout, REQUEST_TRIES, settings, repr(fsspec.config.conf.get("s3")))

    async def once() -> Result:
        try:
            return await action(store, key)
        except (BaseError, FileNotFoundError) as error:
            raise _translated(error) from error

    # Not obstore's own blocking calls: during these no signal reaches Python, and nothing bounds an upload by its size.
    return persistently(lambda: sync(get_loop(), once, timeout=limit))


def _place(uri: str) -> tuple[str, str]:
    """Return the URI of a bucket or container, as obstore writes it, and the key in it."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if bucket.startswith("arn:"):
        raise UnservedError("an ARN is no name of a bucket; give the alias of the access point, s3://NAME-…-s3alias")
    return f"{SCHEMES[scheme.lower()]}://{bucket}", key.strip("/")


@functools.lru_cache(STORES)
def _store(root: str, read_timeout: float | None, tries: int, settings: Any, conf: str) -> "ObjectStore":
    from obstore.store import from_url

    _leave_in_order()
    client: dict[str, Any] = {"allow_http": True, "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT), "timeout": LONGEST_REQUEST}
    if read_timeout is not None:
        client["read_timeout"] = timedelta(seconds=read_timeout)
    retries: Any = {"max_retries": tries - 1, "retry_timeout": timedelta(seconds=60)}
    given: dict[str, Any] = {}
    if root.startswith("s3://"):
        given, certificates = _aws(root.removeprefix("s3://"))
        client |= certificates
    return from_url(root, client_options=client, retry_config=retries, **given)  # type: ignore[call-overload]


def _aws(bucket: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the settings with which obstore reaches a bucket, and the certificates to trust, as AWS's own tools find both."""
    import botocore.session

    said = dict(fsspec.config.conf.get("s3", {}))
    client = dict(said.pop("client_kwargs", {}))
    endpoint = said.pop("endpoint_url", None) or client.pop("endpoint_url", None)
    region, anonymous, profile = client.pop("region_name", None), said.pop("anon", False), said.pop("profile", None)
    keys = [said.pop(name, None) for name in ("key", "secret", "token")]
    if unknown := sorted([*said, *client]):
        raise UnservedError(f"the setting {unknown[0]} of fsspec's S3 is not used here; set what AWS's own tools read")
    session = botocore.session.Session(profile=profile)
    if keys[0]:
        session.set_credentials(*keys)
    region = region or session.get_config_variable("region")
    reached = session.create_client("s3", region_name=region or "us-east-1", endpoint_url=endpoint)
    given: dict[str, Any] = {"disable_bulk_delete": True}  # which not every store like S3 has
    if anonymous:
        given["skip_signature"] = True
    else:
        given["credential_provider"] = _credentials(session)
    if ".amazonaws.com" in reached.meta.endpoint_url and not anonymous:
        region = _region_of(reached, bucket) or region
        reached = session.create_client("s3", region_name=region or "us-east-1", endpoint_url=endpoint)
    given |= {"endpoint": reached.meta.endpoint_url, "region": region or "us-east-1"}
    trusted = session.get_config_variable("ca_bundle")
    if not trusted:
        return given, {}
    with open(trusted, "rb") as file:  # noqa: PTH123
        return given, {"root_certificate": file.read()}


def _credentials(session: "botocore.session.Session") -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
    except ValueError:
        raise UnservedError(
            "no credentials of AWS were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        ) from None


def _region_of(client: Any, bucket: str) -> str | None:
    """Return the region that a bucket of AWS is in, which may be another than the configured one; None where AWS does not say."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer: Mapping[str, Any] = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return None
    found = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return str(found) if found else None


def _translated(error: Exception) -> Exception:
    """Return an error of obstore as one line: PassingError where it may pass, else an OSError.

    obstore tells the status, the code and the reason only within its text.
    """
    text = str(error)
    if TOKEN_REQUEST in text:
        return RefusedError("no credentials were found, and the machine gives none")
    status, code = (found[1] if (found := pattern.search(text)) else "" for pattern in (STATUS, CODE))
    said = MESSAGE.search(text)
    words = said[1].strip() if said else _transport(text, status)
    if status:
        passes = int(status) in PASSING_STATUS or (code or status) in PASSING_CODES
    else:
        passes = isinstance(error, BaseError) and not isinstance(error, JoinError) and _breaks(text)
    if passes:
        return PassingError(words)
    if isinstance(error, AlreadyExistsError):
        return FileExistsError(words)
    if isinstance(error, FileNotFoundError) or status == "404":
        return FileNotFoundError(words)
    return RefusedError(words)


def _breaks(text: str) -> bool:
    """Return whether an error without an answer is one of the connection; a certificate that is not trusted stays so."""
    return "ertificate" not in text and ("HttpError {" in text or any(broken in text for broken in BROKEN_ANSWERS))


def _transport(text: str, status: str) -> str:
    if status:
        return f"answered {status}"
    if "TimedOut" in text or "kind: Timeout" in text:
        return "timed out"
    if found := CERTIFICATE.search(text):
        return f"its certificate is not trusted ({found[1]})"
    last = LAST.findall(text)
    return last[-1] if last else text.partition("\n")[0].rpartition(" - ")[2]
