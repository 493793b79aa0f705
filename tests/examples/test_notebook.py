"""The notebook runs in Jupyter, as it lies in the repository, and its cells come to what they say."""

import json
import signal

import nbformat
import pytest
from nbclient import NotebookClient

from tests.examples.readme import ROOT

NOTEBOOK = ROOT / "examples" / "first_dataset.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    return NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_the_notebook_comes_to_what_it_says(executed):
    found = json.loads(printed(executed.cells[-1]))
    assert found.pop("report") > 10_000
    said = found.pop("said")
    assert "row 2: steps: " in said and "\n" not in said
    assert found == {
        "planned": 9,
        "unchanged": True,
        "scored": 15,
        "kept": {topic: [64, 64] for topic in ("circles", "squares", "pairs", "crosses")},
        "problems": [],
        "killed": -signal.SIGKILL,
        "resumed": 4,
    }


def test_images_and_progress_are_shown_in_jupyter(executed):
    shown = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 1
    bars = [output.text for output in shown if output.output_type == "stream" and output.name == "stderr"]
    widgets = [output for output in shown if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert widgets or any("9/9" in text for text in bars)


def test_the_notebook_lies_here_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
