"""Reads text files of values, a line each; empty lines and lines that begin with # are none."""

from pathlib import Path

from promptmill.configs.made_manifests import MOST_CHOICES
from promptmill.manifests.rows import ManifestError

MOST_BYTES = 16 * 2**20


def read_lines(file: str | Path, where: str) -> list[tuple[int, str]]:
    """Return the values of a file, each with the number of its line, counted from 1.

    Args:
        file: The file's path.
        where: The words that begin a message.

    Raises:
        ManifestError: The file is not there, or has no value, or is too large, or is not UTF-8.
    """
    try:
        if Path(file).exists() and not Path(file).is_file():
            raise ManifestError(f"{where}: is no file")  # a device may never end, and a pipe never begin
        with Path(file).open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ManifestError(f"{where}: is larger than {MOST_BYTES // 2**20} MiB")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ManifestError(f"{where}: is not UTF-8") from None
    except OSError as error:
        raise ManifestError(f"{where}: {(error.strerror or str(error)).lower()}") from None
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    lines = [(number, said) for number, said in numbered if said and not said.startswith("#")]
    if not 1 <= len(lines) <= MOST_CHOICES:
        raise ManifestError(f"{where}: has {len(lines):,} lines, and 1 to {MOST_CHOICES:,} are wanted")
    return lines
