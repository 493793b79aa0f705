import json
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import promql_parser
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from promptmill.actors.flow.actor_slots import DiedError, MemoryRanOutError
from promptmill.actors.receipts import Receipt
from promptmill.configs.loading import load
from promptmill.jobs.planning.making import look, make_plan
from promptmill.jobs.running.metrics import METRICS, Metrics, label_of
from promptmill.jobs.running.run import run
from promptmill.shards.commits import read_records
from tests.actors.flow.lanes_world import World
from tests.actors.flow.virtual_time import run as run_in_virtual_time

ROOT = Path(__file__).parents[3]
KINDS = {metric.name: metric.kind for metric in METRICS}
LABELS = {f"ray_{metric.name}": {"dataset", *metric.labels} for metric in METRICS}
RAYS_OWN = {"ray_node_gpus_utilization"}


class Said:
    """What would be at Ray, by name and the values of labels."""

    def __init__(self):
        self.values = Counter()

    def __call__(self, name, value, labels):
        assert labels.pop("dataset") == "birds"
        key = (name.removeprefix("promptmill_"), *labels.values())
        self.values[key] = value + (self.values[key] if KINDS[name] == "counter" else 0)

    def about(self, *names):
        return {key: value for key, value in self.values.items() if key[0] in names and value}


class Work(int):
    """A unit of one request."""

    @property
    def name(self):
        return str(self)


def test_every_try_that_fails_is_counted_with_its_reason_and_everything_ends_at_rest():
    trouble = {("generator", 1): "die", ("generator", 2): "node", ("generator", 3): "hang", ("scorer", 4): "error"}
    trouble = {key: [what] for key, what in {**trouble, ("scorer", 5): "lost", ("scorer", 7): "die"}.items()}
    world, said = World(trouble=trouble, poison=[6]), Said()
    metrics = Metrics("s3://zoo/birds/", 10, said)

    async def through():
        lanes = world.lanes([Work(number) for number in range(10)], generators=(1, 1))
        lanes._generators = metrics.watched(lanes._generators, "generators")
        lanes._scorers = metrics.watched(lanes._scorers, "scorers")
        with metrics.showing():
            return [receipt async for receipt in lanes.run()]

    receipts, _ = run_in_virtual_time(through())
    assert len(receipts) == 10
    assert said.about("tries_failed_total") == {
        ("tries_failed_total", "generators", "died"): 1 + 4,  # the poisonous one beside others, then alone
        ("tries_failed_total", "generators", "node"): 1,
        ("tries_failed_total", "generators", "deadline"): 1,
        ("tries_failed_total", "scorers", "error"): 1,
        ("tries_failed_total", "scorers", "lost"): 1,
        ("tries_failed_total", "scorers", "died"): 1,
    }
    assert said.about("actor_deaths_total") == {("actor_deaths_total", "generators"): 7, ("actor_deaths_total", "scorers"): 1}
    assert said.about("units_recomputed_total") == {("units_recomputed_total",): 6 + 3}
    assert said.about("actors_wanted") == {("actors_wanted", "generators"): 1, ("actors_wanted", "scorers"): 1}
    assert said.about("actors_alive", "units_in_flight", "units_waiting") == {}
    assert {("actors_alive", "generators"), ("units_in_flight", "scorers"), ("units_waiting",)} <= set(said.values)


def test_gauges_are_said_while_a_run_goes_on():
    world, said = World(seconds=(50.0, 1.0)), Said()
    metrics = Metrics("birds", 3, said)
    seen = []

    async def through():
        lanes = world.lanes([Work(number) for number in range(3)], generators=(2, 1))
        lanes._generators = metrics.watched(lanes._generators, "generators")
        lanes._scorers = metrics.watched(lanes._scorers, "scorers")
        with metrics.showing():
            async for _ in lanes.run():
                seen.append(said.about("actors_alive", "units_in_flight"))

    run_in_virtual_time(through())
    assert seen[0][("actors_alive", "generators")] == 2
    assert seen[0][("units_in_flight", "generators")] >= 1


def test_the_share_that_generators_were_busy_is_of_the_seconds_that_they_were_there(monkeypatch):
    said, clock = Said(), [100.0]
    monkeypatch.setattr("promptmill.jobs.running.metrics.time.monotonic", lambda: clock[0])
    metrics = Metrics("birds", 8, said)
    clock[0] = 160.0  # while nobody is there, nobody is idle
    metrics.alive("generators", 2)
    clock[0] = 170.0
    metrics.alive("generators", -1)
    clock[0] = 200.0
    metrics.unit(Receipt("000000-00000", 0, {}, None, {"denoise": 30.0, "write": 1.0}, rendering_s=30.0, requests=4, kept=4))
    busy, there = (said.values[(f"generator_{what}_seconds_total",)] for what in ("busy", "alive"))
    assert (busy, there) == (30.0, 2 * 10 + 30)


def test_an_actor_that_dies_while_it_starts_is_a_death():
    said = Said()
    metrics = Metrics("birds", 8, said)
    pool = World().pool("generator", 1, 1)

    async def start():
        raise MemoryRanOutError("out of memory")

    watched = metrics.watched(type(pool)(start, 1), "generators")
    with pytest.raises(DiedError):
        run_in_virtual_time(watched.start())
    assert said.about("actor_deaths_total") == {("actor_deaths_total", "generators"): 1}
    assert said.about("actors_alive") == {}


def test_nothing_that_a_metric_raises_reaches_a_lane_or_stops_an_actors_start(capsys, monkeypatch):
    told = Counter()

    def refuse(*args, **labels):
        told["calls"] += 1
        raise UnicodeEncodeError("ascii", "猫", 0, 1, "ordinal not in range(128)")

    trouble = {("generator", 1): ["die"], ("generator", 3): ["hang"], ("scorer", 4): ["error"], ("scorer", 7): ["die"]}
    # With what is put at Ray refused, and with every call of the listener itself raising.
    for broken in ((), ("alive", "begun", "ended", "made", "failed", "put", "show", "_set_gauges")):
        world = World(trouble={key: list(what) for key, what in trouble.items()}, poison=[6])
        metrics = Metrics("s3://zoo/猫/", 10, refuse)
        for name in broken:
            monkeypatch.setattr(metrics, name, refuse)

        async def through(world=world, metrics=metrics):
            lanes = world.lanes([Work(number) for number in range(10)], generators=(2, 2))
            lanes._generators = metrics.watched(lanes._generators, "generators")
            lanes._scorers = metrics.watched(lanes._scorers, "scorers")
            with metrics.showing():
                return [receipt async for receipt in lanes.run()]

        receipts, _ = run_in_virtual_time(through())
        assert sorted(int(unit) for _, unit, *_ in receipts) == list(range(10))
        assert {int(unit) for verdict, unit, *_ in receipts if verdict == "convicted"} == {6}
        assert told.pop("calls") > 20
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("recording metrics failed (UnicodeEncodeError: ")


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ("s3://zoo/birds/", "birds"),
        ("/tmp/猫", "%E7%8C%AB"),
        ("é/out", "out"),
        ("100%", "100%25"),
        ("a b", "a b"),
        ("a\nb", "a%0Ab"),
    ],
)
def test_the_label_of_a_dataset_is_printable_ascii_and_tells_names_apart(output, label):
    assert label_of(output) == label
    assert label.isascii() and label.isprintable()


class Silent:
    def __getattr__(self, name):
        return lambda *_: None


def scraped(url, dataset):
    """What the node's metrics port says of a dataset: values by name and the values of our labels."""
    text = urllib.request.urlopen(url, timeout=5).read().decode()
    found = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in LABELS and sample.labels["dataset"] == dataset:
                labels = (value for name, value in sorted(sample.labels.items()) if name in LABELS[sample.name] - {"dataset"})
                found[(sample.name.removeprefix("ray_promptmill_"), *labels)] += sample.value
    return found, text


@pytest.mark.usefixtures("ray_here")
def test_the_metrics_port_says_what_the_records_of_a_run_say(tmp_path):
    prompt = "a small red circle at the left on a black background"
    rows = [{"id": f"r{i}", "prompt": prompt} for i in range(3)] + [{"id": "gone", "prompt": prompt, "init_image": "gone.png"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["defaults.steps=2", "defaults.candidates=2", "model.batch=8", "shards.size=2", "runtime.check_images=at_run"]
    out = tmp_path / "what the port says"
    plan = make_plan(look(load("embedded", [f"manifest={tmp_path / 'rows.jsonl'}", "runtime.generators=1", *settings])), str(out))
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    meanwhile, over = [], threading.Event()

    def watch():
        while not over.wait(0.5):
            meanwhile.append(scraped(url, out.name)[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        totals = run(plan, str(out), Silent())
    finally:
        over.set()
        watcher.join()
    assert any(seen[("candidates_planned",)] == 8 > seen[("candidates_settled",)] for seen in meanwhile)

    until = time.monotonic() + 15
    while (found := scraped(url, out.name))[0][("shards_total",)] < totals.shards and time.monotonic() < until:
        time.sleep(0.3)
    said, text = found
    receipts = [json.loads(line) for file in (out / "stats").glob("*.jsonl") for line in file.read_text().splitlines()]
    files = [file for record in read_records(str(out)) for file in record.files]
    assert (totals.kept, totals.rejected, totals.failed) == (3, 3, 2)
    assert {key: value for key, value in said.items() if key[0] == "candidates_total"} == {
        ("candidates_total", "kept"): 3,
        ("candidates_total", "rejected"): 3,
        ("candidates_total", "failed"): 2,
    }
    assert said[("images_total",)] == totals.kept
    assert said[("shards_total",)] == totals.shards == 2
    assert said[("units_total",)] == len(receipts)
    assert said[("failures_total", "bad_image")] == 1
    for folder in ("data", "metadata"):
        assert said[("written_bytes_total", folder)] == sum(file.size for file in files if file.path.startswith(folder)) > 0
    assert said[("written_bytes_total", "parts")] == sum(receipt["part_bytes"] for receipt in receipts) > 0
    for stage in ("text", "denoise", "decode", "score", "encode", "write"):
        spent = sum(receipt["seconds"].get(stage, 0.0) for receipt in receipts)
        assert spent > 0
        assert said[("stage_seconds_total", stage)] == pytest.approx(spent)
    busy = sum(
        seconds
        for receipt in receipts
        for stage, seconds in receipt["seconds"].items()
        if stage not in ("score", "encode", "write")
    )
    assert said[("generator_busy_seconds_total",)] == pytest.approx(busy)
    assert busy <= said[("generator_alive_seconds_total",)]
    assert not [line for line in text.splitlines() if "promptmill" in line and (prompt in line or "000000-0" in line)]


def board():
    return json.loads((ROOT / "jobs" / "deploy" / "grafana.json").read_text())


def targets():
    for panel in board()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], promql_parser.parse(target["expr"].replace("$dataset", ".*").replace("$window", "5m"))


def parts_of(expression, kind):
    found = []

    def visit(node):
        if isinstance(node, kind):
            found.append(node)

    promql_parser.walk(expression, visit)
    return found


def test_the_dashboard_shows_every_metric_and_no_other():
    asked = {part.name for _, expr in targets() for part in parts_of(expr, promql_parser.VectorSelector)}
    assert asked - RAYS_OWN == set(LABELS)


def test_the_dashboard_rates_counters_only_and_groups_by_labels_that_are_there():
    for title, expr in targets():
        for call in parts_of(expr, promql_parser.Call):
            rated = {part.name for argument in call.args for part in parts_of(argument, promql_parser.VectorSelector)}
            assert all(KINDS[name.removeprefix("ray_")] == "counter" for name in rated), title
        for sum_ in parts_of(expr, promql_parser.AggregateExpr):
            names = {part.name for part in parts_of(sum_.expr, promql_parser.VectorSelector)}
            wanted = set(sum_.modifier.labels) if sum_.modifier else set()
            assert all(wanted <= LABELS[name] for name in names), title


def test_the_dashboard_can_be_imported_anywhere_and_says_what_each_panel_is():
    variables = {variable["name"]: variable["type"] for variable in board()["templating"]["list"]}
    assert variables == {"datasource": "datasource", "dataset": "query", "window": "interval"}
    for panel in board()["panels"]:
        if panel["type"] != "row":
            assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {panel["datasource"]["uid"]} == {"${datasource}"}
    assert len({panel["id"] for panel in board()["panels"]}) == len(board()["panels"])


def test_the_page_says_of_every_metric_what_the_code_says():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |" in page
        assert (metric.kind == "counter") == metric.name.endswith("_total")
