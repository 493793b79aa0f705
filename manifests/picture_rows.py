"""Makes rows of pictures: finds the pictures of a folder or a glob, and turns what each one's metadata say into a row.

The pictures of one pattern stand as one file of the manifest, whose rows are the pictures in the order of their names. Each row's
id is the picture's path within the folder that the pattern begins with; images that rows name start from that folder, too.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from promptmill.configs.columns import NEGATIVE_TEMPLATE, SYNTAX, TEMPLATE
from promptmill.configs.errors import shown
from promptmill.configs.image_text import REQUEST_TEXT, TOOL, UNREAD
from promptmill.configs.listed_manifests import Pictures, Use
from promptmill.configs.parameters import MAX_SIDE
from promptmill.manifests.files import is_local, open_file, system_of
from promptmill.manifests.finding import MAGIC, find
from promptmill.manifests.own_pictures import Own, OwnTextError, read_request
from promptmill.manifests.picture_parameters import Described, described
from promptmill.manifests.picture_texts import ENDINGS, Texts, UnreadError, read_texts
from promptmill.manifests.roots import ImageError, Roots, locate, with_declared
from promptmill.manifests.rows import ManifestError, Row

OWN_TOOL = "promptmill"
# What is taken over of a picture that is only begun with, beside the picture itself.
OF_INIT = (
    *("prompt", "negative_prompt", SYNTAX, TEMPLATE, NEGATIVE_TEMPLATE),
    *("width", "height", "steps", "scheduler", "loras"),
    *("guidance_scale", "guidance_rescale", "true_cfg_scale"),
)
OF_NOISE = ("seed", "variation_seed", "variation_strength")
BLOCK = 2**16  # bytes that a storage is asked for at a time


class PicturesFile(str):
    """Names the pictures of one pattern, where the name of a file is meant; the text is the pattern behind its folder.

    Attributes:
        folder: The folder that the pattern begins with, as an absolute path or a URI.
        names: The pictures' paths within the folder, sorted.
        use: What rows do with a picture.
        loras: The LoRAs that the config declares; rows use no others.
        roots: Folders that links in the folder may lead into, beside the folder itself.
        others: How many files of other endings were passed over.
    """

    __slots__ = ("folder", "loras", "names", "others", "roots", "use")
    folder: str
    names: tuple[str, ...]
    use: Use
    loras: tuple[str, ...]
    roots: tuple[str, ...]
    others: int

    def __new__(
        cls,
        text: str,
        folder: str,
        names: tuple[str, ...],
        use: Use,
        loras: tuple[str, ...] = (),
        roots: tuple[str, ...] = (),
        others: int = 0,
    ) -> "PicturesFile":
        self = super().__new__(cls, text)
        self.folder, self.names, self.use, self.loras, self.roots, self.others = folder, names, use, loras, roots, others
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return PicturesFile, (str(self), self.folder, self.names, self.use, self.loras, self.roots, self.others)


def find_pictures(manifest: Pictures, loras: Sequence[str] = (), roots: Sequence[str] = ()) -> list[PicturesFile]:
    """Return the pictures of a manifest, one entry for each of its patterns.

    Args:
        manifest: The manifest.
        loras: The LoRAs that the config declares.
        roots: The folders beside the pictures' own that the config declares for images.

    Raises:
        ManifestError: A pattern leads to no picture.
    """
    return [_found(pattern, manifest.use, tuple(loras), tuple(roots)) for pattern in manifest.patterns]


def _found(pattern: str, use: Use, loras: tuple[str, ...], roots: tuple[str, ...]) -> PicturesFile:
    system, path = system_of(pattern)
    if local := is_local(system):
        path = os.path.abspath(path)  # noqa: PTH100 (resolve would follow links)
    try:
        if system.isdir(path):
            folder, last = path.rstrip("/"), "*"
            files = (
                _files_in(path) if local else [str(one["name"]) for one in system.ls(path, detail=True) if one["type"] == "file"]
            )
        else:
            # Found by its own rules: a path that exists is that file, whatever stars or brackets it has.
            files = [system._strip_protocol(file) for file in find(pattern)]
            folder, last = (path.rpartition("/")[0] if system.isfile(path) else _base(path)), path.rpartition("/")[2]
    except ManifestError:
        raise
    except Exception as error:  # the errors of storages have no common base
        raise ManifestError(f"{shown(pattern, 1000)}: cannot be reached: {shown(' '.join(str(error).split()), 300)}") from None
    names = sorted(file.removeprefix(f"{folder}/") for file in files if PurePosixPath(file).suffix.lower() in ENDINGS)
    if not names:
        raise ManifestError(f"{shown(pattern, 1000)}: no picture is there; pictures end with {' '.join(ENDINGS)}")
    if names[0].startswith("/"):
        raise ManifestError(f"{shown(pattern, 1000)}: leads behind a link; name the folder that the link leads to")
    place = folder if local else system.unstrip_protocol(folder)
    deep = any("/" in name for name in names)
    return PicturesFile(f"{place}/{'**' if deep else last}", place, tuple(names), use, loras, roots, len(files) - len(names))


def _files_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_file()]


def _base(pattern: str) -> str:
    """Return the folder in which a pattern begins: all parts of the pattern before the first one with a star or a bracket."""
    *folders, _ = pattern.split("/")
    plain = itertools.takewhile(lambda part: not any(character in part for character in MAGIC), folders)
    return "/".join(plain)


def rows_of_pictures(file: PicturesFile, note: Callable[[str], None] = lambda line: None) -> Iterator[Row]:
    """Yield a row for each picture; a picture whose metadata cannot be read makes a broken row.

    Args:
        file: The pictures.
        note: Called with one line where files of other endings were passed over.
    """
    if file.others:
        note(f"{file}: {file.others:,} {'file is' if file.others == 1 else 'files are'} no picture by ending, and left out")
    place = str(file)  # a row goes to other processes without the names of all pictures
    for number, name in enumerate(file.names, 1):
        if not _is_text(name):
            yield Row(place, number, {}, broken="has a name that is not UTF-8; rename it", picture=shown(name, 300))
            continue
        try:
            values, notes, images = values_of(name, _texts(file, name), file.use, file.loras)
        except UnreadError as error:
            yield Row(place, number, {"id": name}, broken=str(error), picture=shown(name, 300))
        else:
            yield Row(place, number, values, notes=notes, images=images, picture=shown(name, 300))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a byte that is no UTF-8 became half of a surrogate pair
        return False
    return True


def _texts(file: PicturesFile, name: str) -> Texts:
    try:
        if "://" in file.folder:
            with open_file(f"{file.folder}/{name}", BLOCK) as stream:
                return read_texts(stream)
        # A link may lead no further than that of an image that a row names.
        with open(locate(name, with_declared(Roots((file.folder,)), file.roots)), "rb") as stream:  # noqa: PTH123
            return read_texts(stream)
    except ImageError as error:
        raise UnreadError(f"cannot be read: {error}") from None
    except OSError as error:
        raise UnreadError(f"cannot be read: {shown(error.strerror or type(error).__name__, 300)}") from None


def values_of(name: str, texts: Texts, use: Use, loras: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...], Mapping[str, str]]:
    """Return the columns of a picture's row, notes on what was not taken over, and the SHA-256 that the row's images had.

    Args:
        name: The picture's path in its folder.
        texts: The texts of its metadata.
        use: What the row does with the picture.
        loras: The LoRAs that the config declares.

    Raises:
        UnreadError: The metadata are of no tool that is known, or cannot be read, and the row needs them.
    """
    notes: tuple[str, ...] = ()
    try:
        found, own = _read(texts)
    except UnreadError as error:
        if use != "init_image":
            raise
        # The picture itself is what matters.
        found, own = Described("", {}), None
        notes = (f"picture: {error}; its row has the picture alone",)
    values, notes = {column: value for column, value in found.values.items() if value not in ("", None)}, (*notes, *found.notes)
    unread = dict(found.unread)
    if found.loras:
        values["loras"] = [{"name": lora, "scale": scale} for lora, scale in found.loras if lora in loras]
        if lacking := {lora: scale for lora, scale in found.loras if lora not in loras}:
            unread["LoRAs"] = json.dumps(lacking, ensure_ascii=False)
            notes = (*notes, "picture: has a LoRA that the config does not declare; picture_unread names it")
    if own:
        # An empty text or list of a request is a value: the config's default may be another.
        values = dict(found.values)
    if "width" not in values and texts.size and all(side % 8 == 0 and 8 <= side <= MAX_SIDE for side in texts.size):
        values["width"], values["height"] = texts.size
    if use == "init_image":
        values = {column: values[column] for column in OF_INIT if column in values} | {"init_image": name}
    elif use == "vary":
        values = {column: value for column, value in values.items() if column not in OF_NOISE}
    elif values.get("seed") is not None:
        # The seed is this picture's.
        values |= {"candidates": 1, "keep": 1}
    carried = {TOOL: found.tool} if found.tool else {}
    if unread:
        carried[UNREAD] = json.dumps(unread, ensure_ascii=False)
    return {"id": name, **values, **carried}, notes, own.images if own and use != "init_image" else {}


def _read(texts: Texts) -> tuple[Described, Own | None]:
    """Return the findings in a picture's metadata, and promptmill's own where it wrote them in full."""
    own = texts.texts.get(REQUEST_TEXT)
    if own is None:
        return described(texts.texts), None
    try:
        read: Own = read_request(own)
    except OwnTextError as error:
        said = described(texts.texts)
        lacks = f"picture: {error}; what web UIs read is taken over"
        return Described(OWN_TOOL, said.values, said.unread, notes=(*said.notes, lacks)), None
    more = ("picture: a later promptmill made it, whose columns are not all known; picture_unread names them",)
    return Described(OWN_TOOL, dict(read.values), dict.fromkeys(read.unknown, ""), notes=more if read.unknown else ()), read


def hash_of_pictures(file: PicturesFile) -> str:
    """Return a SHA-256, in hex, over the names of pictures, what their metadata say, and what is done with them."""
    digest = hashlib.sha256(json.dumps(["pictures", file.use]).encode())
    for row in rows_of_pictures(file):
        digest.update(json.dumps([row.values, row.broken], ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
