"""Survivors of a cascade are what they would have been without it: rendered by real models, in every mode and on both paths."""

import threading
from dataclasses import replace

import pytest

from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.scoring.clip import load_clip
from promptmill.pipelines.work.results import Failure
from promptmill.pipelines.work.units import Placed, Unit, cut, price
from tests.pipelines.engines import BATCH
from tests.pipelines.plain import MODES, request
from tests.pipelines.work.courses import recipe_of, take

CASCADE = "ranking.drafts=[{steps: 3, keep: 4}, {steps: 4, keep: 2, scheduler: euler}]"
SETTINGS = ("defaults.candidates=6", "defaults.steps=5")
MADE = ("seed", "clip_score", "pixel_sha256")  # what a final is, drafted before or not


def unit_of(*requests):
    return Unit(0, 0, tuple(Placed(row, one) for row, one in enumerate(requests)))


def both(engine, unit, *settings, **said):
    """The rows by key of a unit without and with drafts."""
    rows, passes = take(engine.render, unit, recipe_of(*SETTINGS), **said)
    assert passes == 1
    drafted, passes = take(engine.render, unit, recipe_of(*SETTINGS, CASCADE, *settings), **said)
    assert passes == 3
    return [{row["key"]: row for row in some} for some in (rows, drafted)]


def check(whole, drafted, requests):
    """Six candidates, four of them drafted twice, two of those finished, as they are without drafts."""
    assert list(drafted) == list(whole)
    for request_row in range(requests):
        some = {key: row for key, row in drafted.items() if key.startswith(f"000000-{request_row:05d}")}
        assert [len(row["draft_scores"]) for row in some.values()].count(1) == 2
        finals = {key: row for key, row in some.items() if row["status"] != "drafted"}
        assert [row["status"] for row in finals.values()].count("kept") == 1
        assert len(finals) == 2
        for key, row in some.items():
            assert row["seed"] == whole[key]["seed"]
            if key in finals:
                assert len(row["draft_scores"]) == 2
                assert [row[name] for name in MADE] == [whole[key][name] for name in MADE]
                if row["status"] == whole[key]["status"] == "kept":
                    assert row["image"] == whole[key]["image"]
            else:
                assert row["rank"] is row["image"] is row.get("clip_score") is row.get("pixel_sha256") is None


def test_survivors_are_byte_for_byte_what_they_are_without_drafts_in_every_mode(engine):
    some = [request(name, steps=5, candidates=6, **{"mode": name, **values}) for name, values in MODES.items() if " " not in name]
    whole, drafted = both(engine, unit_of(*some))
    check(whole, drafted, len(some))
    assert {row["mode"] for row in drafted.values()} == {one.mode for one in some}
    assert any(row["status"] == whole[key]["status"] == "kept" for key, row in drafted.items())


def test_the_price_of_each_candidate_is_that_of_its_drafts_and_its_final(engine):
    wanted = request(steps=5, candidates=6)
    recipe = recipe_of(*SETTINGS, CASCADE)
    rows, _ = take(engine.render, unit_of(wanted), recipe)
    prices = {(row["status"] != "drafted", len(row["draft_scores"])): row["unet_evaluations"] for row in rows}
    assert prices == {(False, 1): 2 * 3, (False, 2): 2 * (3 + 4), (True, 2): 2 * (3 + 4 + 5)}
    assert sum(row["unet_evaluations"] for row in rows) == price(wanted, recipe.config.ranking.drafts)


def test_strength_scales_the_steps_of_drafts_like_those_of_finals(engine):
    wanted = request(steps=10, candidates=2, mode="img2img", init_image="a.png", strength=0.5)
    rows, _ = take(engine.render, unit_of(wanted), recipe_of("ranking.drafts=[{steps: 6, keep: 1}]", "defaults.steps=10"))
    assert sorted(row["unet_evaluations"] for row in rows) == [2 * 3, 2 * (3 + 5)]


def test_survivors_are_the_same_in_a_family_without_a_unet(flux):
    some = [request(str(n), scheduler="euler", steps=5, candidates=6, prompt=p) for n, p in enumerate(("a red", "blue"))]
    check(*both(flux, unit_of(*some)), len(some))


def test_the_embedded_family_scored_by_its_clip_drafts_to_the_same_survivors(shapes):
    clip = load_clip(recipe_of().config.ranking, shapes.model.device)
    prompt = "a small red circle at the left on a black background"
    lines = request("lines", mode="controlnet", prompt=prompt, steps=5, candidates=6, **MODES["controlnet"])
    check(*both(shapes, unit_of(lines), clip=clip), 1)


def test_a_candidate_whose_draft_is_no_image_fails_and_the_others_go_on(engine):
    def breaking(unit):
        rendered = engine.render(unit)
        (outcome,) = rendered.outcomes
        first, *rest = outcome.candidates
        if unit.course.turns[0].draft == 0:
            first = replace(first, pixels=None, failure=Failure("non_finite", "NaN"))
        return replace(rendered, outcomes=(replace(outcome, candidates=(first, *rest)),))

    rows, _ = take(breaking, unit_of(request(steps=5, candidates=6)), recipe_of(*SETTINGS, CASCADE))
    assert [row["status"] for row in rows].count("failed") == 1
    assert (rows[0]["error"], rows[0]["unet_evaluations"], rows[0]["draft_scores"]) == ("non_finite", 6, [None])
    assert sorted(row["status"] for row in rows[1:]) == ["drafted"] * 3 + ["kept", "rejected"]


def test_a_request_that_is_spared_a_draft_by_asking_for_few_has_none(engine):
    few, many = request("few", steps=2, candidates=2), request("many", steps=5, candidates=6)
    rows, passes = take(engine.render, unit_of(few, many), recipe_of(*SETTINGS, CASCADE))
    assert passes == 3
    own = [row for row in rows if row["id"] == "few"]
    assert sorted(row["status"] for row in own) == ["kept", "rejected"]
    assert [(row["draft_scores"], row["unet_evaluations"]) for row in own] == [([], 4)] * 2


def test_a_request_whose_image_is_broken_fails_once_and_is_not_tried_at_every_pass(engine):
    cut = request("cut", steps=5, candidates=6, mode="img2img", init_image="cut.png", strength=0.9)
    tried = []
    rows, _ = take(
        engine.render,
        unit_of(cut, request("good", steps=5, candidates=6)),
        recipe_of(*SETTINGS, CASCADE),
        seen=lambda unit, rendered: tried.append([outcome.row for outcome in rendered.outcomes]),
    )
    assert tried == [[0, 1], [1], [1]]
    (failed,) = [row for row in rows if row["id"] == "cut"]
    assert (failed["status"], failed["error"], failed["candidates"]) == ("failed", "bad_image", 6)
    assert failed.get("candidate_index") is None
    assert len(rows) == 7


# Of the second the finals are few and long, and would run alone if they waited until all that is drafted meanwhile had begun.
@pytest.mark.parametrize(("steps", "draft", "candidates"), [(20, 6, 4), (30, 9, 6)])
def test_two_units_in_flight_keep_the_batch_full_through_all_passes(engine, steps, draft, candidates):
    slots: Slots = engine.path
    recipe = recipe_of(f"defaults.steps={steps}", f"ranking.drafts=[{{steps: {draft}, keep: 1}}]")
    drafts = recipe.config.ranking.drafts
    placed = [Placed(row, request(str(row), steps=steps, candidates=candidates)) for row in range(25)]
    units = list(cut(0, placed, BATCH, drafts))
    assert len(units) >= 5
    slots.denoiser.calls = slots.denoiser.rows = 0
    waiting, paid = iter(units), []

    def hand():
        # As a lane's: what comes back goes on before a new unit is drawn.
        while unit := next(waiting, None):
            paid.append(sum(row["unet_evaluations"] for row in take(engine.render, unit, recipe)[0]))

    hands = [threading.Thread(target=hand) for _ in range(2)]
    for one in hands:
        one.start()
    for one in hands:
        one.join()
    assert sum(paid) == slots.denoiser.rows == sum(price(one.request, drafts) for one in placed)
    assert slots.share > 0.95
