from pathlib import Path

import pytest

from promptmill.configs.own_files import ROOT
from promptmill.pipelines.models.sources import find_local, local_folder
from promptmill.pipelines.work.errors import ModelError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", ["owner/name", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_a_hub_repository_is_no_folder_even_where_one_of_that_name_lies(here, source):
    (here / source).mkdir(parents=True)
    assert local_folder(source) is None


@pytest.mark.parametrize("source", ["./model", "model", "./deep/er/model", "deep/er/model"])
def test_a_relative_folder_is_found_from_the_current_directory(here, source):
    (here / source).mkdir(parents=True)
    assert local_folder(source) == here / source


def test_the_current_directory_comes_before_the_root_of_the_repository(here):
    assert local_folder("./embedded/weights/clip") == ROOT / "embedded/weights/clip"
    (here / "embedded/weights/clip").mkdir(parents=True)
    assert local_folder("./embedded/weights/clip") == here / "embedded/weights/clip"


def test_an_absolute_path_and_a_file_are_taken_as_they_are(here):
    file = here / "lora.safetensors"
    file.write_bytes(b"")
    assert local_folder(str(file)) == local_folder("./lora.safetensors") == file


def test_a_folder_may_be_named_like_a_repository_where_it_can_be_nothing_else(here):
    (here / "owner/name").mkdir(parents=True)
    assert find_local("owner/name") == here / "owner/name"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("./embedded/weights/Clop", f"{ROOT}; did you mean 'clip'?"),
        ("./modle", "; did you mean 'model'?"),
        ("/nowhere/at/all", "/nowhere/at/all: no such folder"),
        ("./zzzzzz", "./zzzzzz: no such folder in "),
    ],
)
def test_a_missing_folder_is_one_line_that_says_where_it_was_sought(here, source, says):
    (here / "model").mkdir()
    with pytest.raises(ModelError) as caught:
        local_folder(source)
    message = str(caught.value)
    assert says in message and "\n" not in message
    assert (str(Path.cwd()) in message) == (not source.startswith("/"))
