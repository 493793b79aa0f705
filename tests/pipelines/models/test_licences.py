import pytest

from promptmill.configs.model import Model
from promptmill.configs.schema import Ranking
from promptmill.pipelines.models import licences as module
from promptmill.pipelines.models.licences import licences
from promptmill.pipelines.work.errors import ModelError

RANKING = Ranking(model="local-dir:./embedded/weights/clip")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def base(folder):
    return licences(Model(base=str(folder)), RANKING).get("model.base")


def test_the_embedded_family_is_under_its_own_licence_each_part_of_it():
    controlnets = {"canny": {"source": "./embedded/weights/controlnet-canny"}}
    found = licences(Model(base="./embedded/weights/pipeline", controlnets=controlnets), RANKING)
    assert found == dict.fromkeys(("model.base", "model.controlnets.canny", "ranking.model"), "apache-2.0")


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("license: mit", "mit"),
        ("license: other\nlicense_name: our-own", "our-own"),
        ("license: other", "other"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("tags: [a]", None),
        ("license: {", None),
        ("- a list", None),
    ],
)
def test_a_cards_licence_is_taken_as_it_says(folder, front, said):
    (folder / "README.md").write_text(f"---\n{front}\n---\n\n# A model\n")
    assert base(folder) == said


def test_the_card_around_a_part_speaks_for_it_and_a_licence_file_where_there_is_no_card(folder):
    assert base(folder) is None
    (folder / "LICENSE").write_text("\n   Apache License\n   Version 2.0\n")
    assert base(folder) == "Apache License"
    (folder.parent / "README.md").write_text("---\nlicense: bsd\n---\n")
    assert base(folder) == "bsd"


def test_a_repository_without_a_card_is_of_unknown_licence_and_one_with_is_asked_at_its_revision(tmp_path, monkeypatch):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: openrail++\n---\n")
    asked = []

    def hub_file(repository, name, revision):
        asked.append((repository, name, revision))
        if repository == "owner/other":
            raise ModelError("not there")
        return card

    monkeypatch.setattr(module, "hub_file", hub_file)
    model = Model(base="owner/base", revision="a" * 40, vae={"source": "owner/other", "revision": "b" * 40})
    ranking = Ranking(model="hf-hub:owner/clip", revision="c" * 40)
    assert licences(model, ranking) == {"model.base": "openrail++", "ranking.model": "openrail++"}
    assert asked == [
        ("owner/base", "README.md", "a" * 40),
        ("owner/other", "README.md", "b" * 40),
        ("owner/clip", "README.md", "c" * 40),
    ]
