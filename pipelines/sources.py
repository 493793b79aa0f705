"""Finds the local folders that configs name as sources of weights."""

from pathlib import Path

from configs.errors import nearest
from configs.schema import is_folder
from pipelines.errors import ModelError

# Presets name the embedded weights from here, wherever they are used.
ROOT = Path(__file__).resolve().parents[1]


def local_folder(source: str) -> Path | None:
    """Where a source of weights lies on this machine; None for a hub repository, owner/name.

    Raises:
        ModelError: As `find_local`.
    """
    return find_local(source) if is_folder(source) else None


def find_local(name: str) -> Path:
    """The absolute path of a folder or file; a relative one is tried from the current directory, then from the repository's root.

    Raises:
        ModelError: It is in neither place.
    """
    tried = [Path.cwd() / name, ROOT / name]  # an absolute name stays what it is
    for path in tried:
        if path.exists():
            return path
    beside = [path.name for folder in (path.parent for path in tried) if folder.is_dir() for path in folder.iterdir()]
    where = "" if Path(name).is_absolute() else f" in {' or '.join(dict.fromkeys(map(str, (Path.cwd(), ROOT))))}"
    raise ModelError(f"{name}: no such folder{where}{nearest(Path(name).name, beside)}")
