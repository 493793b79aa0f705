"""Checks Azure Blob Storage on Azurite, Microsoft's emulator, straight and with a fifth of the requests harmed.

`npm install azurite`, then `python -m tests.shards.azurite node_modules/.bin/azurite-blob`. The suite needs no Node.js, so this
is no part of the suite.
"""

import base64
import datetime
import hashlib
import hmac
import os
import socket
import subprocess
import sys
import time
import urllib.request
from unittest import mock

from promptmill.shards import object_stores, retries
from tests.chaos.proxy import FaultyProxy
from tests.shards.test_faulty_storage import use_everything_at_once

ACCOUNT = "devstoreaccount1"  # Azurite's own, with its well-known key
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def make_container(url: str, name: str) -> None:
    """Make a container, which obstore does not."""
    date = f"{datetime.datetime.now(datetime.UTC):%a, %d %b %Y %H:%M:%S} GMT"
    headers = f"x-ms-date:{date}\nx-ms-version:2021-12-02\n"
    signed = "PUT" + "\n" * 12 + headers + f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
    request = urllib.request.Request(f"{url}/{ACCOUNT}/{name}?restype=container", method="PUT")
    for line in headers.splitlines():
        request.add_header(*line.split(":", 1))
    request.add_header("Authorization", f"SharedKey {ACCOUNT}:{signature}")
    request.add_header("Content-Length", "0")
    urllib.request.urlopen(request).close()


def main() -> None:
    """Run all checks; an AssertionError or a StorageError says what fails."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--blobPort", str(port), "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    server = subprocess.Popen([sys.argv[1], *flags], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        account = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}
        quick = mock.patch.multiple(retries, FIRST_PAUSE=0.01, LONGEST_PAUSE=0.05, TRIES=30)
        with quick, mock.patch.multiple(object_stores, REQUEST_TRIES=1, READ_TIMEOUT=0.4):
            for name, share in (("straight", 0.0), ("harmed", 0.2)):
                make_container(url, name)
                with FaultyProxy(url, share, seed=5, stall=0.6) as proxy:
                    with mock.patch.dict(os.environ, {**account, "AZURE_STORAGE_ENDPOINT": f"{proxy.url}/{ACCOUNT}"}):
                        done = use_everything_at_once(f"az://{name}/deep")
                    harmed = f"{proxy.faults.total()} of {proxy.requests.total()} requests harmed"
                    print(f"{name}: {done} operations as they should be, {harmed}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
