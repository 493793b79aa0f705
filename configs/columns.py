"""Lists the columns of a dataset's metadata, each in one entry: its name, type, meaning, role, and the first format that has it.

The Parquet schema, the card, the columns that a second pass takes over and the columns that are scores all follow from this table.
An added column is one entry here, `since` the next `FORMAT`; a dataset keeps the format that it began with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

# Datasets of format 1 do not say their format. Since 2 the plan, the commit records and the Parquet files say theirs, and the
# Parquet files say which columns a config declared. Since 3 there are the columns of models that edit and enlarge pictures,
# and since 4 the number of tokens that text encoders do not read.
FORMAT = 4
MOST_ROLES = 2**20  # bytes that the roles of declared columns may take
FORMAT_KEY, ROLES_KEY = b"promptmill.format", b"promptmill.roles"  # of a Parquet file's schema


class Role(StrEnum):
    """Names the purpose of a column, which decides what a second pass, the card and `verify` do with it."""

    KEY = "key"  # says which candidate the row is of
    INPUT = "input"  # came from the manifest or its defaults; a second pass takes the column over
    RESOLVED = "resolved"  # follows from the manifest, and holds for this pass alone
    SCORE = "score"  # a number that says how good the image is
    PROVENANCE = "provenance"  # says what made the image, and what the image is
    OUTCOME = "outcome"  # says what became of the candidate
    CARRIED = "carried"  # the manifest's own column; a second pass takes it over


class Need(StrEnum):
    """Names the feature that a dataset has to use for a column to be there."""

    DRAFTS = "drafts"
    GROWING = "growing"
    EMBEDDINGS = "embeddings"
    DECLARED = "declared"  # by the config's ranking, its reference adapters or its prior, or by a copy without near-duplicates


@dataclass(frozen=True)
class Column:
    """Describes one column.

    Attributes:
        type: The type in Arrow. The type of embeddings has no length yet, which the plan knows.
        meaning: The card's words for the column.
        since: The first format of datasets that has the column.
        need: A dataset without this has no such column; None for a column that every dataset has.
        if_rows_have: The column of a manifest, the same or another, in which a row has to have a value for a dataset to have the
            declared column.
    """

    name: str
    type: pa.DataType
    meaning: str
    role: Role
    since: int = 1
    need: Need | None = None
    if_rows_have: str | None = None


CONTROL = pa.struct(
    [
        ("type", pa.string()),
        ("image", pa.string()),
        ("preprocess", pa.string()),
        ("scale", pa.float64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("sha256", pa.string()),
    ]
)
REFERENCE = pa.struct(
    [
        ("type", pa.string()),
        ("image", pa.string()),
        ("scale", pa.float64()),
        ("mask", pa.string()),
        ("embedding", pa.string()),
        ("sha256", pa.string()),
        ("mask_sha256", pa.string()),
        ("embedding_sha256", pa.string()),  # of an embedding beside an image; of one in place of an image it is the sha256
    ]
)
# Of formats before 4, whose references had no pictures beside embeddings.
EARLIER_REFERENCE = pa.struct([field for field in REFERENCE if field.name != "embedding_sha256"])
STAGE = pa.struct(
    [
        ("stage", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("score", pa.float32()),
        ("found", pa.int32()),
        ("evaluations", pa.int32()),
    ]
)
BOX = pa.struct([("phrase", pa.string()), *((side, pa.float64()) for side in ("x0", "y0", "x1", "y1"))])
CONTROL_MAP = pa.struct([("sha256", pa.string()), ("bytes", pa.int64())])
LORA = pa.struct([("name", pa.string()), ("scale", pa.float64())])

REFERENCES = "references"
CACHED = "cached_evaluations"
STAGES = "stages"
CONTROL_MAPS = "control_maps"
STAGE0 = "stage0"
CAPTION = "caption"
MASK_EDIT, OUTPAINT = "mask_edit", "outpaint"
VARIATION_SEED, VARIATION = "variation_seed", "variation_strength"
TRUE_CFG = "true_cfg_scale"
SYNTAX, TEMPLATE, NEGATIVE_TEMPLATE = "syntax", "prompt_template", "negative_prompt_template"
WORDS = "prompt_words"
LOST = "prompt_tokens_lost"
BOXES, BOXES_UNTIL = "gligen_boxes", "gligen_scheduled_sampling_beta"
OF_PRIORS = ("prior_steps", "prior_guidance_scale")
CLIP_SCORE, RANK_SCORE, REJECTED_FOR = "clip_score", "rank_score", "rejected_for"
NEAR_DUPLICATE_OF, DUPLICATE_OF = "near_duplicate_of", "duplicate_of"
DRAFT_SCORES, SPARED, EMBEDDING = "draft_scores", "candidates_spared", "clip_embedding"

_TEXT, _INT, _NUMBER, _SCORE, _FLAG = pa.string(), pa.int32(), pa.float64(), pa.float32(), pa.bool_()
_KEY, _INPUT, _RESOLVED, _OUTCOME, _MADE = Role.KEY, Role.INPUT, Role.RESOLVED, Role.OUTCOME, Role.PROVENANCE


def _of_rows(name: str, type: pa.DataType, meaning: str, deciding: str | None = None) -> Column:
    """Return the column of an input that a dataset has where a row has a value in the deciding column, without one in the same."""
    return Column(name, type, meaning, _INPUT, need=Need.DECLARED, if_rows_have=deciding or name)


# In the order in which they stand; carried columns come behind. Times and hosts have no place here: they differ between runs.
COLUMNS = (
    Column("key", _TEXT, "names the candidate in the whole dataset", _KEY),
    Column("id", _TEXT, "the request's, from the manifest", _KEY),
    Column("candidate_index", _INT, "of the candidate in its request, from 0; null where the request failed as a whole", _KEY),
    Column("rank", _INT, "among the request's candidates, the best first", _OUTCOME),
    Column("selected", _FLAG, "whether its image is in `data/`", _OUTCOME),
    Column("status", _TEXT, "kept, rejected or failed", _OUTCOME),
    Column("error", _TEXT, "why it failed: an enumerated code", _OUTCOME),
    Column("error_message", _TEXT, "why it failed, in words", _OUTCOME),
    Column("prompt", _TEXT, "as rendered", _INPUT),
    Column("negative_prompt", _TEXT, "what guidance leads away from", _INPUT),
    Column("mode", _TEXT, "txt2img, img2img, inpaint, or one of these with controls", _RESOLVED),
    Column("width", _INT, "in pixels", _INPUT),
    Column("height", _INT, "in pixels", _INPUT),
    Column("steps", _INT, "of denoising", _INPUT),
    Column("guidance_scale", _NUMBER, "classifier-free guidance", _INPUT),
    Column(
        "guidance_rescale", _NUMBER, "share of the guided prediction rescaled to the spread of the unguided one; 0 is none", _INPUT
    ),
    Column("image_guidance_scale", _NUMBER, "of models that edit pictures: how strongly they hold to the picture", _INPUT, since=3),
    Column(
        "noise_level",
        _INT,
        "how much noise an upscaler puts on its picture, or Stable unCLIP on the picture's embedding",
        _INPUT,
        since=3,
    ),
    Column("scheduler", _TEXT, "the sampler", _INPUT),
    Column("strength", _NUMBER, "of img2img and inpainting: the share of the steps that is run", _INPUT),
    Column("seed", pa.int64(), "of this candidate's noise", _INPUT),
    Column("candidates", _INT, "how many the request asked for", _RESOLVED),
    Column("keep", _INT, "how many of them it keeps", _RESOLVED),
    Column("init_image", _TEXT, "what img2img and inpainting began with, as the manifest names it", _INPUT),
    Column("init_image_sha256", _TEXT, "of that file", _MADE),
    Column("mask_image", _TEXT, "white was repainted", _INPUT),
    Column("mask_image_sha256", _TEXT, "of that file", _MADE),
    Column(
        "controls",
        pa.list_(CONTROL),
        "ControlNet conditions: type, image and its SHA-256, preprocessing, scale, share of the steps",
        _INPUT,
    ),
    Column("loras", pa.list_(LORA), "the LoRAs in use and their scales", _INPUT),
    Column("prompt_truncated", _FLAG, "the text encoder read only the prompt's beginning", _MADE),
    Column(LOST, _INT, "how many tokens of the prompt that text encoder did not read", _MADE, since=4),
    Column("model", _TEXT, "the base model", _MADE),
    Column("revision", _TEXT, "of the base model", _MADE),
    Column("dtype", _TEXT, "that it ran in", _MADE),
    Column("batch_shape", _TEXT, "the fixed batch sizes that bits depend on", _MADE),
    Column("kernels", _TEXT, "how the denoiser was computed, which bits depend on too", _MADE),
    Column("versions", _TEXT, "of the libraries that bits depend on", _MADE),
    Column("unet_evaluations", _INT, "how often the denoiser was evaluated for this candidate", _MADE),
    Column(CLIP_SCORE, _SCORE, "100 × cosine of prompt and image", Role.SCORE),
    # Here stand the scores of declared scorers: `score_column`.
    Column(RANK_SCORE, _SCORE, "what ranks: the weighted sum of the scores", Role.SCORE, need=Need.DECLARED),
    Column(
        REJECTED_FOR,
        _TEXT,
        "outranked, near_duplicate, or the limit of a score that it breaks, as floor_NAME or ceiling_NAME",
        _OUTCOME,
        need=Need.DECLARED,
    ),
    Column(
        NEAR_DUPLICATE_OF,
        _INT,
        "the candidate index of the kept image that it is nearly the same as",
        _OUTCOME,
        need=Need.DECLARED,
    ),
    Column(
        DUPLICATE_OF,
        _TEXT,
        "the key of the image, of whatever request, that is kept instead of this one",
        _OUTCOME,
        need=Need.DECLARED,
    ),
    # Of the datasets alone that have a row with such a value; references also where the config declares an adapter of them.
    _of_rows(REFERENCES, pa.list_(REFERENCE), "references: type, image, embedding, scale, mask, SHA-256 of the files"),
    _of_rows(MASK_EDIT, _TEXT, "how the mask was changed: inverted, grown, blurred; whether its part alone was rendered"),
    _of_rows(OUTPAINT, _TEXT, "by how many pixels the image reaches beyond its init image"),
    _of_rows(VARIATION_SEED, pa.int64(), "of the noise that varies this candidate's"),
    _of_rows(VARIATION, _NUMBER, "the share of that noise", VARIATION_SEED),
    _of_rows(TRUE_CFG, _NUMBER, "guidance away from the negative prompt, beside the model's own"),
    _of_rows(BOXES, pa.list_(BOX), "what is drawn where: a phrase, and sides as shares of the image's"),
    _of_rows(BOXES_UNTIL, _NUMBER, "the share of the steps that know of the boxes", BOXES),
    _of_rows(SYNTAX, _TEXT, "what the prompts are written in, where they are more than words: a1111"),
    Column(
        WORDS,
        _TEXT,
        "the prompt without brackets and weights, which scores and captions are of",
        _RESOLVED,
        need=Need.DECLARED,
        if_rows_have=SYNTAX,
    ),
    _of_rows(TEMPLATE, _TEXT, "what the prompt was expanded from"),
    _of_rows(NEGATIVE_TEMPLATE, _TEXT, "what the negative prompt was expanded from"),
    Column("prior_steps", _INT, "of denoising, by the prior", _INPUT, need=Need.DECLARED),
    Column("prior_guidance_scale", _NUMBER, "classifier-free guidance of the prior", _INPUT, need=Need.DECLARED),
    Column(CACHED, _INT, "how many of the evaluations ran the outer blocks alone, by the step cache", _MADE, need=Need.DECLARED),
    Column(
        STAGES,
        pa.list_(STAGE),
        "what the kept image has been, from the choice on: after which stage, of which size, with which rank score",
        _MADE,
        need=Need.DECLARED,
    ),
    Column(
        CONTROL_MAPS,
        pa.list_(CONTROL_MAP),
        "SHA-256 and size of each control map as the ControlNets got it, a PNG that lies beside a kept image",
        _MADE,
        need=Need.DECLARED,
    ),
    Column(
        STAGE0,
        CONTROL_MAP,
        "SHA-256 and size of the image as it was before the stages, a PNG that lies beside a kept image",
        _MADE,
        need=Need.DECLARED,
    ),
    Column(CAPTION, _TEXT, "what a model has written of the kept image", _MADE, need=Need.DECLARED),
    Column("sha256", _TEXT, "of the image file", _MADE),
    Column("pixel_sha256", _TEXT, "of height, width and RGB values before encoding", _MADE),
    Column("bytes", pa.int64(), "size of the image file", _MADE),
    Column("shard", _INT, "the shard's number", _KEY),
    Column(
        DRAFT_SCORES,
        pa.list_(_SCORE),
        "the scores of the candidate's drafts, in their order; null for one that it passed over",
        _OUTCOME,
        need=Need.DRAFTS,
    ),
    Column(
        SPARED,
        _INT,
        "how many of the request's candidates were never begun, since enough were good",
        _OUTCOME,
        need=Need.GROWING,
    ),
    Column(EMBEDDING, pa.list_(pa.float16()), "the image's unit CLIP embedding", _MADE, need=Need.EMBEDDINGS),
)

# The declared columns that rows decide on, in their order.
OF_ROWS = tuple(column.name for column in COLUMNS if column.if_rows_have)
# The columns of a manifest that decide, each once.
DECIDING = tuple(dict.fromkeys(column.if_rows_have for column in COLUMNS if column.if_rows_have))


def type_in(column: Column, format: int) -> pa.DataType:
    """Return the type that a column has in datasets of a format."""
    return pa.list_(EARLIER_REFERENCE) if column.name == REFERENCES and format < 4 else column.type


def by_name() -> dict[str, Column]:
    """Return the table's columns by their names."""
    return {column.name: column for column in COLUMNS}


def always(format: int = FORMAT) -> tuple[Column, ...]:
    """Return the columns that every dataset of a format has."""
    return tuple(column for column in COLUMNS if column.need is None and column.since <= format)


def reserved() -> frozenset[str]:
    """Return the names that no carried column may have. Names of declared columns are free where nothing declares them."""
    return frozenset(column.name for column in COLUMNS if column.need is not Need.DECLARED)


def score_column(scorer: str) -> Column:
    """Return the column of a declared scorer's scores."""
    return Column(f"{scorer}_score", pa.float32(), f"of the scorer {scorer}", Role.SCORE, need=Need.DECLARED)


def declared_column(name: str, role: Role) -> Column:
    """Return a declared column by its name and role: one of the table, or a scorer's."""
    column = by_name().get(name)
    if column is not None and column.need is Need.DECLARED and column.role is role:
        return column
    return score_column(name.removesuffix("_score"))


def declared_by_place(names: Sequence[str]) -> dict[str, Role]:
    """Return the roles of the declared columns of rows that come without a schema, or of a dataset of format 1: by their place.

    Declared columns stand between `clip_score` and `sha256`. JSON beside an image has no other way to say which columns these are;
    a Parquet file says so itself since format 2.
    """
    if not {CLIP_SCORE, "sha256"} <= set(names):
        return {}
    known = by_name()
    between = names[names.index(CLIP_SCORE) + 1 : names.index("sha256")]
    return {name: known[name].role if name in known and known[name].need is Need.DECLARED else Role.SCORE for name in between}


def roles(names: Sequence[str], declared: Mapping[str, Role] | None = None) -> dict[str, Role]:
    """Return the role of each column of a dataset, in their order.

    Args:
        names: Names of the dataset's columns, in their order.
        declared: The roles of the columns that a config declared, as far as the dataset states them; without them their place
            tells.
    """
    declared = declared_by_place(names) if declared is None else declared
    known = {column.name: column.role for column in COLUMNS if column.need is not Need.DECLARED}
    return {name: known.get(name) or declared.get(name, Role.CARRIED) for name in names}


class NewerFormatError(ValueError):
    """Reports a dataset of a format that this promptmill does not know; the message is one line."""

    def __init__(self, format: object):
        super().__init__(
            f"dataset format {format}, this promptmill reads up to {FORMAT}; use the promptmill that wrote it, or a later one"
        )


def check_format(format: object) -> int:
    """Return the format that a dataset states.

    Raises:
        NewerFormatError: The format is that of a later promptmill.
        ValueError: The value is no format.
    """
    if type(format) is not int or format < 1:
        raise ValueError(f"its dataset format is {str(format)[:20]!r}, which is none")
    if format > FORMAT:
        raise NewerFormatError(format)
    return format


@dataclass(frozen=True)
class Stated:
    """Holds the format and the roles that a Parquet file's schema states.

    Attributes:
        format: The format of the dataset.
        declared: The roles of the columns that a config declared; None where the file does not say, in format 1.
    """

    format: int = 1
    declared: Mapping[str, Role] | None = None

    @property
    def metadata(self) -> dict[bytes, bytes] | None:
        """Return the metadata that `of` reads again; None in format 1."""
        if self.format == 1:
            return None
        roles = {ROLES_KEY: json.dumps(self.declared).encode()} if self.declared else {}
        return {FORMAT_KEY: str(self.format).encode(), **roles}

    @classmethod
    def of(cls, schema: pa.Schema) -> "Stated":
        """Read the statements of a schema.

        Raises:
            ValueError: The schema states a later format, or values that no promptmill writes.
        """
        metadata = schema.metadata or {}
        if FORMAT_KEY not in metadata:
            return cls()
        said = metadata[FORMAT_KEY][:20].decode(errors="replace")
        format = check_format(int(said) if said.isascii() and said.isdigit() else said)
        try:
            found = json.loads(metadata.get(ROLES_KEY, b"{}")[:MOST_ROLES])
            return cls(format, {str(name): Role(role) for name, role in found.items()})
        except (ValueError, AttributeError, RecursionError):
            raise ValueError("the roles of its columns cannot be read") from None


def roles_in(schema: pa.Schema) -> dict[str, Role]:
    """Return the role of each column of a dataset's schema, in their order. Raises ValueError as `Stated.of`."""
    return roles(schema.names, Stated.of(schema).declared)
