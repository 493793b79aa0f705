"""URIs with credentials are refused, and no message repeats a secret."""

import socket

import pytest

from promptmill.shards import retries
from promptmill.shards.credentials import SECRET_VARIABLES
from promptmill.shards.storage import StorageError, check_uri, get

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIDEXAMPLE:{SECRET}@bucket/data",
        f"s3://user:p@{SECRET}@bucket/data",
        f"s3://bucket/data?secret={SECRET}",
        f"s3://bucket/data?key=AKIDEXAMPLE&secret={SECRET}&x=1",
        f"https://host/file?X-Amz-Expires=60&X-Amz-Security-Token={SECRET}",
        f"https://account.blob/x?sig={SECRET}",
        f"simplecache::ftp://user:{SECRET}@host/x",
        f"s3://bucket/{SECRET}",
    ],
)
def test_a_uri_with_credentials_is_refused_in_one_line_that_does_not_repeat_them(uri, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET if uri.startswith("s3://bucket/w") else "test")
    with pytest.raises(StorageError, match=r"^\S+: a URI must not carry credentials") as caught:
        check_uri(uri)
    assert not {SECRET, SECRET.split("/")[0], SECRET.split("/")[1]} & set(str(caught.value).replace("@", " ").split())
    assert SECRET not in str(caught.value) and "K7MDENG" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/data",
        "s3://bucket/a@b:c",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/mine/a@b",
        "s3://bucket/rows?.jsonl",
        "s3://bucket/file?versionId=1",
        "abfs://container@account.dfs.core.windows.net/x",
        "hdfs://host:8020/a@b",
        "sftp://user@host/x",
        "/a:b@c/?secret=local",
        "file:///a:b@c?key=1",
        "out",
    ],
)
def test_a_uri_without_credentials_is_taken(uri):
    check_uri(uri)


@pytest.mark.parametrize("variable", SECRET_VARIABLES)
def test_no_message_holds_a_secret_even_where_the_storage_says_it(variable, monkeypatch):
    import fsspec

    monkeypatch.setenv(variable, SECRET)
    said = "x" * 480 + f" {SECRET} " + SECRET.replace("/", "%2F").replace("+", "%2B") + " http://me:pass-word@host/?token=to-ken"

    def failing(*arguments, **options):
        raise OSError(said)

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "cat_file", failing)
    with pytest.raises(StorageError) as caught:
        get("memory://u:pass-word@x/y?secret=to-ken")
    message = str(caught.value)
    assert not [part for part in ("wJalr", "K7MDENG", "pass-word", "to-ken") if part in message]


def test_an_endpoint_with_a_password_is_not_repeated(quick, s3_bucket, monkeypatch):
    monkeypatch.setattr(retries, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:pass-word@127.0.0.1:{port}")
    with pytest.raises(StorageError, match=r"tried 2 times") as caught:
        get(f"{s3_bucket}/x")
    assert "pass-word" not in str(caught.value)
