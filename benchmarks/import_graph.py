"""Counts the rooms of a checkout, the imports between them, and their circles: what docs/architecture.md shows before and after.

    python -m benchmarks.import_graph [CHECKOUT] [--mermaid FOLDER]

prints three tables in Markdown: what is in each top-level folder, what is in each folder, and which top-level folder imports which
other. A room is what lies directly in a top-level folder: a folder or a module. An arrow is a pair of rooms of which one
imports the other, however often. A circle is a set of rooms or folders that all reach each other. `--mermaid jobs` prints the rooms
and arrows of one folder as a diagram instead.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import click
import grimp

FOLDERS = ("jobs", "actors", "pipelines", "manifests", "shards", "configs", "embedded")
ROOT = Path(__file__).parents[1]

Arrow = tuple[str, str]


class Checkout:
    """Holds the modules of a checkout and their imports, by names without `promptmill.`: checkouts before and after it look alike.

    Args:
        path: The checkout's folder.
    """

    def __init__(self, path: Path):
        self.path = path
        one_name = (path / "src" / "promptmill" / "__init__.py").exists()
        # Relative entries and other checkouts' folders would come first otherwise.
        sys.path.insert(0, str(path / "src" if one_name else path))
        graph = grimp.build_graph(*(["promptmill"] if one_name else FOLDERS), cache_dir=None)
        self.modules = sorted(name for module in graph.modules if (name := _short(module)) and name.split(".")[0] in FOLDERS)
        self.imports = {
            (_short(module), _short(imported))
            for module in graph.modules
            for imported in graph.find_modules_directly_imported_by(module)
        }

    def lines(self, module: str) -> int:
        """Return how many lines a module has."""
        return len(self._file(module).read_text(encoding="utf-8").splitlines())

    def folder(self, module: str) -> str:
        """Return the folder that a module lies in; that of a package is its own."""
        return module if self._file(module).name == "__init__.py" else module.rpartition(".")[0]

    def arrows(self, place: Callable[[str], str]) -> set[Arrow]:
        """Return the pairs of different places of which one imports the other. Modules of the place "" are left out."""
        pairs = {(place(one), place(other)) for one, other in self.imports if {one, other} <= set(self.modules)}
        return {(one, other) for one, other in pairs if one and other and one != other}

    def _file(self, module: str) -> Path:
        path = self.path.joinpath(*module.split("."))
        return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def _short(module: str) -> str:
    return module.removeprefix("promptmill").removeprefix(".")


def room(module: str) -> str:
    """Return the room that a module is in or is; "" for the `__init__` of a top-level folder."""
    return ".".join(module.split(".")[:2]) if "." in module else ""


def circles(arrows: Collection[Arrow]) -> list[list[str]]:
    """Return the sets of places that all reach each other, each in alphabetical order."""
    there = {one for arrow in arrows for one in arrow}
    reached = {one: set(_reached(one, arrows)) for one in there}
    found = {frozenset({one} | {other for other in reached[one] if one in reached[other]}) for one in there}
    return sorted(sorted(group) for group in found if len(group) > 1)


def _reached(start: str, arrows: Collection[Arrow]) -> Iterator[str]:
    waiting, seen = [start], {start}
    while waiting:
        one = waiting.pop()
        for other in (end for begin, end in arrows if begin == one and end not in seen):
            seen.add(other)
            waiting.append(other)
            yield other


def tables(checkout: Checkout) -> Iterator[str]:
    """Yield the lines of the three tables, and of the circles of folders behind the second."""
    yield "| folder | modules | lines | rooms | arrows between them | rooms in circles |"
    yield "|---|---:|---:|---:|---:|---:|"
    for top in FOLDERS:
        own = [module for module in checkout.modules if module.split(".")[0] == top]
        arrows = {arrow for arrow in checkout.arrows(room) if all(end.split(".")[0] == top for end in arrow)}
        rooms, lines = {room(module) for module in own} - {""}, sum(map(checkout.lines, own))
        yield f"| {top} | {len(own)} | {lines:,} | {len(rooms)} | {len(arrows)} | {sum(map(len, circles(arrows)))} |"
    yield ""
    yield "| folder | modules | lines |"
    yield "|---|---:|---:|"
    folders: dict[str, list[str]] = {}
    for module in checkout.modules:
        folders.setdefault(checkout.folder(module), []).append(module)
    for folder, own in sorted(folders.items(), key=lambda item: (FOLDERS.index(item[0].split(".")[0]), item[0])):
        yield f"| {folder.replace('.', '/')}/ | {len(own)} | {sum(map(checkout.lines, own)):,} |"
    yield ""
    found = circles(checkout.arrows(checkout.folder))
    said = "; ".join(", ".join(f"{one.replace('.', '/')}/" for one in group) for group in found)
    yield f"Circles of folders: {said or 'none'}."
    yield ""
    yield "| folder | imports |"
    yield "|---|---|"
    between = checkout.arrows(lambda module: module.split(".")[0])
    for top in FOLDERS:
        yield f"| {top} | {', '.join(other for other in FOLDERS if (top, other) in between) or '-'} |"


def mermaid(checkout: Checkout, top: str) -> Iterator[str]:
    """Yield a diagram of the rooms of a top-level folder and of the arrows between them."""
    yield "flowchart TD"
    for one, other in sorted(checkout.arrows(room)):
        if one.split(".")[0] == other.split(".")[0] == top:
            yield f"    {one.partition('.')[2]} --> {other.partition('.')[2]}"


@click.command(help=__doc__.splitlines()[0])
@click.argument("path", default=ROOT, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="[CHECKOUT]")
@click.option("--mermaid", "top", type=click.Choice(FOLDERS), help="Print the rooms of one folder as a diagram.")
def main(path: Path, top: str | None) -> None:
    """Print the tables or the diagram of a checkout."""
    checkout = Checkout(path.resolve())
    for line in mermaid(checkout, top) if top else tables(checkout):
        print(line)


if __name__ == "__main__":
    main()
