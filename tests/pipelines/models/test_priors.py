"""A prior fits its decoder, or is refused in one line before anything is loaded; sizes are those that both stages keep."""

import json
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from promptmill.configs.model import Model
from promptmill.configs.parameters import Defaults
from promptmill.configs.weights import Weights
from promptmill.manifests.requests import RowError, make_request
from promptmill.manifests.rows import Row
from promptmill.manifests.rules import Rules
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.family_sizes import staged_multiple
from promptmill.pipelines.models.identity import model_identity
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.evaluations import Counting, evaluations
from tests.pipelines.plain import request
from tests.pipelines.tiny_stages import STAGES


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    return {name: make(folder / name) for name, make in STAGES.items()}


def of(base, prior):
    return Model(base=str(base), prior=None if prior is None else Weights(source=str(prior)))


def refusal(model):
    def look():
        read_facts(model)
        check_fits(model)

    with pytest.raises(ModelError) as caught:
        look()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", STAGES)
def test_a_decoder_without_its_prior_and_a_prior_of_another_family_are_refused(places, name):
    base, wanted = places[name], family_of(json.loads((places[name] / "model_index.json").read_text())["_class_name"]).prior
    assert f"decodes what a {wanted} makes of a prompt; name one as model.prior" in refusal(of(base, None))
    other = next(place for one, place in places.items() if one[:10] != name[:10])
    assert refusal(of(base, other / "prior")).endswith(f"needs a {wanted}")
    assert refusal(of(base, base / "scheduler")).endswith("has no model_index.json; is it a model in diffusers' format?")


def test_a_prior_by_itself_and_a_prior_beside_a_model_that_reads_prompts_are_refused(places, made):
    assert "name it as model.prior, beside the decoder" in refusal(of(places["kandinsky22"] / "prior", None))
    assert "which reads prompts itself; leave it out" in refusal(of(made("sd"), places["kandinsky22"] / "prior"))


@pytest.mark.parametrize("name", STAGES)
def test_a_prior_whose_embeddings_have_another_width_is_refused(places, name, tmp_path):
    fitting = of(places[name], places[name] / "prior")
    read_facts(fitting)
    check_fits(fitting)
    (tmp_path / "prior").mkdir()
    config = json.loads((places[name] / "prior" / "prior" / "config.json").read_text())
    wider = {key: 48 for key in ("embedding_dim", "in_channels", "c_in") if key in config}
    (tmp_path / "prior" / "config.json").write_text(json.dumps({**config, **wider}))
    (tmp_path / "model_index.json").write_text((places[name] / "prior" / "model_index.json").read_text())
    assert "is for another base: its embeddings have 48 values" in refusal(of(places[name], tmp_path))


def test_what_a_prior_does_not_go_with_is_said_by_the_config(places):
    x = {"source": "./x"}
    for name, value in {"vae": x, "controlnets": {"canny": x}, "quantize": {"unet": "int8"}}.items():
        with pytest.raises(ValidationError, match=f"a prior does not go with {name}"):
            Model(base="./base", prior=Weights(source="./prior"), **{name: value})
    with pytest.raises(ValidationError, match="prior does not go with offload"):
        Model(base="./base", prior=Weights(source="./prior"), offload=True)


def test_a_vae_in_place_of_one_that_has_another_name_is_refused(places, made):
    with pytest.raises(ModelError, match="has no vae that could be replaced"):
        check_fits(Model(base=str(places["kandinsky22"]), vae=Weights(source=f"{made('sd')}/vae")))


def test_a_prior_is_part_of_the_identity_of_a_model(places):
    base, ranking = places["kandinsky22"], SimpleNamespace(sources=dict)
    with_it, without = (model_identity(of(base, prior), ranking) for prior in (base / "prior", None))
    assert with_it.keys() - without.keys() == {"model.prior"} and with_it["model.prior"].startswith("sha256:")


@pytest.mark.parametrize(
    ("smaller", "larger", "multiple"),
    [(42.67, 10.67, 128), (10.67, 2.67, 32), (None, None, 128)],
    ids=["real", "tiny", "unsaid"],
)
def test_sides_are_multiples_of_what_both_roundings_keep(smaller, larger, multiple):
    found = staged_multiple({"latent_dim_scale": larger}, {"resolution_multiple": smaller}, 8)
    assert found == multiple


def test_sides_of_kandinsky_are_multiples_of_the_square_of_what_its_vae_makes_smaller(places):
    assert read_facts(of(places["kandinsky22"], places["kandinsky22"] / "prior")).multiple == 4**2


@pytest.mark.parametrize(
    ("scale", "of_prior", "negative", "rows"),
    [
        (4.0, 4.0, "", 2 * 3 + 2 * 5),
        (4.0, 4.0, "blue", 2 * 3 + 4 * 5),
        (4.0, 1.0, "blue", 2 * 3 + 2 * 5),
        (1.0, 4.0, "blue", 3 + 4 * 5),
        (1.0, 1.0, "blue", 3 + 5),
    ],
)
def test_a_negative_prompt_that_has_an_effect_doubles_the_rows_of_a_prior_that_embeds_it(scale, of_prior, negative, rows):
    one = request(steps=3, guidance_scale=scale, negative_prompt=negative, prior_steps=5, prior_guidance_scale=of_prior)
    assert evaluations(one, Counting(negative_too=True)) == rows


def test_a_prior_of_unclip_takes_two_steps_at_least_and_a_row_with_one_is_bad(places):
    row = Row("m", 1, {"prompt": "a", "prior_steps": 1})
    for name, least in (("kandinsky22", 2), ("stable-cascade", 1)):
        facts = read_facts(of(places[name], places[name] / "prior"))
        assert facts.least_prior_steps == least
        rules = Rules(Defaults(), multiple=1, further=facts.further, least_prior_steps=least)
        if least == 1:
            assert make_request(row, 1, rules).prior_steps == 1
        else:
            with pytest.raises(RowError, match=r"prior_steps: 1 is below 2, the fewest that the model's prior takes"):
                make_request(row, 1, rules)
