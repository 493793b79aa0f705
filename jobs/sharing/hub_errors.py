"""Turns errors of the Hugging Face Hub into one line, without a token or a signature in it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from promptmill.shards.retries import PASSING_STATUS, origins
from promptmill.shards.storage import StorageError


class PushError(ValueError):
    """Reports a dataset or a repository that is not fit for a push, or a Hub that refuses the push; the message is one line."""


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer behind an error or its causes, or None."""
    found = (getattr(getattr(each, "response", None), "status_code", None) for each in origins(error))
    return next((status for status in found if isinstance(status, int)), None)


def may_pass(error: Exception) -> bool:
    """Return whether another try may succeed: the Hub is busy, failed by itself, or gave no answer."""
    status = _status(error)
    if status is not None:
        return status in PASSING_STATUS
    return "httpx" in {type(each).__module__.rstrip("0123456789") for each in origins(error)}  # no answer at all


@contextmanager
def one_line(repository: str) -> Iterator[None]:
    """Turn any error of the Hub's client into a PushError of one line."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT

    try:
        yield
    except (PushError, StorageError, MemoryError):
        raise
    except Exception as error:  # the client's errors share no base
        words = _plain(_reason(error), get_token())
        raise PushError(f"{ENDPOINT}, {repository}: {words}") from error


ADVICE: Mapping[int, str] = {
    401: "the token is not accepted; log in with `hf auth login`, or set HF_TOKEN to one that may write",
    402: "the account has to be paid for, or is full",
    403: "the token may not write there",
    404: "no such owner, repository or branch",
    413: "too large for the Hub",
    429: "too many requests; wait, then give the same command again",
}


def _reason(error: Exception) -> str:
    if type(error).__name__ == "LocalTokenNotFoundError":
        return "there is no token; log in with `hf auth login`, or set HF_TOKEN"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set; unset it to push"
    said = next((words for each in origins(error) if (words := getattr(each, "server_message", None))), None)
    status = _status(error)
    if status is not None:
        advice = ADVICE.get(status, "the same command goes on once it can" if status >= 500 else "")
        return ", ".join(filter(None, [f"HTTP {status}", advice])) + (f" ({said})" if said else "")
    if may_pass(error):
        return f"cannot be reached: {error or type(error).__name__}"
    return str(error) or type(error).__name__


def _plain(text: str, token: str | None) -> str:
    """Return at most 300 characters of a text in one line, without the token and without the signatures of addresses."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", " ".join(text.split()))
    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_…", text.replace(token, "…") if token else text)
    return f"{text[:299]}…" if len(text) > 300 else text
