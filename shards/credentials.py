"""Keeps credentials out of what people read: messages, logs and records."""

import os
import re
from urllib.parse import quote

HIDDEN = "***"
SECRET_VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "FSSPEC_S3_SECRET", "FSSPEC_S3_TOKEN"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_CLIENT_SECRET"),
    *("AZURE_CLIENT_SECRET", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN"),
    *("GOOGLE_BEARER_TOKEN", "GOOGLE_SERVICE_ACCOUNT_KEY"),
)
SHORTEST_SECRET = 8  # characters; a test server's "test" is none, and hiding it would tear up other words

# user:password@ behind a scheme, up to the last @: AWS's secrets hold slashes, passwords may hold an @. A colon before a port
# or within an Amazon resource name is none of a user's.
_USER = re.compile(r"(?<=://)(?!arn:)[^/\s:@]*:(?!\d+(?:[/?#\"'\s]|$))\S*@")
_QUERY = re.compile(
    r"([?&](?:[^=&\s]*(?:secret|token|passw|signature|credential|access_?key|api_?key)[^=&\s]*|key|sig|pwd|auth)=)[^&\s\"']*",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """A text with the credentials of the URIs in it, and the environment's secrets, replaced by three asterisks."""
    for secret in (os.environ.get(name, "") for name in SECRET_VARIABLES):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))
