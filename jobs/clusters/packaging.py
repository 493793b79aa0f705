"""Packs the files of a submitted job: promptmill's own folders, the resolved config, manifest and images; nothing else.

    PACKAGE/
      promptmill/actors … promptmill/shards                       as they are here, without caches
      promptmill/pyproject.toml promptmill/requirements.lock
      given/config.yaml                                           resolved, its manifest named from the package
      given/000/prompts.jsonl …                                   manifests given by a relative path, with the images that rows name

A row may name any file, and a stranger may have written the row. So only files that are images by their content are packed, and
nothing hidden.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from promptmill.configs.errors import shown
from promptmill.configs.listed_manifests import Pictures, PromptLists
from promptmill.configs.made_manifests import MadeManifest
from promptmill.configs.own_files import LOCK, PROJECT, ROOT
from promptmill.configs.own_files import PACKAGE as OWN_PACKAGE
from promptmill.configs.parameters import MAX_LIST
from promptmill.configs.schema import Config
from promptmill.configs.weights import LOCAL_DIR, OpenClip, Weights, is_folder
from promptmill.configs.yaml_values import dump
from promptmill.jobs.planning.plan import PlanError
from promptmill.manifests.checking import IMAGE_COLUMNS
from promptmill.manifests.drawings import is_inline
from promptmill.manifests.embeddings import is_embedding
from promptmill.manifests.finding import find, partition_folders
from promptmill.manifests.images import ImageError, Roots, is_image, locate, roots_of
from promptmill.manifests.made_rows import with_lines
from promptmill.manifests.requests import make_request
from promptmill.manifests.rows import RowError
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files, read_rows
from promptmill.manifests.tars import IN_TAR
from promptmill.shards.storage import is_local, local_path

FOLDERS = ("actors", "configs", "embedded", "jobs", "manifests", "pipelines", "shards")
FILES = (PROJECT, LOCK)
PACKAGE = "promptmill"
MOST_BYTES = 500_000_000  # Ray takes 512 MiB
GIVEN = "given"
CONFIG = f"{GIVEN}/config.yaml"


def pack(config: Config, output: str, folder: Path) -> list[str]:
    """Pack the files of a job into an empty folder, and return a line for each file that a row names and that stays here.

    Args:
        config: The config, with relative paths from the current directory, or from promptmill's own as the presets have them.
        output: The run's output.
        folder: Becomes the job's working directory, on every node a copy of its own.

    Raises:
        PlanError: Paths would not exist on the nodes (a line each), or the package is too large.
    """
    problems = [*_unreachable_output(output), *_unreachable_weights(config)]
    if config.runtime.workers == "here":
        problems.append("runtime.workers: here: a job that is submitted has its workers on the cluster; set ray")
    shipped, left = list[str](), list[str]()
    for pattern in config.patterns:
        try:
            if isinstance(config.manifest, Pictures):
                problems += _unshipped(pattern)
            elif isinstance(config.manifest, PromptLists):
                shipped += _lists(pattern, folder, len(shipped))
            else:
                shipped += _manifest(pattern, config, folder, len(shipped), left)
        except ManifestError as error:
            problems.append(str(error))
    made: MadeManifest | Pictures | PromptLists | None = None
    if isinstance(config.manifest, Pictures):
        made = config.manifest
    if isinstance(config.manifest, PromptLists):
        made = config.manifest.model_copy(update={"lists": tuple(shipped)})
    if isinstance(config.manifest, MadeManifest):
        try:
            made = with_lines(config.manifest)
        except ManifestError as error:
            problems.append(str(error))
        if named := sorted(IMAGE_COLUMNS & config.manifest.columns.keys()):
            left.append(f"manifest.columns.{named[0]}: images that made rows name have to lie where every node sees them")
    for root in config.runtime.image_roots:
        if "://" not in root and not Path(root).is_absolute():
            problems.append(f"runtime.image_roots: {root}: a relative folder of this machine; {_ELSEWHERE}")
    wildcards = config.prompts.wildcards if config.prompts else None
    if wildcards is not None and not Path(wildcards).is_absolute():
        problems.append(f"prompts.wildcards: {wildcards}: a relative folder of this machine; {_ELSEWHERE}")
    if problems:
        raise PlanError(problems)
    _own(folder)
    resolved = config.model_copy(update={"manifest": made or tuple(shipped), "output": output})
    (folder / CONFIG).parent.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(dump(resolved.model_dump(mode="json")))
    if (whole := sum(size for _, size in packed(folder))) > MOST_BYTES:
        raise PlanError([f"{whole / 1e6:,.0f} MB are too much to ship, at most {MOST_BYTES / 1e6:,.0f}; {_ELSEWHERE}"])
    return left


def packed(folder: Path) -> list[tuple[str, int]]:
    """Return the files that `pack` has put into a folder, by name, with their sizes in bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


def _own(folder: Path) -> None:
    """Pack promptmill's own files, and never a file elsewhere that a link in its folders leads to."""
    caches = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")

    def left_out(place: str, names: list[str]) -> set[str]:
        links = {name for name in names if (path := Path(place, name)).is_symlink() and not (path.is_file() and _is_own(path))}
        return {*caches(place, names), *links}

    own = folder / PACKAGE
    own.mkdir()
    for module in OWN_PACKAGE.glob("*.py"):
        shutil.copy2(module, own / module.name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, own / name, ignore=left_out)
    for file in FILES:
        shutil.copy2(file, own / file.name)


_ELSEWHERE = "put it where all nodes reach it (s3://…, or an absolute path of a shared file system)"


def _unshipped(pattern: str) -> Iterator[str]:
    """Yield a problem for pictures that lie in a relative folder, which is on this machine alone."""
    if "://" not in pattern and not Path(pattern).is_absolute():
        yield f"manifest.pictures: {pattern}: a relative folder of this machine; {_ELSEWHERE}"


def _lists(pattern: str, folder: Path, number: int) -> list[str]:
    """Pack the prompt lists of a pattern, and return their places; lists that every node reaches stay where they are."""
    if "://" in pattern or Path(pattern).is_absolute():
        return [pattern]
    shipped = list[str]()
    for file in find(pattern):
        if _hidden(Path(file).resolve(), Path.cwd().resolve()):
            raise ManifestError(f"{file}: hidden, or a link to a hidden file, which is not shipped; copy it under another name")
        place = folder / GIVEN / f"{number + len(shipped):03d}" / Path(file).name
        place.parent.mkdir(parents=True)
        shutil.copy2(file, place)
        shipped.append(place.relative_to(folder).as_posix())
    return shipped


def _unreachable_output(output: str) -> Iterator[str]:
    # A relative output would lie in the job's own copy of the package, and vanish with the copy.
    if is_local(output) and not local_path(output).is_absolute():
        yield f"--out {output}: a relative path of this machine; {_ELSEWHERE}"


def _unreachable_weights(config: Config) -> Iterator[str]:
    """Yield a problem for local weights that are neither shipped nor given by an absolute path, which the nodes are asked for."""
    for where, source in _folders(config).items():
        if not Path(source).is_absolute() and not _is_own(ROOT / source):
            yield f"{where}: {source}: a folder of this machine that is not shipped; {_ELSEWHERE}, or name a hub repository"


def _folders(config: Config) -> dict[str, str]:
    """Return the local folders and files of weights, by their place in the config."""
    return {where: folder for where, (_, source) in config.weights().items() if (folder := _folder(source)) is not None}


def _folder(source: OpenClip | Weights) -> str | None:
    """Return the folder or file of a set of weights; None where it is on the hub."""
    if isinstance(source, Weights):
        return source.source if is_folder(source.source) else None
    return source.model.removeprefix(LOCAL_DIR) if source.model.startswith(LOCAL_DIR) else None


def _is_own(place: Path) -> bool:
    """Return whether a path is shipped, as a part of promptmill's own folders."""
    parts = place.resolve().relative_to(ROOT).parts if place.resolve().is_relative_to(ROOT) else ()
    return place.exists() and len(parts) > 1 and parts[0] in FOLDERS


def _manifest(pattern: str, config: Config, folder: Path, number: int, left: list[str]) -> Sequence[str]:
    """Return the paths by which the job finds a manifest; relative ones are shipped, with the images that their rows name.

    Raises:
        ManifestError: The manifest does not exist, is hidden, or cannot be read.
        PlanError: Its images are too large.
    """
    if "://" in pattern or Path(pattern).is_absolute():
        return [pattern]
    if _is_own(ROOT / pattern) and (not Path(pattern).exists() or Path(pattern).samefile(ROOT / pattern)):
        return [pattern]
    shipped: list[str] = []
    for file in find_files([pattern]):
        here = Path.cwd().resolve()
        if _hidden(Path(file).resolve(), here) or _hidden(Path(file).absolute(), here):
            raise ManifestError(f"{file}: hidden, or a link to a hidden file, which is not shipped; copy it under another name")
        # Each manifest has its own folder, since rows of two may give two images the same name.
        own = folder.joinpath(GIVEN, f"{number + len(shipped):03d}", *partition_folders(str(Path(file).parent)))
        place = own / Path(file).name
        place.parent.mkdir(parents=True)
        shutil.copy2(file, place)
        _images(Path(file), config, place.parent, left)
        shipped.append(place.relative_to(folder).as_posix())
    return shipped


def _hidden(place: Path, base: Path) -> bool:
    """Return whether a path goes through a name that begins with a dot, below the part that it shares with `base`."""
    common = next((i for i, (a, b) in enumerate(zip(place.parts, base.parts, strict=False)) if a != b), len(base.parts))
    return any(part.startswith(".") for part in place.parts[common:])


def _images(manifest: Path, config: Config, folder: Path, left: list[str]) -> None:
    """Pack the images that a manifest's rows name beside it; lines on other files go into `left`. Other faults of rows are the
    plan's.
    """
    whole, named = 0, set[str]()
    base = manifest.absolute().parent
    roots = roots_of([str(manifest)], (), Roots(()).max_pixels)
    model = config.model
    loras, references = tuple(lora.name for lora in model.loras), tuple(model.references)
    rules = Rules(
        config.defaults,
        tuple(model.controlnets),
        loras,
        multiple=1,
        ignored=("prompt",),  # by some models, whose rows may have none
        references=references,
        pictures=1 if references else 1 + MAX_LIST,  # by some models alone
        boxes=None,  # likewise
        faces=dict.fromkeys(model.faces),
        pictured_faces=model.pictured_faces,
    )
    for number, row in enumerate(read_rows([str(manifest)]), 1):
        try:
            request = make_request(row, number, rules)
        except RowError:
            continue
        for _, path in request.images():
            if is_inline(path) or "://" in path or IN_TAR in path or Path(path).is_absolute() or ".." in Path(path).parts:
                continue
            there = folder / path
            if path in named or there.exists():
                continue
            named.add(path)
            try:
                here = Path(locate(path, roots))
            except ImageError:
                continue
            if _hidden(here, base) or _hidden(base / path, base):
                left.append(f"{row.name}: {shown(path)} is hidden, and stays here")
                continue
            if not is_image(here) and not is_embedding(here):
                left.append(f"{row.name}: {shown(path)} is no image by its content, and stays here")
                continue
            if (whole := whole + here.stat().st_size) > MOST_BYTES:
                raise PlanError([f"{manifest}: its images are more than {MOST_BYTES / 1e6:,.0f} MB; {_ELSEWHERE}"])
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(here, there)


def shared_paths(config: Config) -> list[str]:
    """Return the absolute paths of manifests, image folders and weights, which every node has to have; others are shipped."""
    named = [*config.patterns, *config.runtime.image_roots, *_folders(config).values()]
    if (shipped := Path(GIVEN).absolute()).is_dir():
        named.append(str(shipped))  # the driver's path: every node's own copy has to lie in the same place
    return [path for path in named if path.startswith("/") and not any(character in path for character in "*?[")]


def listing(config: Config, output: str) -> tuple[list[str], list[str]]:
    """Return lines on the files that a job would take along, and on those that would stay here.

    Promptmill's own folders are summed up; of everything else each file is listed.

    Raises:
        PlanError: As `pack`.
    """
    with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
        left, files = pack(config, output, Path(folder)), packed(Path(folder))
    sums: dict[str, tuple[int, int]] = {}
    for name, size in files:
        whole = name.partition("/")[0]
        key = f"{whole}/" if whole == PACKAGE else name
        count, bytes = sums.get(key, (0, 0))
        sums[key] = count + 1, bytes + size
    lines = [
        f"{bytes:>12,}  {shown(key, 1000)}{f' ({count:,} files of promptmill)' if key.endswith('/') else ''}"
        for key, (count, bytes) in sums.items()
    ]
    return [*lines, f"{sum(size for _, size in files):>12,}  bytes would be shipped"], left
