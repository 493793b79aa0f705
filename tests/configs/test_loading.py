import json
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from promptmill.configs.errors import ConfigError, describe
from promptmill.configs.keys import forms_of
from promptmill.configs.loading import json_schema, load, preset_names
from promptmill.configs.parameters import Control
from promptmill.configs.schedulers import REFUSED, SCHEDULERS, scheduler_name
from promptmill.configs.schema import Config
from promptmill.configs.yaml_values import dump, parse

GOOD = {"manifest": "rows.jsonl", "model": {"base": "./model"}}


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.sampled_from(
    ["010", "1e3", "0o7", "yes", "1:30", "~"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words


def written(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_config(name):
    assert load(name).model_dump()


def test_presets_cover_the_families_and_pin_what_they_download():
    presets = {name: load(name) for name in preset_names()}
    assert {"embedded", "embedded-flow", "sd15", "sdxl", "sd15-controlnet", "sd15-lcm"} <= presets.keys()
    for config in presets.values():
        for _, weights in config.model.weights().values():
            assert weights.source.startswith("./") or len(weights.revision) == 40
        assert config.ranking.model.startswith("local-dir:./") or len(config.ranking.revision) == 40
        assert all(lora.weight_name for lora in config.model.loras)


def test_a_resolved_config_loads_as_itself(tmp_path):
    config = load("sdxl", ["output=out", "defaults.steps=7"])
    assert load(written(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_settings_reach_into_mappings_and_lists_and_make_what_is_missing(tmp_path):
    settings = ["defaults.steps=5", "model.loras.0.name=other", "runtime.generators=3", "ranking.min_score=21.5", "output=s3://b/c"]
    config = load("sd15-lcm", [*settings, "defaults.loras=[]"])
    assert (config.defaults.steps, config.model.loras[0].name, config.runtime.generators) == (5, "other", 3)
    assert (config.ranking.min_score, config.output, config.defaults.loras) == (21.5, "s3://b/c", ())


def test_only_output_runtime_and_the_place_of_the_manifest_leave_the_render_config_alone():
    plain = load("embedded").render_config()
    same = load("embedded", ["output=elsewhere", "runtime.generators=7", "manifest=other.jsonl"]).render_config()
    assert same == plain
    for setting in ("seed=1", "defaults.steps=9", "model.batch=2", "shards.size=3", "ranking.batch=5"):
        assert load("embedded", [setting]).render_config() != plain


BROKEN = {
    "unknown key": ("defaults: {stpes: 3}", "defaults.stpes: unknown key; did you mean 'steps'?"),
    "unknown key in a list": (
        "model: {base: ./m, loras: [{nmae: x, source: ./l}]}",
        "model.loras.0.nmae: unknown key; did you mean 'name'?",
    ),
    "unknown top key": ("modle: {base: ./m}", "modle: unknown key; did you mean 'model'?"),
    "nothing like it": ("zzz: 1", "zzz: unknown key; known: manifest"),
    "wrong type": ("defaults: {steps: many}", "defaults.steps: input should be a valid integer"),
    "steps 0": ("defaults: {steps: 0}", "defaults.steps: input should be greater than or equal to 1 (found 0)"),
    "width 65": ("defaults: {width: 65}", "defaults.width: input should be a multiple of 8 (found 65)"),
    "nan": ("defaults: {strength: .nan}", "defaults.strength: input should be a finite number"),
    "strength 0": ("defaults: {strength: 0}", "defaults.strength: input should be greater than 0"),
    "scheduler": ("defaults: {scheduler: dpmp_2m}", "'dpmp_2m' is not an allowed scheduler; did you mean 'dpmpp_2m'?"),
    "mode": ("defaults: {mode: text2image}", "defaults.mode: input should be 'txt2img'"),
    "keep over candidates": ("defaults: {candidates: 2, keep: 3}", "defaults: keep 3 is more than candidates 2"),
    "seed": ("seed: 4294967296", "seed: input should be less than 4294967296"),
    "unpinned": ("model: {base: owner/name}", "model: owner/name is a hub repository and needs a revision"),
    "short revision": ("model: {base: owner/name, revision: main}", "model.revision: string should match pattern"),
    "unpinned lora": ("model: {base: ./m, loras: [{name: a, source: o/n}]}", "model.loras.0: o/n is a hub repository"),
    "doubled lora": (
        "model: {base: ./m, loras: [{name: a, source: ./l}, {name: a, source: ./k}]}",
        "model.loras: a declared more than once",
    ),
    "dtype": ("model: {base: ./m, dtype: int8}", "model.dtype: input should be 'float32'"),
    "image format": ("shards: {image_format: gif}", "shards.image_format: input should be 'png', 'jpg' or 'webp'"),
    "shard size": ("shards: {size: 0}", "shards.size: input should be greater than or equal to 1"),
    "keys of six digits": ("shards: {size: 100001}", "shards.size: input should be less than or equal to 100000"),
    "host with a scheme": (
        "runtime: {url_hosts: ['https://example.com']}",
        "runtime.url_hosts: 'https://example.com' is not a host; write it as example.com, or example.com:8443",
    ),
    "host with a path": ("runtime: {url_hosts: [example.com/images]}", "runtime.url_hosts: 'example.com/images' is not a host"),
    "any host": ("runtime: {url_hosts: ['*']}", "runtime.url_hosts: '*' is not a host"),
    "no host": ("runtime: {url_hosts: ['']}", "runtime.url_hosts: '' is not a host"),
    "endless key": (f"{'x' * 1000}: 1", "xxx: unknown key; known: manifest"),
    "endless scheduler": (f"defaults: {{scheduler: {'x' * 100_000}}}", "xxx' is not an allowed scheduler; allowed: ddim"),
    "share of failures": (
        "runtime: {max_failed: 101%}",
        "runtime.max_failed: input should be a number of candidates, such as 20, or a share of them, such as 5% (found '101%')",
    ),
    "failures below none": ("runtime: {max_failed: -1}", "runtime.max_failed: input should be a number of candidates, such as 20"),
    "failures as a fraction": ("runtime: {max_failed: 0.05}", "runtime.max_failed: input should be a number of candidates"),
    "row policy": ("runtime: {on_bad_row: ignore}", "runtime.on_bad_row: input should be 'refuse' or 'record'"),
    "generators": ("runtime: {generators: lots}", "runtime.generators"),
    "missing": ("", "holds nothing, not keys and values"),
    "a list": ("- 1", "holds list, not keys and values"),
    "not YAML": ("a: [1", ", line 2: not YAML"),
    "doubled key": ("seed: 1\nseed: 2", ", line 2: not YAML: key 'seed' is given twice"),
    "Latin-1": ("output: caf\xe9".encode("latin-1"), "not UTF-8 (byte 11)"),
    "impossible date": ("seed: 2024-99-99", "seed: input should be a valid integer"),
    "boolean for a number": ("shards: {size: true}", "shards.size: input should not be true or false (found true)"),
    "yes for a number": ("seed: yes", "seed: input should be a valid integer, unable to parse string as an integer (found 'yes')"),
    "sexagesimal": ("seed: 1:30", "seed: input should be a valid integer, unable to parse string as an integer (found '1:30')"),
    "neither of two forms": (
        "runtime: {scorers: lots}",
        "runtime.scorers: input should be a valid integer or 'auto' (found 'lots')",
    ),
    "number below one form": ("runtime: {scorers: 0}", "runtime.scorers: input should be greater than or equal to 1 or 'auto'"),
    "within one form of two": ("manifest: [a, {b: c}]", "manifest.1: input should be a valid string"),
    "no mapping": ("model: 3", "model: input should be keys and values (found 3)"),
    "no list": ("model: {base: ./m, loras: x}", "model.loras: input should be a list (found 'x')"),
    "aliases of aliases": (
        "\n".join(["a0: &a0 [x]", *(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(9))]),
        "not YAML: more than 1,000,000 values",
    ),
    "an alias of what holds it": ("seed: &a [*a]", "not YAML"),
    "list as a key": ("? [1, 2]\n: 3", "not YAML"),
    "control character": ("seed: \x01", "not YAML"),
    "no generators": ("runtime: {generators: 0}", "input should be greater than or equal to 1"),
    "a tag": ("seed: !!python/object/apply:os.system [ls]", "not YAML"),
}


@pytest.mark.parametrize(("text", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_config_is_one_line_that_names_file_key_and_remedy(tmp_path, text, says):
    if isinstance(text, str) and text and not text.startswith("-"):
        given = {line.split(":")[0] for line in text.splitlines()}
        text = "\n".join([text, *(f"{key}: {json.dumps(value)}" for key, value in GOOD.items() if key not in given)])
        says = says.replace(", line 2: not YAML", "not YAML") if "given twice" not in says else says
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    lines = caught.value.problems
    assert any(says in line for line in lines), lines
    assert all("config.yaml" in line and "\n" not in line and len(line) < 500 for line in lines)


def test_every_problem_is_listed_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, "manifest: a\nmodel: {base: ./m, batch: 0}\ndefaults: {steps: 0, wdith: 64}\n"))
    assert len(caught.value.problems) == 3


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert load(written(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode())).manifest == "rows.jsonl"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sd1.5", "did you mean 'sd15'?"),
        ("missing.yaml", "missing.yaml: no such file"),
        ("", "presets: auraflow, .*, chroma, .*, embedded, embedded-flow, .*, quickstart, "),
    ],
)
def test_an_unknown_config_names_what_there_is(name, says):
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        load(name)


@pytest.mark.parametrize("setting", ["steps", "=3", "a..b=1", "model.loras.7.name=x", "seed.x=1", "defaults.steps=[1"])
def test_a_malformed_setting_is_named(setting):
    with pytest.raises(ConfigError, match=r"--set"):
        load("sd15-lcm", ["seed=1", setting])


@pytest.mark.parametrize("setting", ["modle.base=./x", "model.bsae=./x", "defaults.steps=0", "defaults={steps: 0}"])
def test_what_a_setting_gets_wrong_is_blamed_on_it_and_not_on_the_file(tmp_path, setting):
    for name in ("embedded", written(tmp_path, yaml.safe_dump(GOOD))):
        with pytest.raises(ConfigError) as error:
            load(name, ["seed=1", setting, "model.batch=2"])
        (line,) = error.value.problems
        assert line.startswith(f"--set {setting}: ")


def value_at(config, key):
    for part in key.split("."):
        config = config[int(part)] if part.isdecimal() else getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("defaults.negative_prompt=blurry, #nsfw", "blurry, #nsfw"),
        ("defaults.negative_prompt=null", "null"),
        ("defaults.negative_prompt=", ""),
        ("defaults.prompt=010", "010"),
        ("defaults.prompt=a: b, [c", "a: b, [c"),
        ("defaults.prompt=[a cat]", "[a cat]"),
        ("defaults.prompt= yes ", " yes "),
        ("defaults.prompt='a, b'", "a, b"),
        ('defaults.prompt="a" or "b"', '"a" or "b"'),
        ("defaults.prompt=null", None),
        ("model.variant=1e3", "1e3"),
        ("manifest=2024-01-01", "2024-01-01"),
        ("manifest=[010, 'b c']", ("010", "b c")),
        ("output=", None),
        ("seed=010", 10),
        ("seed=0x10", 16),
        ("defaults.width=0104", 104),
        ("defaults.guidance_scale=1e1", 10.0),
        ("runtime.require_gpus=true", True),
        ("runtime.generators=auto", "auto"),
        ("runtime.max_failed=2.5%", "2.5%"),
        ("runtime.max_failed=07", 7),
        (f"model.controlnets.canny.revision={'0123456789' * 4}", "0123456789" * 4),
        (f"model.controlnets.canny={{source: o/n, revision: {'0123456789' * 4}}}", "0123456789" * 4),
    ],
)
def test_text_is_taken_as_it_stands_and_numbers_are_decimal_in_settings_and_files(tmp_path, setting, value):
    key, _, text = setting.partition("=")
    at = "model.controlnets" if "revision" in setting else key
    found = value_at(load("embedded", [setting]), at)
    assert (found["canny"].revision if isinstance(found, dict) else found) == value
    if text in ("", "null") or text != text.strip() or any(sign in text for sign in ("#", ": ", '" ', "[a")) or ".revision" in key:
        return  # which a file says otherwise, or not alone
    top, *inner = key.split(".")
    for part in reversed(inner):
        text = f"{{{part}: {text}}}"
    given = {"model": "{base: ./m}", "manifest": "rows.jsonl"}
    given[top] = text.replace("{", "{base: ./m, ", 1) if top == "model" else text
    found = value_at(load(written(tmp_path, "".join(f"{name}: {said}\n" for name, said in given.items()))), at)
    assert (found["canny"].revision if isinstance(found, dict) else found) == value


def models_of(model):
    """A model of the schema and all within it."""
    yield model
    for field in model.model_fields.values():
        for form in forms_of(field.annotation):
            for part in (form, *(inner for argument in get_args(form) for inner in forms_of(argument))):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    yield from models_of(part)


def test_no_number_of_the_schema_takes_a_boolean():
    numbers = []
    for model in dict.fromkeys((*models_of(Config), Control)):
        for name, field in model.model_fields.items():
            forms = forms_of(field.annotation)
            inside = tuple(form for outer in forms for argument in get_args(outer) for form in forms_of(argument))
            if {int, float} & {*forms, *inside} and bool not in forms:
                numbers.append(name)
                wrong = {"clip": True} if {int, float} & {*inside} else True
                with pytest.raises(ValidationError) as caught:
                    model.model_validate({name: wrong})
                said = [line for line in describe(caught.value, model) if line.startswith((f"{name}: ", f"{name}.clip: "))]
                assert said == [f"{said[0].split(': ')[0]}: input should not be true or false (found true)"], model
    assert len(numbers) > 40 and {"steps", "batch", "weights", "floor", "start", "scale", "min"} <= {*numbers}


def test_a_mapping_is_merged_into_another_which_has_the_last_word(tmp_path):
    text = "x: &x {width: 64, steps: 3}\n"
    assert parse(f"{text}y: {{<<: *x, steps: 5}}") == {"x": {"width": 64, "steps": 3}, "y": {"width": 64, "steps": 5}}
    assert parse(f"{text}y: {{<<: [{{steps: 9}}, *x]}}")["y"] == {"steps": 9, "width": 64}


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8))
def test_what_is_written_is_read_as_it_was(value):
    assert parse(dump(value)) == value
    assert yaml.safe_load(dump(value)) == value  # by readers of YAML 1.1


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_text_by_a_setting(text):
    said = load("embedded", [f"defaults.negative_prompt={text}"]).defaults.negative_prompt
    assert said == text or text.strip()[:1] in ("'", '"')


def test_a_pool_that_is_no_pool_is_one_line_without_the_schemas_own_words():
    with pytest.raises(ConfigError) as error:
        load("embedded", ["runtime.generators={min: 4, max: 2}"])
    assert error.value.problems == ("--set runtime.generators={min: 4, max: 2}: runtime.generators: min 4 is more than max 2",)


def test_what_a_setting_does_not_reach_is_blamed_on_the_file(tmp_path):
    path = written(tmp_path, yaml.safe_dump({**GOOD, "seed": "x"}))
    with pytest.raises(ConfigError) as error:
        load(path, ["defaults.steps=3"])
    assert error.value.problems[0].startswith(f"{path}: seed: ")


def test_hosts_are_given_by_name_and_where_needed_with_a_port():
    config = load("embedded", ["runtime.url_hosts=[Example.com, 'example.com:8443', '[2001:db8::1]:80', bücher.example]"])
    assert config.runtime.url_hosts == ("example.com", "example.com:8443", "[2001:db8::1]:80", "bücher.example")


def test_a_config_does_not_change_under_our_feet():
    with pytest.raises(ValidationError):
        load("embedded").seed = 3


def test_the_json_schema_names_every_key():
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False


def test_every_scheduler_of_diffusers_is_in_the_table_or_refused_by_its_name():
    import diffusers

    there = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    listed = {name for kind in SCHEDULERS.values() for name in kind.classes}
    assert there <= listed | REFUSED.keys() and not listed & REFUSED.keys()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("DPMSolverSDEScheduler", "draws its noise from a Brownian tree of torchsde .* the nearest is dpmpp_sde"),
        ("FlowMatchLCMScheduler", "hand it no generator"),
        ("SCMScheduler", "is made for one kind of model"),
    ],
)
def test_a_scheduler_that_cannot_join_is_refused_by_its_name_with_the_reason(name, says):
    with pytest.raises(ConfigError, match=f"defaults.scheduler: '{name}' .*{says}"):
        load("embedded", ["manifest=x", f"defaults.scheduler={name}"])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_by_short_name_in_any_case_and_by_class(name):
    assert scheduler_name(name.upper()) == name
    kind = SCHEDULERS[name]
    assert SCHEDULERS[scheduler_name(kind.class_name)].class_name == kind.class_name
