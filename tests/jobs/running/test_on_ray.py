"""That a run on Ray has the shares of its cluster's cards, and that its workers are told them as numbers."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from promptmill.actors.flow.actor_slots import Pool
from promptmill.actors.flow.workers import Workers
from promptmill.actors.pool_sizes import ResourcesError
from promptmill.configs.loading import load
from promptmill.jobs.running import on_ray
from promptmill.jobs.running.metrics import Metrics
from promptmill.jobs.running.on_ray import OnRay, runtime_here


@dataclass(frozen=True)
class Told:
    """Stands in for a recipe."""

    config: object


@pytest.fixture
def card(monkeypatch):
    """A function that gives the cluster cards of so many bytes."""
    monkeypatch.setattr(on_ray, "ray", SimpleNamespace(nodes=list))
    return lambda size: monkeypatch.setattr(on_ray, "smallest_card", lambda nodes: size)


@pytest.mark.parametrize(("size", "shares"), [(80 * 10**9, (0.95, 0.05)), (None, (0.75, 0.25))])
def test_workers_are_told_their_shares_of_the_clusters_cards_as_numbers(card, monkeypatch, size, shares):
    card(size)
    config, told = load("embedded", []), []

    def workers(recipe, *rest):
        told.append(recipe.config.runtime)
        return Workers(Pool(None, 1), Pool(None, 1), None, None)

    monkeypatch.setattr(on_ray, "ray_workers", workers)
    metrics = Metrics("out", 1, lambda *measured: None)
    OnRay(1, None, runtime_here(config), None, metrics).workers(Told(config), None, None)
    assert (told[0].generator_gpus, told[0].scorer_gpus) == shares


def test_a_model_that_fits_no_card_is_refused_by_its_files_alone(card):
    card(2 * 10**9)
    with pytest.raises(ResourcesError, match=r"a generator needs .* GB at least"):
        runtime_here(load("embedded", ["model.batch=1024", "defaults.width=1024", "defaults.height=1024"]))


def test_a_model_that_is_not_there_is_left_to_the_actors(card):
    card(80 * 10**9)
    assert runtime_here(load("embedded", ["model.base=./nowhere"])).scorer_gpus == 0.25
