"""Plots of sweeps: the images at their labels, numbers in their order, with scores, and what cannot be drawn is said."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import promptmill
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.report.making import make
from promptmill.jobs.report.page import page
from promptmill.jobs.showing.grid import Axes, Cell, GridError, Plot, grid, label, parse_axes, plots
from tests.jobs.running.test_run import HERE, rendered


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    row = {"id": "a", "prompt": "a small red circle at the left on a white background"}
    axes = {"steps": [12, 2], "guidance_scale": [1, 7.5], "scheduler": ["euler", "ddim"]}
    (folder / "m.jsonl").write_text(json.dumps({**row, "sweep": axes}) + "\n")
    settings = [f"manifest={folder / 'm.jsonl'}", "defaults.candidates=2", "model.batch=8", HERE]
    rendered(load("embedded", settings), folder / "out")
    return folder / "out"


def test_each_cell_has_the_best_image_of_its_values_and_numbers_stand_by_size(out):
    made = list(plots(str(out), Axes("steps", "guidance_scale", "scheduler")))
    assert [plot.title for plot in made] == ["a · scheduler ddim", "a · scheduler euler"]
    images = {
        tuple(row[name] for name in ("scheduler", "steps", "guidance_scale")): (image, row)
        for _, image, row in promptmill.open(out).images()
    }
    for plot in made:
        assert (plot.across, plot.down) == (["2", "12"], ["1", "7.5"]) and len(plot.cells) == 4
        for (x, y), cell in plot.cells.items():
            image, row = images[plot.title.split()[-1], int(x), float(y)]
            assert np.array_equal(np.asarray(cell.image), np.asarray(image)) and cell.score == row["clip_score"]
    # In all cells the noise is the same.
    assert len({row["seed"] for _, row in images.values()}) <= 2


def test_the_command_draws_the_plot_with_or_without_further_axes(out, tmp_path):
    sizes = {}
    for axes in ("x=steps,y=guidance_scale,z=scheduler", "x=steps,y=scheduler", "x=guidance_scale"):
        done = CliRunner().invoke(main, ["sheet", str(out), "--grid", axes, "--to", str(tmp_path / "grid.png")])
        assert done.exit_code == 0 and "images in" in done.output, done.output
        sizes[axes] = Image.open(tmp_path / "grid.png").size
    assert (
        sizes["x=steps,y=guidance_scale,z=scheduler"][1]
        > 1.8 * sizes["x=steps,y=scheduler"][1]
        > 1.8 * sizes["x=guidance_scale"][1]
    )


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        ("y=steps", "lacks x; write x=COLUMN"),
        ("x=steps,y=steps", "the same column twice"),
        ("x=steps,x=seed", "not of the form"),
        ("steps", "not of the form"),
        ("x=stps", "no column 'stps'; did you mean 'steps'?"),
    ],
)
def test_axes_that_are_none_are_said_in_one_line(out, axes, problem):
    done = CliRunner().invoke(main, ["sheet", str(out), "--grid", axes, "--to", "grid.png"])
    assert done.exit_code != 0 and problem in done.output and "Traceback" not in done.output


def test_a_cell_without_an_image_is_empty_and_an_image_stands_at_its_place():
    red = Image.new("RGB", (8, 8), "red")
    made = grid([Plot("t", ["1", "2"], ["a"], {("2", "a"): Cell(red, 50.0)})], Axes("x", "y"))
    pixels = np.asarray(made)
    where = np.argwhere((pixels == (255, 0, 0)).all(-1))
    assert where[:, 1].min() > made.width // 2 and len(where) == 160 * 160
    assert (label(7.0), label(7.5), label("euler"), label(None)) == ("7", "7.5", "euler", "None")
    with pytest.raises(GridError):
        parse_axes("x")


def test_the_report_has_the_plots_with_the_images_and_scores_of_their_cells(out):
    report = make(str(out))
    assert [plot.title for plot in report.sweeps] == ["a, guidance_scale 1", "a, guidance_scale 7.5"]
    rows = {row["key"]: row for _, _, row in promptmill.open(out).images()}
    for plot in report.sweeps:
        assert (plot.x, plot.y) == ("steps", "scheduler") and len(plot.cells) == 4
        for (x, y), key in plot.cells.items():
            row = rows[key]
            assert (label(row[plot.x]), label(row[plot.y]), plot.title) == (x, y, f"a, guidance_scale {row['guidance_scale']:g}")
            assert report.shown[key].image
    html = page(report).decode()
    assert html.count('<section id="sweeps">') == 1 and 'href="#sweeps"' in html
    section = html.split('<section id="sweeps">')[1].split("</section>")[0]
    assert section.count("<img ") == 8
    assert all(f"{rows[key]['clip_score']:.1f}" in section for plot in report.sweeps for key in plot.cells.values())


def test_a_report_of_a_dataset_that_swept_nothing_has_no_plots(clean_planned):
    _, out = clean_planned
    report = make(str(out))
    assert report.sweeps == [] and "sweeps" not in page(report).decode()
