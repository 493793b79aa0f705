"""Makes of the templates of rows one prompt each, or rows of all prompts, and takes LoRA tags out of prompts."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from promptmill.configs.columns import NEGATIVE_TEMPLATE, SYNTAX, TEMPLATE
from promptmill.configs.errors import nearest, quoted
from promptmill.configs.parameters import MAX_CELLS, MAX_PROMPT, Lora
from promptmill.configs.prompts import A1111
from promptmill.manifests.a1111_prompts import read, without_loras
from promptmill.manifests.dynamic_prompts import all_of, at_random, is_comment, is_template
from promptmill.manifests.json_rows import parse_list
from promptmill.manifests.prompt_errors import PromptError
from promptmill.manifests.rows import Row
from promptmill.manifests.rules import Rules
from promptmill.manifests.sweeps import OF, shared_seed

TEMPLATES = {"prompt": TEMPLATE, "negative_prompt": NEGATIVE_TEMPLATE}


def expanded(rows: Iterable[Row], rules: Rules) -> Iterator[Row]:
    """Yield rows, and in the place of each whose prompts are templates the rows of what they expand to.

    At random a row stays one row, whose choices depend on the row's seed (or the config's) and its id. As combinations it becomes a
    row for each, as `swept` makes them. A row whose templates were expanded before, as the rows of a dataset, stays as it is.

    Args:
        rows: Rows as read, after sweeps.
        rules: The config's rules for rows.
    """
    shifted = False  # as in `swept`
    for number, one in enumerate(rows, 1):
        row = one.with_id(number) if shifted else one
        values = row.values
        if row.broken or (values.get(SYNTAX) or rules.syntax) != A1111:
            yield row
            continue
        try:
            for made in _of_row(row, number, rules):
                yield made
                shifted |= OF in made.values and OF not in values
        except PromptError as error:
            yield row.as_broken(str(error))


@contextmanager
def _naming(column: str, expands: bool = False) -> Iterator[None]:
    """Let errors within begin with the name of the column, and say whether the text is what a template expands to."""
    try:
        yield
    except PromptError as error:
        raise PromptError(f"{column}: {error}{', in what the template expands to' if expands else ''}") from None


def _of_row(row: Row, number: int, rules: Rules) -> Iterator[Row]:
    values = row.values
    texts = {"prompt": values.get("prompt"), "negative_prompt": values.get("negative_prompt")}
    for name in texts:
        default = getattr(rules.defaults, name)
        texts[name] = default if texts[name] is None and default else texts[name]
    # What is no text, or too long for a prompt, is a problem that the columns have words for.
    known = {name: text for name, text in texts.items() if isinstance(text, str) and len(text) <= MAX_PROMPT}
    fresh = {name: text for name, text in known.items() if values.get(TEMPLATES[name]) is None}
    base = str(number) if values.get("id") is None else str(values["id"])
    of = values.get(OF) or base
    seed = values.get("seed") if values.get("seed") is not None else rules.seed
    made: list[list[str]] = []
    for name, text in fresh.items():
        with _naming(name):
            if not is_template(text):
                made.append([text])
            elif is_comment(text):
                raise PromptError("holds nothing but a comment, which # begins; write \\# for the sign itself", text.index("#") + 1)
            elif rules.expand == "combinatorial":
                made.append(list(all_of(text, rules.wildcards)))
            else:
                made.append([at_random(text, rules.wildcards, f"{seed}\n{of}\n{name}")])
    count = 1
    for some in made:
        count *= len(some)
    if count > MAX_CELLS:
        raise PromptError(f"prompt: makes {count:,} rows with its negative_prompt, which are more than {MAX_CELLS:,}")
    for place, chosen in enumerate(itertools.product(*made), 1):
        said = dict(zip(fresh, chosen, strict=True))
        new = _values(values, said, fresh, rules)
        if count > 1:
            # As cells of a sweep: they differ in nothing but their prompts.
            if values.get("seed") is None:
                new["seed"] = shared_seed(rules.seed, of)
            new |= {"id": f"{base}/prompt={place}", OF: of}
        yield replace(row, values=new)


def _values(values: Mapping[str, Any], said: Mapping[str, str], fresh: Mapping[str, str], rules: Rules) -> dict[str, Any]:
    """Return a row's values with its prompts expanded and its LoRA tags taken out."""
    new = {**values, SYNTAX: A1111}
    for name, text in said.items():
        with _naming(name, text != fresh[name]):
            read(text)
            rest, loras = without_loras(text)
            for lora, column in loras:
                if name == "negative_prompt":
                    raise PromptError("LoRA tags are read in the prompt alone", column)
                if lora.name not in rules.loras:
                    known = f"; declared: {', '.join(rules.loras)}" if rules.loras else "; none is declared in model.loras"
                    raise PromptError(f"no LoRA {quoted(lora.name)}{nearest(lora.name, rules.loras) or known}", column)
            if name == "prompt" and rest and not any(part.words for step in (1, 2) for part in read(rest).at(step, 2)):
                raise PromptError("holds no words")
        if rest != fresh[name]:
            new |= {name: rest, TEMPLATES[name]: fresh[name]}
        if loras:
            with _naming(name):
                new["loras"] = _with_loras(values.get("loras"), loras, rules)
    return new


def _with_loras(given: Any, tags: Sequence[tuple[Lora, int]], rules: Rules) -> Any:
    """Return the LoRAs of a row, or of the defaults in place of the row, and those of its tags behind them."""
    if given is None:
        given = [dict(lora) for lora in rules.defaults.loras]
    elif isinstance(given, str):
        try:
            given = parse_list(given)
        except (ValueError, RecursionError):
            return given  # a problem that the columns have words for
    if not isinstance(given, list | tuple):
        return given
    there = {one.get("name") for one in given if isinstance(one, Mapping)}
    for lora, column in tags:
        if lora.name in there:
            raise PromptError(f"the LoRA {quoted(lora.name)} is also among the row's loras; leave one of them out", column)
    return [*given, *(dict(lora) for lora, _ in tags)]
