import pytest

from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.configs.schema import Config, Ranking

PICK = "{name: pick, kind: preference, source: ./pick}"
TASTE = "{name: taste, kind: head, source: ./taste.safetensors, reads: pick, floor: 5}"


def test_what_is_not_declared_leaves_no_trace_in_the_render_config():
    ranking = load("embedded").render_config()["ranking"]
    assert list(ranking) == ["model", "pretrained", "revision", "batch", "min_score"]


def test_what_is_declared_is_in_the_render_config_and_survives_it():
    config = load("embedded", [f"ranking.scorers=[{PICK}, {TASTE}]", "ranking.weights={pick: 2}", "ranking.diversity={hash: 6}"])
    assert Config.model_validate(config.model_dump(mode="json")) == config
    written = config.render_config()["ranking"]
    assert [scorer["name"] for scorer in written["scorers"]] == ["pick", "taste"]
    assert (written["weights"], written["diversity"]["hash"], written["scorers"][1]["floor"]) == ({"pick": 2}, 6, 5)


def test_only_weights_that_are_given_count_and_without_any_clip_does():
    declared = load("embedded", [f"ranking.scorers=[{PICK}]"]).ranking
    assert (Ranking().summands, declared.summands) == ({}, {"clip": 1})
    assert load("embedded", [f"ranking.scorers=[{PICK}]", "ranking.weights.pick=2"]).ranking.summands == {"pick": 2}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([f"scorers=[{PICK}]", "weights={clip: 1, pik: 2}"],
         "ranking: weights: 'pik' is no scorer; did you mean 'pick'?; there are clip, pick"),
        ([f"scorers=[{PICK}]", "weights={clip: 0, pick: 0}"], "ranking: weights are all 0, so nothing would rank"),
        ([f"scorers=[{PICK}]", "weights={clip: .inf}"], "ranking.weights.clip: input should be a finite number (found inf)"),
        (["weights={clip: 1}"], "ranking: weights are for scorers, and none are declared"),
        ([f"scorers=[{PICK}, {PICK}]"], "ranking: scorers: pick declared more than once"),
        (["scorers=[{name: pick, source: ./pick}]"], "ranking.scorers.0.kind: missing; it has to be given"),
        (["scorers=[{name: a, kind: prefrence, source: ./pick}]"],
         "ranking.scorers.0.kind: 'prefrence' is none; did you mean 'preference'?; there are open_clip, preference, head"),
        (["scorers=[{name: a, kind: preference, sorce: ./pick, source: ./p}]"],
         "ranking.scorers.0.sorce: unknown key; did you mean 'source'?"),
        ([f"scorers=[{TASTE}]"], "ranking: scorers: taste reads the embedding of 'pick', which is none; those that have one: clip"),
        (["scorers=[{name: a, kind: head, source: ./a.pth}]"],
         "ranking.scorers.0.source: only .safetensors files are read; pickles can run code (found './a.pth')"),
        (["scorers=[{name: a, kind: head, source: own/er}]"],
         "ranking.scorers.0: own/er is a hub repository and needs a revision, the full commit hash of 40 digits; "
         "a local folder is written ./own/er"),
        (["scorers=[{name: rank, kind: preference, source: ./p}]"],
         "ranking.scorers.0: name rank is promptmill's own; take another"),
        (["scorers=[{name: a, kind: preference, source: ./p, floor: 2, ceiling: 1}]"],
         "ranking.scorers.0: floor 2 is above ceiling 1, so no image could be kept"),
        (["diversity={}"], "ranking.diversity: needs embedding or hash, or both"),
        (["diversity={embedding: 1.0}"], "ranking.diversity.embedding: input should be less than 1 (found 1.0)"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(settings, says):
    with pytest.raises(ConfigError) as caught:
        load("embedded", [f"ranking.{setting}" for setting in settings])
    (problem,) = caught.value.problems
    assert problem.endswith(f": {says}")
