"""The pages lead where they say they lead, and name what the code has."""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from promptmill.configs.columns import COLUMNS
from promptmill.configs.model import Kernels, Model
from promptmill.configs.parameters import Defaults
from promptmill.configs.prompts import Prompts
from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.schema import Config, Ranking, Runtime, Shards
from promptmill.jobs.cli import COMMANDS
from promptmill.jobs.running.metrics import METRICS
from promptmill.manifests.requests import KNOWN_COLUMNS
from promptmill.manifests.sources import READERS

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "docs/", "examples/", "examples/*/", "embedded/weights/")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}*.md"))
FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}[^\n]*\n+)+")
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


def prose(page: Path) -> str:
    """The text of a page without its code."""
    text = INDENTED.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    return CODE.sub("`", text)


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z+]+:", link)]


def anchors(page: Path) -> set[str]:
    """The headings of a page as anchors that a repository's viewer and the site's builder both make."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in HEADING.findall(text)]
    viewer = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    plain = (unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode() for heading in headings)
    site = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}
    return viewer & site


def wrong(page: Path) -> Iterator[str]:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            yield f"{link}: leads nowhere"
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_anchor_leads_somewhere(page):
    assert list(wrong(page)) == []


def test_links_that_lead_nowhere_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_docs.ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# A `word`, and more\n\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    good = "[a](there.md) [b](there.md#a-word-and-more) [c](https://elsewhere.example/x.md) `[d](code.md)`\n\n    [e](code.md)\n"
    page.write_text(good)
    assert list(wrong(page)) == []
    page.write_text(f"{good}\n[f](gone.md) [g](there.md#no-heading) [h](#here) ![i](i.png) [j](../outside.md) [`k`](k.md)\n")
    assert [line.partition(":")[0] for line in wrong(page)] == [
        "gone.md", "there.md#no-heading", "#here", "i.png", "../outside.md", "k.md"
    ]  # fmt: skip


def test_the_index_and_the_site_have_every_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = {link.partition("#")[0] for link in links(ROOT / "docs" / "index.md")}
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or page.name in index, f"docs/index.md lacks {page.name}"
        assert f"docs/{page.name}\n" in nav, f"mkdocs.yml lacks docs/{page.name}"
    examples = {link.partition("#")[0] for link in links(ROOT / "examples" / "README.md")}
    for page in (ROOT / "examples").glob("*/README.md"):
        assert f"{page.parent.name}/README.md" in examples, f"examples/README.md lacks {page.parent.name}"
        assert f"examples/{page.parent.name}/README.md\n" in nav, f"mkdocs.yml lacks {page.parent.name}"
    assert yaml.safe_load(nav)["strict"] is True


def named(page: str, section: str | None = None) -> set[str]:
    """What stands as code in the first cells of a page's tables, or of those under one heading; a cell may name several things."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if section:
        text = re.split(r"^#+ ", text.split(f"\n## {section}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("section", "model"),
    [
        ("The top level", Config),
        ("model", Model),
        ("model.scheduler_options", SchedulerOptions),
        ("defaults", Defaults),
        ("prompts", Prompts),
        ("ranking", Ranking),
        ("shards", Shards),
        ("runtime", Runtime),
    ],
)
def test_the_page_on_configs_has_each_key_and_no_other(section, model):
    keys = set(model.model_fields)
    if model is Model:
        keys = keys - {"kernels"} | {f"kernels.{key}" for key in Kernels.model_fields}
    assert named("config.md", section) == keys


def test_the_page_on_manifests_has_each_column_and_format():
    text = (ROOT / "docs" / "manifests.md").read_text(encoding="utf-8")
    assert [name for name in KNOWN_COLUMNS if f"`{name}`" not in text] == []
    assert named("manifests.md", "Formats") == set(READERS)


def test_the_page_on_datasets_has_each_column():
    assert {column.name for column in COLUMNS} - named("datasets.md", "Columns") == set()


def test_the_page_on_commands_has_each_command_and_no_other():
    cells = {name.split()[0] for name in named("commands.md") if name[0].islower()}
    assert cells == set(COMMANDS)


def test_the_page_on_models_has_each_preset():
    assert named("models.md", "Presets") == {path.stem for path in (ROOT / "configs" / "presets").glob("*.yaml")}


def test_the_page_on_models_has_each_scheduler_with_what_the_table_says_of_it():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").split("\n## Schedulers\n")[1].split("\n## ")[0]
    assert named("models.md", "Schedulers") == set(SCHEDULERS)
    rows = re.findall(r"^\| (`.+?) \| .+ \| (.*) \| (.+) \|$", text, re.MULTILINE)
    for cell, noise, evaluations in rows:
        for name in re.findall(r"`([^`]+)`", cell):
            kind = SCHEDULERS[name]
            assert kind.stochastic == (noise == "yes" or (noise == "the second" and name.endswith("_a"))), name
            assert kind.takes_eta == ("eta" in noise), name
            said = {"n": 7, "n + 1": 8, "2n - 1": 13}[evaluations]
            assert kind.evaluations(7) == said, name


def test_the_page_on_metrics_has_each_metric_with_its_meaning():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = {
        metric.name: f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} |"
        for metric in METRICS
    }
    assert [name for name, row in rows.items() if row not in text] == []
    assert {name for name in named("metrics.md", "The metrics") if name.startswith("promptmill_")} == set(rows)


def recipes() -> dict[str, list[str]]:
    """The recipes of CONTRIBUTING.md: the files of promptmill that each names in its list."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## Recipes\n")[1].split("\n## ")[0]
    parts = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: re.findall(r"^- (.+)", part, re.MULTILINE) for part in parts}


def test_a_recipe_names_three_files_at_most_and_they_are_there():
    assert len(recipes()) >= 10
    for recipe, files in recipes().items():
        assert 1 <= len(files) <= 3, recipe
        for file in (match[1] for line in files if (match := re.match(r"`([^`]+)`", line))):
            path = ROOT / file
            assert path.exists() or ("NAME" in file and path.parent.is_dir()), f"{recipe}: there is no {file}"
