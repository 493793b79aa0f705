"""Decides where commands look for the images of a dataset that somebody else may have made.

`regenerate`, `verify --repair` and `export --pairs --images all` read the images that a dataset was made from, and the plan says
where these images lie. Nothing tells one's own plan from a stranger's. So what a plan says leads to no host and to no storage. A
plan leads to a folder of this machine only for an image whose SHA-256 the dataset tells: whoever wrote that hash has seen the
image. Everything else is to be given again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promptmill.configs.columns import REFERENCES, Role, roles_in
from promptmill.manifests.images import Fault, Roots, with_declared
from promptmill.manifests.requests import OWN_IMAGES
from promptmill.manifests.roots import MAX_BYTES
from promptmill.shards.commits import CommitError, CommitRecord
from promptmill.shards.finished import ShardReader
from promptmill.shards.outcomes import request_of

IMAGE_ROOT = "--image-root FOLDER adds where images lie now"
URL_HOST = "--url-host HOST allows its host"
MAX_PIXELS = "--max-image-pixels NUMBER allows larger ones"
OF_IMAGES = ("bad_image", "image_changed", "unreachable")  # errors of requests whose images could not be used


@dataclass(frozen=True)
class Given:
    """Holds a person's word on where images lie now.

    Attributes:
        roots: Folders or URIs, besides those that the plan knows.
        hosts: Hosts that URLs may name, as host or host:port.
        max_pixels: Width times height of an image; without it the default of `runtime.max_image_pixels` holds, or less by the plan.
    """

    roots: Sequence[str] = ()
    hosts: Sequence[str] = ()
    max_pixels: int | None = None


NOTHING = Given()


def places(roots: Roots, given: Given) -> Roots:
    """Return the roots of a plan, with the hosts, the storages and the limits that are given."""
    again = with_declared(Roots(()), given.roots).declared
    untrusted = [folder for folder in (*roots.folders, *roots.declared) if not any(_within(folder, root) for root in again)]
    most = given.max_pixels or min(roots.max_pixels, Roots(()).max_pixels)
    return replace(
        with_declared(roots, given.roots),
        hosts=tuple(given.hosts),
        max_pixels=most,
        max_bytes=MAX_BYTES,
        untrusted=tuple(dict.fromkeys(untrusted)),
    )


def _within(folder: str, root: str) -> bool:
    if "://" in folder or "://" in root:
        return folder == root or folder.startswith(root.rstrip("/") + "/")
    return Path(folder).is_relative_to(root)


def remedy(fault: Fault) -> str:
    """Return the option that a person may give where an image cannot be used."""
    return {Fault.PLACE: IMAGE_ROOT, Fault.HOST: URL_HOST, Fault.SIZE: MAX_PIXELS}[fault]


def seen_images(output: str, said: Iterable[CommitRecord]) -> dict[str, dict[str, str | None] | None]:
    """Return, by the key of each request, the SHA-256 of its images by column; None for a request that failed of its images."""
    for record in said:
        columns = ["key", "error", *(f"{column}_sha256" for column in OWN_IMAGES)]
        try:
            whole = ShardReader(output, record).table()
            listed = ["controls", *([REFERENCES] if roles_in(whole.schema).get(REFERENCES) is Role.INPUT else [])]
            table = whole.select(columns + listed)
        except CommitError:
            continue
        seen: dict[str, dict[str, str | None] | None] = {}
        for row in table.to_pylist():
            images = {column: row[f"{column}_sha256"] for column in OWN_IMAGES}
            images |= {
                f"{name}.{i}.{'image' if one['image'] is not None else 'embedding'}": one["sha256"]
                for name in listed
                for i, one in enumerate(row[name] or ())
            }
            for i, one in enumerate(row[REFERENCES] or ()) if REFERENCES in listed else ():
                for key in ("mask", "embedding"):
                    if one.get(key) is not None and (key == "mask" or one["image"] is not None):
                        images[f"{REFERENCES}.{i}.{key}"] = one.get(f"{key}_sha256")
            seen[request_of(row["key"])] = None if row["error"] in OF_IMAGES else images
        return seen
    return {}
