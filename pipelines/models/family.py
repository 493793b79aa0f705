"""Defines how the pipelines of a family of models differ from those of Stable Diffusion."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from promptmill.manifests.rules import Repainting
from promptmill.pipelines.work.evaluations import StepsLeft

Adapters = Literal["unet", "flux", "sd3"]
# What the parts of pipelines are called that remove noise, and that make images of latents.
DENOISERS = ("unet", "transformer", "decoder")
VAES = ("vae", "movq", "vqgan", "vqvae")


@dataclass(frozen=True)
class Family:
    """Says how the pipelines of a family are called.

    Attributes:
        rows: Rows of the denoiser's batch that a candidate with guidance takes at a time: 1 where positive and negative prompt go
            through the denoiser one after the other, or where guidance is an input of the model.
        guidance: The argument that takes a row's guidance scale; None where the family has no guidance.
        led_first: Whether a call of the denoiser begins with the rows that guidance leads to, and has those that it leads away from
            behind them.
        embedded: Whether guidance is an input of the model, and of no effect where the model has no such input.
        projected: Whether a UNet with a projection beside that of time (time_cond_proj_dim) takes the guidance scale by it.
        unguided: The largest guidance scale that means no guidance; `GUIDED_ALWAYS` where every step is guided.
        least: The smallest guidance scale that a call is given, where a smaller one would guide again.
        least_guidance: The least guidance scale that its pipelines take.
        negative: Whether negative prompts have an effect, at a guidance scale above 1.
        empty_negative: Whether guidance needs a negative prompt, be it an empty one.
        prompts_apart: Whether a call pads its texts to the longest of them, so that texts in one call depend on each other.
        strength: Whether img2img and inpainting take a strength.
        steps_left: How many steps a strength leaves: its share rounded down or up, or all of them, in a schedule that is shorter.
        patch: Latents of a side of what a token stands for, where the pipelines cut latents and the transformer's config says less.
        multiple: Where the denoiser takes a list with a tensor a row: the length to a multiple of which it pads each of them.
        longest: The argument of the denoiser, a mask of texts, by whose longest row the denoiser cuts a batch.
        solvers: The schedulers that the pipelines of every mode can call; None: all, or `euler` alone where the model follows a
            flow. Diffusers' img2img and inpainting have the scheduler scale noise, which two solvers of flows cannot; other
            pipelines hand on sigmas, which not every scheduler takes.
        drawing: Whether the pipelines give schedulers the candidates' generators; otherwise a model's own scheduler has to be one
            of `solvers`, too, which draw nothing.
        controlnet: The class of the family's ControlNets; None where it has none.
        several_controls: Whether its pipelines take several ControlNets at once.
        timed_controls: Whether a ControlNet can begin later and end sooner than the steps do.
        encoded_controls: Whether its pipelines encode control images by the VAE, and so take them in -1 … 1.
        control_modes: The key of a ControlNet's config that counts its modes, where ControlNets of several modes are among the
            family's; None where there are none.
        guess: Whether its pipelines with ControlNets have a guess mode.
        from_noise: The modes in which its pipelines with ControlNets begin with noise alone, though there is a picture.
        image_prompts: Whose adapters (IP-Adapters) bring reference images into its denoiser: those of UNets, of Flux, or of Stable
            Diffusion 3; None where it has none.
        redux: The pipeline that makes embeddings of reference images and prompts, which the family's pipelines take; None: none.
        references: Whether a call takes pictures as references for all of its samples, so that it has one row's alone.
        pictures: How many pictures of one row a call takes.
        sized: Whether its pipelines tell the scheduler the size of images, for a schedule that depends on it.
        further: Those columns of `parameters.FURTHER` that the family takes.
        most_noise: The largest noise level, where the model's index says none.
        enlarges: How many times larger an image's sides are than those of the picture that the image is made of.
        by_itself: Parts that compute each picture by itself and at once, since they are called in a context of torch's.
        length_first: Whether the text encoder answers (length, rows, width) in place of (rows, length, width).
        package: A package beside those that promptmill installs, which the family's tokenizer needs; None where there is none.
        libraries: Further libraries whose versions decide what the family's models see of a prompt.
        picture: The argument that takes the picture of a row.
        signed: Whether tensors of pictures are given in -1 … 1.
        whole_pictures: Whether pipelines are given pictures as Pillow has them, for processors that scale the values themselves.
        single: Whether a call makes one image, of one row's pictures as Pillow has them.
        guiders: Parts that guide, where they are there, and keep a state between steps: each call has copies of them with the row's
            scale. Without them guidance is an input of the model.
        second: Arguments of the denoiser whose second dimension is the rows.
        experts: The class of the denoiser's layers that sort the tokens of all rows by experts; each row goes through by itself.
        seeds_steps: Whether the scheduler is given the candidates' generators for its noise: the pipelines give it none, so that it
            would draw from torch's global one.
        beside: Parts that repositories leave out, and the model that goes there.
        repainting: The limits of rows with a mask, where they are other ones.
        sizes: The sizes (width, height) that its pipelines render, to one of which they would bend any other; empty where any.
        bends: The size (width, height) that its pipelines render in place of another one, as a function of that; None where they
            render every size.
        most_pixels: The key of the denoiser's config with the largest size, in latents; None where sizes are unbounded.
        attributes: What a call sets on its pipeline first: functions of the request and of how many pixels a latent has on a side.
        output: The form of images that is asked for; of `pt` one family makes values in -1 … 1, as its VAE has them.
        prior: The class of the pipeline that makes the embeddings that the model decodes; None where the model reads texts itself.
        least_prior_steps: The fewest steps that the scheduler of the prior takes: unCLIP's divides by one less.
        inner: Steps of a prior that is a part of the model itself, with guidance, as diffusers has them where nothing is said.
        negative_too: Whether the prior makes an embedding of the negative prompt as well.
        multiple_by: Returns the pixels that sides are multiples of, of the indexes of the model and of its prior, and of how many
            times smaller latents are than images; None where VAE and patches say it.
        masked: Whether its inpainting takes a denoiser that is given the masked picture, and no strength.
        one_mask: Whether a call lays its first picture and mask over all of its samples, so that it has one row's alone.
        one_text: Whether a call has one text, for all of its samples.
        bare_text: Whether a call of one image takes its texts by themselves, and no lists of them.
        prompted: Whether the model reads prompts.
        prompt_key: The key that a prompt has, as a JSON object, which is all that the pipelines take; None: prompts are any text.
        classes: The key of the denoiser's config that counts the classes of which each row names one; None where it draws none.
        fixed: Whether images have the one size that the denoiser's config says.
        latent: Whether the denoiser makes latents, which a VAE decodes; otherwise it makes the pixels.
        moved: The module of diffusers' pipelines that the family's indexes name, which has moved among the deprecated ones.
        true_cfg: The modes whose pipelines take a true_cfg_scale with a negative prompt, beside guidance that is the model's input.
        weighting: Which text encoders read weights in prompts: those of CLIP, whose chunks stand one behind another, or one of T5
            beside CLIP's; None: none do.
        boxes: Whether its pipelines draw phrases in the boxes of a row, or repaint a picture there, in one image a call.
        always: Further arguments of every call: values, or functions of the request.
    """

    rows: int = 2
    guidance: str | None = "guidance_scale"
    led_first: bool = False
    embedded: bool = False
    projected: bool = True
    unguided: float = 1.0
    least: float = 0.0
    least_guidance: float = 0.0
    negative: bool = True
    empty_negative: bool = False
    prompts_apart: bool = False
    strength: bool = True
    steps_left: StepsLeft = "down"
    patch: int | None = None
    multiple: int = 1
    longest: str | None = None
    solvers: tuple[str, ...] | None = None
    drawing: bool = True
    controlnet: str | None = None
    several_controls: bool = True
    timed_controls: bool = True
    encoded_controls: bool = True
    control_modes: str | None = None
    guess: bool = False
    from_noise: tuple[str, ...] = ()
    image_prompts: Adapters | None = None
    redux: str | None = None
    references: bool = False
    pictures: int = 1
    sized: bool = False
    further: tuple[str, ...] = ()
    most_noise: int = 350
    enlarges: int = 1
    by_itself: tuple[str, ...] = ()
    length_first: bool = False
    package: str | None = None
    libraries: tuple[str, ...] = ()
    picture: str = "image"
    signed: bool = False
    whole_pictures: bool = False
    single: bool = False
    guiders: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    experts: str | None = None
    seeds_steps: bool = False
    beside: Mapping[str, str] = field(default_factory=dict)
    repainting: Repainting = field(default_factory=Repainting)
    sizes: tuple[tuple[int, int], ...] = ()
    bends: Callable[[int, int], tuple[int, int]] | None = None
    most_pixels: str | None = None
    attributes: Mapping[str, Callable[[Any, int], Any]] = field(default_factory=dict)
    output: str = "pt"
    prior: str | None = None
    least_prior_steps: int = 1
    inner: int = 0
    negative_too: bool = False
    multiple_by: Callable[[Mapping[str, Any], Mapping[str, Any], int], int] | None = None
    masked: bool = False
    one_mask: bool = False
    one_text: bool = False
    bare_text: bool = False
    prompted: bool = True
    prompt_key: str | None = None
    classes: str | None = None
    fixed: bool = False
    latent: bool = True
    moved: str | None = None
    true_cfg: tuple[str, ...] = ()
    weighting: Literal["clip", "t5"] | None = None
    boxes: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, request: Any) -> dict[str, Any]:
        """Return the further arguments of a call for a request."""
        return {name: value(request) if callable(value) else value for name, value in self.always.items()}


def lacking(family: Family) -> str | None:
    """Return the package that a family needs and that is not installed here, None where all are."""
    return family.package if family.package and find_spec(family.package) is None else None
