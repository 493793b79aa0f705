"""Plans and renders rows that a Python program holds, as the commands `plan` and `run` do with a manifest."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from promptmill.configs.schema import Config
from promptmill.jobs.api.dataset import Dataset
from promptmill.jobs.api.errors import MANIFEST, one_line_errors
from promptmill.jobs.api.progress import Bar
from promptmill.jobs.api.rows import Rows, manifest_of, paths_of
from promptmill.jobs.planning.accepted_changes import Accepting
from promptmill.jobs.planning.config_and_output import configured
from promptmill.jobs.planning.plan import Plan
from promptmill.jobs.planning.planned import planned
from promptmill.jobs.running.stopping import Stop
from promptmill.jobs.showing.summary import plan_facts, plan_lines
from promptmill.shards.storage import join, put_if_absent

Result = TypeVar("Result")
KINDS = frozenset({"rows", "columns", "pictures", "lists"})  # keys of manifests that are made, and of pictures and prompt lists


class Planned:
    """Holds a plan: `print` shows the plan as the command `plan` does.

    Attributes:
        output: The dataset's URI.
        facts: What a run will render, as in `promptmill plan --json`.
    """

    def __init__(self, plan: Plan, output: str):
        self._plan, self.output = plan, output
        self.facts: Mapping[str, Any] = plan_facts(plan, None)

    def __str__(self) -> str:
        return "\n".join(plan_lines(self._plan, None))

    def __repr__(self) -> str:
        return f"<promptmill plan of {self.output}: {self._plan.counts.requests:,} requests>"


def plan(
    rows: Rows = None,
    config: str | Path = "embedded",
    out: str | Path | None = None,
    *,
    accept_changes: Accepting = False,
    **overrides: Any,
) -> Planned:
    """Check rows and plan what a run would render, as `render` without rendering.

    Args:
        rows, config, out, accept_changes, overrides: As `render`.

    Raises:
        Error: One line for each fault.
    """
    with one_line_errors():
        loaded, output = _configured(rows, config, out, overrides)
        return Planned(planned(loaded, output, accept_changes=accept_changes, rewrites=False), output)


def render(
    rows: Rows = None,
    config: str | Path = "embedded",
    out: str | Path | None = None,
    *,
    progress: bool = True,
    retry_failed: bool = False,
    accept_changes: Accepting = False,
    **overrides: Any,
) -> Dataset:
    """Render rows, keep the best candidates of each, and return the dataset; called again, go on where an earlier call was cut off.

    The work is done in this process, without Ray, unless `runtime={"workers": "ray"}` is given. A run has a thread and an event
    loop of its own, so that it works in Jupyter. Ctrl-C, or the kernel's stop, finishes the units in flight; a second one ends the
    run at once.

    Args:
        rows: A list of dicts of the columns that docs/manifests.md names, with images as paths from the current folder, as bytes or
            as PIL images; a pandas or polars frame; an Arrow table; the path, or a list of the paths, of a manifest; or a dict as
            the config's `manifest` may be, with the keys `rows` and `columns`, `pictures` or `lists`. None takes the config's.
        config: A preset's name, or the path of a YAML file.
        out: The dataset's URI; else the config's output, else runs/NAME.
        progress: Whether to show a bar.
        retry_failed: Whether to try again what failed by infrastructure: deaths, deadlines, memory.
        accept_changes: Whether to go on though the plan changed: True, "keep" or "rerender", as `promptmill run --accept-changes`.
        overrides: Keys of the config: nested, as `defaults={"steps": 4}`, or joined by two underscores, as `defaults__steps=4`.

    Raises:
        Error: One line for each fault, in the command line's words.
        KeyboardInterrupt: The run was stopped; finished work is durable.
    """
    # Imported late: most programs plan or open datasets without rendering.
    from promptmill.jobs.running.rendering import StoppedError
    from promptmill.jobs.running.run import run

    with one_line_errors():
        loaded, output = _configured(rows, config, out, overrides)
        made = planned(loaded, output, accept_changes=accept_changes)
        stop = Stop()
        with Bar(made.counts.candidates, progress) as bar:
            try:
                _in_thread(lambda: run(made, output, bar, retry_failed=retry_failed, stop=stop), stop)
            except StoppedError:
                raise KeyboardInterrupt("stopped; what is done is durable, and the same call goes on") from None
        return Dataset(output)


def _configured(rows: Rows, config: str | Path, out: str | Path | None, overrides: Mapping[str, Any]) -> tuple[Config, str]:
    """Read a config for rows; rows that are no paths become the file of a manifest beside the dataset."""
    settings = [f"{key}={_as_text(value)}" for key, value in _flat(overrides)]
    if not any(setting.startswith("runtime.workers=") for setting in settings):
        settings.append("runtime.workers=here")
    if isinstance(rows, Mapping) and not KINDS.isdisjoint(rows):
        settings.append(f"manifest={json.dumps(rows)}")
        rows = None
    paths = None if rows is None else paths_of(rows)
    if paths is not None:
        settings.append(f"manifest={json.dumps(paths if len(paths) > 1 else paths[0])}")
    target = None if out is None else str(out)
    if rows is None or paths is not None:
        return configured(str(config), target, settings)
    name, content = manifest_of(rows)
    loaded, output = configured(str(config), target, [*settings, f"manifest={json.dumps(name)}"])
    # The name is of the content, since the output may hold another plan, which is refused later and keeps its manifest.
    place = join(output, MANIFEST, hashlib.sha256(content).hexdigest()[:16], name)
    put_if_absent(place, content)
    roots = (*loaded.runtime.image_roots, str(Path.cwd()))
    runtime = loaded.runtime.model_copy(update={"image_roots": roots})
    return loaded.model_copy(update={"manifest": place, "runtime": runtime}), output


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    flat = []
    for name, value in values.items():
        key = before + name.replace("__", ".")
        flat += _flat(value, f"{key}.") if isinstance(value, Mapping) and value else [(key, value)]
    return flat


def _as_text(value: Any) -> str:
    """Return a value in the form of `--set`: a text as it stands, any other value as YAML."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _in_thread(work: Callable[[], Result], stop: Stop) -> Result:
    """Run work in a thread of its own, since this thread may have a running event loop; an interrupt asks the work to stop."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=do, name="promptmill-render")
    thread.start()
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt:
            stop()
    if errors:
        raise errors[0]
    return results[0]
