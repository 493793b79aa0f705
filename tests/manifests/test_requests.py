import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.parameters import MODES, Box, Control, Defaults, Growing, Lora
from promptmill.configs.preprocessors import PREPROCESSORS
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.schema import Ranking
from promptmill.manifests import requests
from promptmill.manifests.carried import Types, cast
from promptmill.manifests.requests import Request, RowError, from_json, make_request, to_json
from promptmill.manifests.rows import Row
from promptmill.manifests.rules import Rules, ignored
from promptmill.manifests.steering import Steering
from tests.manifests.test_carried import VALUES

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
SHARE = st.floats(0, 1).filter(lambda share: share < 1)
CONTROLS = st.builds(
    lambda start, **said: Control(start=start, end=1.0, **said),
    start=SHARE,
    type=TEXT,
    image=TEXT.filter(bool),
    preprocess=st.sampled_from(sorted(PREPROCESSORS)),
    scale=st.floats(0, 10),
)
BOXES = st.builds(Box, phrase=TEXT.filter(str.strip), x0=SHARE, y0=SHARE, x1=st.just(1.0), y1=st.just(1.0))
REQUESTS = st.builds(
    Request,
    id=TEXT.filter(bool),
    prompt=TEXT,
    negative_prompt=TEXT,
    mode=st.sampled_from(MODES),
    init_image=st.none() | TEXT,
    mask_image=st.none() | TEXT,
    controls=st.lists(CONTROLS, max_size=2).map(tuple),
    strength=st.none() | st.floats(0.01, 1),
    width=st.integers(1, 1024).map(lambda side: 8 * side),
    height=st.integers(1, 1024).map(lambda side: 8 * side),
    steps=st.integers(1, 1000),
    guidance_scale=st.floats(0, 100),
    guidance_rescale=st.floats(0, 1),
    true_cfg_scale=st.none() | st.floats(0, 100),
    scheduler=st.sampled_from(list(SCHEDULERS)),
    seed=st.none() | st.integers(0, 2**32 - 1),
    candidates=st.integers(1, 10_000),
    keep=st.integers(1, 10_000),
    loras=st.lists(st.builds(Lora, name=TEXT, scale=st.floats(-10, 10)), max_size=2).map(tuple),
    carried=st.dictionaries(TEXT, VALUES, max_size=3),
    gligen_boxes=st.lists(BOXES, max_size=2).map(tuple),
)


@given(REQUESTS)
def test_a_request_survives_json(request):
    assert from_json(json.loads(json.dumps(to_json(request)))) == request


@given(REQUESTS)
def test_carried_values_are_cast_the_same_before_json_and_after(request):
    types = Types()
    problems = types.see(request.carried)
    back = from_json(json.loads(json.dumps(to_json(request))))
    if not problems:
        for name, kind in types.result().items():
            assert cast(back.carried[name], kind) == cast(request.carried[name], kind)


def test_a_request_does_not_share_what_it_was_made_from_with_its_json():
    request = make_request(
        Row("m", 1, {"prompt": "x", "controls": [{"type": "canny", "image": "a"}]}), 1, Rules(Defaults(), ("canny",))
    )
    to_json(request)["controls"][0]["type"] = "seg"
    assert request.controls[0].type == "canny"


def problems_of(rules, **values):
    with pytest.raises(RowError) as caught:
        make_request(Row("m.jsonl", 1, {"prompt": "x", **values}), 1, rules)
    return caught.value.problems


def test_rows_are_held_to_what_the_model_serves():
    inpainting = Rules(Defaults(), ("canny",), modes=("inpaint", "controlnet_inpaint"))
    assert problems_of(inpainting) == ("mode: txt2img is not served by the model; it serves inpaint, controlnet_inpaint",)
    assert make_request(Row("m", 1, {"prompt": "x", "init_image": "a", "mask_image": "b"}), 1, inpainting).mode == "inpaint"
    flowing = Rules(Defaults(), schedulers=("euler",))
    assert problems_of(flowing, scheduler="ddim") == ("scheduler: ddim does not fit the model, which takes euler",)
    fussy = Rules(Defaults(), unfit={"lcm": "lcm (LCMScheduler) has no option timestep_spacing"})
    assert problems_of(fussy, scheduler="lcm") == ("scheduler: lcm (LCMScheduler) has no option timestep_spacing",)
    assert make_request(Row("m", 1, {"prompt": "x", "scheduler": "EulerDiscreteScheduler"}), 1, flowing).scheduler == "euler"


def test_without_controlnets_a_control_is_one_problem_and_not_its_mode_another():
    rules = Rules(Defaults(), modes=("txt2img", "img2img", "inpaint"))
    (problem,) = problems_of(rules, controls=[{"type": "canny", "image": "a.png"}])
    assert problem == "controls: no ControlNet 'canny'; none is configured"


def test_a_default_is_cleared_by_an_empty_string_where_a_format_has_one():
    rules = Rules(Defaults(negative_prompt="ugly", loras=(Lora(name="style"),)), loras=("style",))
    assert make_request(Row("m", 1, {"prompt": "x"}), 1, rules).negative_prompt == "ugly"
    request = make_request(Row("m", 1, {"prompt": "x", "negative_prompt": "", "loras": "[]"}), 1, rules)
    assert (request.negative_prompt, request.loras) == ("", ())


DRAFTED = Rules(
    Defaults(candidates=8, steps=20),
    ranking=Ranking(drafts=[{"steps": 8, "keep": 4}, {"steps": 12, "keep": 2}], min_score=20),
)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 12}, "steps: 12 are not more than the 12 of a draft; ranking.drafts need longer finals"),
        ({"keep": 3}, "keep: 3 are more than the 2 that ranking.drafts finish"),
        ({"init_image": "a", "strength": 0.1}, "strength: 0.1 of the 8 steps of a draft is less than one step; raise one of them"),
        ({"candidates": {"start": 3, "max": 9, "until_score": 19.5}}, "candidates: until_score 19.5 is below ranking.min_score 20"),
        ({"candidates": {"start": 3, "max": 3, "until_score": 30}}, "candidates: start 3 is not below max 3"),
        ({"candidates": {"start": 3, "max": 9}}, "candidates.until_score: missing"),
        ({"candidates": {"start": 3, "max": 9, "until_score": 30}, "keep": 10}, "keep: 10 of only 9 candidates"),
        ({"candidates": '{"start": 3, "max": 9, "until_score": 30}'}, "candidates: input should be a valid integer"),
    ],
)
def test_a_row_that_does_not_go_with_the_cascade_or_cannot_grow_is_a_line_of_its_own(values, says):
    assert any(problem.startswith(says) for problem in problems_of(DRAFTED, **values)), problems_of(DRAFTED, **values)


def test_a_row_whose_sampler_adds_noise_of_its_own_is_refused_unless_that_is_allowed():
    (problem,) = problems_of(DRAFTED, scheduler="euler_a")
    assert problem.startswith("scheduler: euler_a adds noise of its own at every step, so that a draft says little of its final")
    allowed = replace(DRAFTED, ranking=DRAFTED.ranking.model_copy(update={"drafts_stochastic": True}))
    assert make_request(Row("m", 1, {"prompt": "x", "scheduler": "euler_a"}), 1, allowed).scheduler == "euler_a"


def test_a_row_that_asks_for_so_few_candidates_that_no_draft_applies_is_held_to_none():
    row = Row("m", 1, {"prompt": "x", "candidates": 2, "steps": 3, "keep": 2, "scheduler": "euler_a"})
    assert make_request(row, 1, DRAFTED).steps == 3


def test_a_row_grows_where_it_says_so_or_the_defaults_do():
    grows = {"start": 3, "max": 9, "until_score": 30}
    said = make_request(Row("m", 1, {"prompt": "x", "candidates": grows}), 1, Rules(Defaults()))
    assert (said.candidates, said.at_a_time, said.growing) == (9, 3, Growing(**grows))
    rules = Rules(Defaults(candidates=Growing(**grows)))
    assert make_request(Row("m", 1, {"prompt": "x"}), 1, rules).growing == said.growing
    assert make_request(Row("m", 1, {"prompt": "x", "candidates": 5}), 1, rules).growing is None


SAID = {
    "id": st.sampled_from(["a", "", 7, 10**30, True, "é"]),
    "prompt": st.sampled_from(["a cat", "", "x" * 10_001, 5]),
    "negative_prompt": st.sampled_from(["", "blurry"]),
    "mode": st.sampled_from([*MODES, "none"]),
    "init_image": st.sampled_from(["a.png", ""]),
    "mask_image": st.sampled_from(["m.png"]),
    "controls": st.sampled_from(
        [[], [{"type": "canny", "image": "c.png"}], [{"type": "x", "image": "d.png", "scale": -0.0}], "[]"]
    ),
    "control_type": st.just("canny"),
    "control_image": st.sampled_from(["c.png", "d.png"]),
    "strength": st.sampled_from([0.5, 1, 0.01, "0.5"]),
    "width": st.sampled_from([64, 64.0, "64", 72, 65]),
    "height": st.sampled_from([64, 128]),
    "steps": st.sampled_from([1, 9, 9.0, True]),
    "guidance_scale": st.sampled_from([0.0, -0.0, 0, 1, 1.0, "1"]),
    "guidance_rescale": st.sampled_from([0.0, -0.0, 0.5]),
    "scheduler": st.sampled_from(["euler", "EULER", "ddim", "none"]),
    "seed": st.sampled_from([0, 1, -1, 1.0]),
    "candidates": st.sampled_from(
        [1, 2, 2.0, {"start": 1, "max": 4, "until_score": -0.0}, {"start": 1, "max": 4, "until_score": 0.0}]
    ),
    "keep": st.sampled_from([1, 2]),
    "loras": st.sampled_from([[], [{"name": "style"}], [{"name": "style", "scale": -0.0}], [{"name": "style", "scale": 0.0}]]),
    "topic": st.sampled_from([1, "two", None, [1]]),
}
HELD_TO = [
    Rules(Defaults(candidates=2)),
    Rules(
        Defaults(prompt="a default", strength=0.3),
        ["canny"],
        ["style"],
        multiple=16,
        modes=MODES,
        schedulers=["euler"],
        rescaled=["txt2img"],
        strict=True,
    ),
    Rules(Defaults(candidates={"start": 1, "max": 3, "until_score": 1}), ["canny"], ranking=Ranking(min_score=0.5)),
]


@pytest.mark.parametrize("rules", HELD_TO, ids=["plain", "strict", "growing"])
@given(st.lists(st.fixed_dictionaries({}, optional=SAID), min_size=1, max_size=12))
def test_what_is_remembered_of_rows_makes_no_later_one_another(rules, rows):
    def made(values, number, shapes):
        try:
            request = make_request(Row("m.jsonl", number, dict(values)), number, rules, shapes)
        except RowError as error:
            return error.problems
        # As JSON, which tells -0.0 from 0.0, 1 from 1.0, and the order of the columns.
        return request, json.dumps(to_json(request))

    shapes = {}
    for number, values in enumerate([*rows, *rows], 1):
        assert made(values, number, shapes) == made(values, number, None)


def test_rows_that_differ_in_their_own_columns_only_are_resolved_once(monkeypatch):
    resolved, resolve = [], requests._resolve
    monkeypatch.setattr(requests, "_resolve", lambda *given: resolved.append(1) or resolve(*given))
    shapes = {}
    for number in range(20):
        made = make_request(
            Row("m", number, {"prompt": f"prompt {number}", "seed": number, "topic": number}), number, Rules(Defaults()), shapes
        )
        assert (made.id, made.prompt, made.seed, made.carried) == (str(number), f"prompt {number}", number, {"topic": number})
    assert len(resolved) == len(shapes) == 1


def test_what_is_remembered_of_rows_takes_bounded_memory(monkeypatch):
    monkeypatch.setattr(requests, "MAX_SHAPES", 10)
    shapes = {}
    for number in range(1, 100):
        assert make_request(Row("m", number, {"prompt": "x", "steps": number}), number, Rules(Defaults()), shapes).steps == number
        assert len(shapes) <= 10


def test_a_guidance_scale_below_the_least_that_a_model_takes_is_a_bad_row():
    rules = Rules(Defaults(guidance_scale=4.0), least_guidance=1.0)
    assert make_request(Row("m", 1, {"prompt": "x", "guidance_scale": 1}), 1, rules).guidance_scale == 1.0
    for row, others in (({"guidance_scale": 0.5}, rules), ({}, replace(rules, defaults=Defaults(guidance_scale=0.5)))):
        with pytest.raises(RowError) as caught:
            make_request(Row("m", 1, {"prompt": "x", **row}), 1, others)
        assert caught.value.problems == ("guidance_scale: 0.5 is below 1, the least that the model takes; 1 means no guidance",)


REPAINTS = Steering("SD3ControlNetModel that repaints", ("controlnet_inpaint",), repaints=True, from_noise=("controlnet_inpaint",))
ANY = Steering("ZImageControlNetModel", ("controlnet", "controlnet_inpaint"), from_noise=("controlnet_inpaint",))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"init_image": "a.png", "mask_image": "m.png"}, None),
        (
            {"init_image": "b.png", "mask_image": "m.png"},
            "controls: 'repaint' repaints the init_image where the mask_image is white; give",
        ),
        ({}, "controls: 'repaint' repaints the init_image where"),
        ({"init_image": "a.png"}, "controls: 'repaint' does not steer controlnet_img2img; as a SD3ControlNetModel that repaints"),
    ],
)
def test_a_controlnet_that_repaints_wants_the_init_image_and_its_mask(row, says):
    rules = Rules(Defaults(width=64, height=64), controls=("repaint",), steering={"repaint": REPAINTS})
    given = Row("m", 1, {"prompt": "x", "controls": [{"type": "repaint", "image": "a.png"}], **row})
    if says is None:
        assert make_request(given, 1, rules).strength is None
        return
    with pytest.raises(RowError) as caught:
        make_request(given, 1, rules)
    assert any(problem.startswith(says) for problem in caught.value.problems), caught.value.problems


def test_where_images_begin_with_noise_there_is_no_strength_and_a_given_one_is_noted():
    rules = Rules(Defaults(width=64, height=64), controls=("any",), steering={"any": ANY})
    values = {"prompt": "x", "init_image": "a.png", "mask_image": "m.png", "controls": [{"type": "any", "image": "b.png"}]}
    for said, notes in ((values, []), ({**values, "strength": 0.5}, ["strength: has no effect with these controls"])):
        request = make_request(Row("m", 1, said), 1, rules)
        assert request.strength is None and request.mode == "controlnet_inpaint"
        assert [note.split(", whose")[0] for note in ignored(request, said, rules)] == notes
    others = make_request(Row("m", 1, {k: v for k, v in values.items() if k != "controls"}), 1, rules)
    assert others.strength == 0.8
