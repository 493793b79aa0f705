"""Lists the pipelines of diffusers that are not served, each with its reason."""

from promptmill.pipelines.models.families import FAMILIES

_CONTROLLED = "was saved with what steers it; set _class_name to {} in model_index.json, and name the control in model.controlnets"
CONTROL_IMAGE = "needs a control image beside the picture of every row, which is not supported yet"
STAGES = "renders in stages that are pipelines of their own, and a run has one"
COMBINED = "is made of two models: name the decoder's as model.base, and the prior's as model.prior"
A_PRIOR = "makes embeddings and no pictures: name it as model.prior, beside the decoder of its family as model.base"
NO_PICTURE = "makes no picture of a prompt"
ENDED = "is one of diffusers' deprecated pipelines"
PLACES = "splits its batch by position, so that no two requests could share one"

# Why pipeline classes cannot be served, after "NAMEPipeline …", by what their names begin with; the longest that fits counts.
REFUSED: dict[str, str] = {
    begin: reason
    for reason, begins in (
        (CONTROL_IMAGE, "FluxControlImg2Img FluxControlInpaint"),
        ("has a language model draw the picture's tokens from torch's global generator, which calls share", "GlmImage"),
        ("takes the latents of another pipeline in place of a picture", "HunyuanImageRefiner"),
        ("makes several pictures of one, its layers", "QwenImageLayered"),
        ("takes the positions of a batch's first row for all of its rows, so that no two requests could share one", "OmniGen"),
        ("calls the layers of its language model one by one, past the calls that are joined", "Ideogram4"),
        ("wants a guardrail of its own, the package cosmos_guardrail, to see each prompt and image", "Cosmos2TextToImage"),
        ("reads its language model by a hook on a layer, which would see the rows of all requests", "JoyImageEdit"),
        (
            COMBINED,
            "KandinskyCombined KandinskyImg2ImgCombined KandinskyInpaintCombined KandinskyV22Combined KandinskyV22Img2ImgCombined"
            " KandinskyV22InpaintCombined StableCascadeCombined WuerstchenCombined",
        ),
        (A_PRIOR, "KandinskyPrior KandinskyV22Prior StableCascadePrior WuerstchenPrior"),
        (CONTROL_IMAGE, "KandinskyV22Controlnet"),
        (
            "makes embeddings of a picture beside a prompt; set _class_name to KandinskyV22PriorPipeline in model_index.json",
            "KandinskyV22PriorEmb2Emb",
        ),
        ("enlarges an image toward a second picture, and a row has one", "IFImg2ImgSuperResolution IFInpaintingSuperResolution"),
        ("raises in diffusers itself, which looks for guidance_embeds in a config that has none", "ChromaInpaint"),
        (NO_PICTURE, "Marigold ShapE"),
        ("runs on ONNX Runtime, whose calls cannot be joined", "Onnx StableDiffusionOnnx"),
        ("makes embeddings of pictures for Flux; give it as model.references beside a Flux", "FluxPriorRedux"),
        ("keeps keys and values of the first step in an object of each call, so that calls could not be joined", "Flux2KleinKV"),
        ("adds up what its experts make in an order that differs from run to run on a GPU", "NucleusMoE"),
        ("takes a grid of example pictures, and no column gives one", "VisualCloze"),
        ("makes videos", "ChronoEdit Helios Kandinsky5 Kandinsky6"),
        ("inverts a picture by a call of its own before it edits the picture", "LEditsPP"),
        (
            ENDED,
            "Amused BlipDiffusion CycleDiffusion KarrasVe LDMPipeline PaintByExample PNDM RePaint ScoreSdeVe"
            " SemanticStableDiffusion StableDiffusionAttendAndExcite"
            " StableDiffusionDiffEdit StableDiffusionInpaintPipelineLegacy StableDiffusionLDM3D"
            " StableDiffusionModelEditing StableDiffusionPanorama StableDiffusionParadigms StableDiffusionPipelineSafe"
            " StableDiffusionPix2PixZero StableDiffusionSAG UnCLIP UniDiffuser VersatileDiffusion VQDiffusion",
        ),
        ("draws pictures in boxes beside phrases, and the boxes of rows have phrases alone", "StableDiffusionGLIGENTextImage"),
        (_CONTROLLED.format("StableDiffusionPipeline"), "StableDiffusionAdapter"),
        (_CONTROLLED.format("StableDiffusionXLPipeline"), "StableDiffusionXLAdapter"),
        (
            "gives its transformer a list of pictures for each row, and encodes pictures in bfloat16 whatever the dtype",
            "ZImageOmni",
        ),
    )
    for begin in begins.split()
}


def refusal(pipeline: str) -> str | None:
    """Return the reason why a pipeline class cannot be served, None where it can be."""
    if "PAG" in pipeline:
        # Its attention takes the rows of a batch for parts of one guidance, by their places.
        return f"{PLACES}; set _class_name to {pipeline.replace('PAG', '')} in model_index.json"
    if "Modular" in pipeline:
        return "is made of modular blocks, which are called in another way than pipelines; that is not supported yet"
    if "ControlNet" in pipeline:
        return "was saved with its ControlNet; give the base model as model.base, and the ControlNet in model.controlnets"
    fitting = [begin for begin in REFUSED if pipeline.startswith(begin)]
    if any(pipeline.startswith(begin) and len(begin) > len(max(fitting, key=len, default="")) for begin in FAMILIES):
        return None  # of a family that makes videos, too
    return REFUSED[max(fitting, key=len)] if fitting else None
