"""Checks the controls and references of rows against what the config's ControlNets and adapters can do."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from promptmill.configs.errors import nearest, quoted
from promptmill.configs.parameters import PICTURE, Control, Mode, Reference
from promptmill.configs.preprocessors import ANNOTATORS, MASKED, annotator_of, parse_preprocess

ADAPTED = (
    "IP-Adapters are for Stable Diffusion, SDXL, InstructPix2Pix, LCM, Kolors, Stable Diffusion 3, Flux, its Kontext and Chroma, "
    "Redux for Flux"
)


@dataclass(frozen=True)
class Steering:
    """Holds the limits of one type of control.

    Attributes:
        kind: What the type's model is. Controls of several kinds cannot steer one image.
        modes: The modes, with the control in their names, that the model's pipelines have.
        several: Whether the pipelines take several controls at once.
        timed: Whether a control can begin later and end sooner than the steps do.
        multiple: Width and height of a row are multiples of this many pixels.
        repaints: Whether the model sees the row's init image and mask in place of a control image.
        from_noise: The modes in which images begin with noise alone, so that a strength has no effect.
        face: The type of references whose face the model reads in place of the prompt; None where it reads the prompt.
    """

    kind: str
    modes: tuple[Mode, ...]
    several: bool = True
    timed: bool = True
    multiple: int = 1
    repaints: bool = False
    from_noise: tuple[Mode, ...] = ()
    face: str | None = None


@dataclass(frozen=True)
class Reading:
    """Holds the limits of reference images beside a model.

    Attributes:
        masks: Whether an image can act within a mask alone.
        several: Whether an adapter reads several images of a row.
        modes: The modes whose pipelines take reference images; None where all do.
        true_cfg: The modes whose pipelines take a true_cfg_scale beside them; None where all do that take one.
    """

    masks: bool = True
    several: bool = True
    modes: tuple[str, ...] | None = None
    true_cfg: tuple[str, ...] | None = None


EVERY_WAY = Reading()
# What an adapter reads and a row gives it, by the keys of the reference.
READS = {
    frozenset({"image"}): "pictures: give it an image",
    frozenset({"embedding"}): "embeddings of faces: give it an embedding, a .npy file",
    frozenset({"image", "embedding"}): "faces and pictures of them: give it an embedding, a .npy file, and an image",
}


def begin_with_noise(controls: Sequence[Control], mode: Mode, steering: Mapping[str, Steering]) -> bool:
    """Return whether the pipeline for a row's controls begins with noise alone, whatever picture the row gives."""
    return any(mode in steering[control.type].from_noise for control in controls if control.type in steering)


def problems_of_controls(
    controls: Sequence[Control],
    mode: Mode,
    size: tuple[int, int],
    configured: Collection[str],
    steering: Mapping[str, Steering],
    init: str | None = None,
    widened: bool = False,
) -> list[str]:
    """Return the problems of a row's controls.

    Args:
        controls: The row's.
        mode: The row's mode.
        size: Width and height of the row's images, in pixels.
        configured: The types that the config has ControlNets for.
        steering: What each of these types can do; a type that is not there can do everything.
        init: The path of the row's init image, if it has one.
        widened: Whether the row widens that image.
    """
    wrong = []
    for control in controls:
        if control.type in steering and steering[control.type].repaints and (control.image, control.preprocess) != (init, "none"):
            said = "repaints the init_image where the mask_image is white"
            wrong.append(
                f"controls: {quoted(control.type)} {said}; give both, and the init_image as its image, without a preprocess"
            )
        if widened and control.type in steering and steering[control.type].repaints:
            wrong.append(f"controls: {quoted(control.type)} sees the init_image as it is, so that outpaint does not go with it")
        if control.type not in configured:
            known = f"; configured: {', '.join(configured)}" if configured else "; none is configured"
            wrong.append(f"controls: no ControlNet {quoted(control.type)}{nearest(control.type, configured) or known}")
    known_types = {control.type: steering[control.type] for control in controls if control.type in steering}
    kinds = {can.kind: name for name, can in known_types.items()}
    if len(kinds) > 1:
        said = " and ".join(f"{name} ({kind})" for kind, name in kinds.items())
        wrong.append(f"controls: {said} cannot steer one image; give them to rows of their own")
    for name, can in known_types.items():
        if mode not in can.modes and len(kinds) == 1:
            wrong.append(f"controls: {quoted(name)} does not steer {mode}; as a {can.kind} it steers {', '.join(can.modes)}")
        if any(side % can.multiple for side in size):
            wrong.append(f"controls: {quoted(name)} needs a width and a height that are multiples of {can.multiple}")
    if len(controls) > 1 and not all(can.several for can in known_types.values()):
        wrong.append(f"controls: {len(controls)} are given, and the model takes one at a time")
    late = [control.type for control in controls if (control.start, control.end) != (0.0, 1.0)]
    if any(name in known_types and not known_types[name].timed for name in late):
        wrong.append("controls: start and end have no effect in this model, whose controls steer all steps; leave them out")
    return wrong


def problems_of_faces(controls: Sequence[Control], references: Sequence[Reference], steering: Mapping[str, Steering]) -> list[str]:
    """Return a problem for each control that reads a face which the row's references do not have."""
    wanted = {control.type: steering[control.type].face for control in controls if control.type in steering}
    types = [reference.type for reference in references]
    return [
        f"controls: {quoted(name)} reads the face of a reference: give the row one reference of type {quoted(face)}"
        for name, face in wanted.items()
        if face is not None and types.count(face) != 1
    ]


def problems_of_maps(controls: Sequence[Control], declared: Collection[str], masked: bool = False) -> list[str]:
    """Return a problem for each annotator that a row's control maps need and the config does not declare, and for a missing mask.

    Args:
        controls: The row's.
        declared: The annotators that the config declares.
        masked: Whether the row has a mask.
    """
    lacking = [
        f"controls.{number}.preprocess: {MASKED} takes away the pixels that a mask_image repaints, and the row has none"
        for number, control in enumerate(controls)
        if not masked and parse_preprocess(control.preprocess)[0] == MASKED
    ]
    needed = {annotator_of(control.preprocess): control.preprocess for control in controls}
    return lacking + [
        f"controls: preprocess {preprocess} needs a model; declare {ANNOTATORS[name]}, as model.annotators.{name}"
        for name, preprocess in needed.items()
        if name is not None and name not in declared
    ]


def problems_of_references(
    references: Sequence[Reference],
    mode: Mode,
    configured: Collection[str],
    image_prompts: bool,
    faces: Collection[str] = (),
    reading: Reading = EVERY_WAY,
    pictured: Collection[str] = (),
) -> list[str]:
    """Return the problems of a row's references.

    Args:
        references: The row's.
        mode: The row's mode.
        configured: The types that the config has adapters for.
        image_prompts: Whether the model can have adapters at all.
        faces: The types whose adapters read embeddings of faces.
        reading: The limits that the model sets.
        pictured: Those of `faces` whose adapters read the picture of a face, too.
    """
    if references and not image_prompts and all(one.type == PICTURE for one in references):
        can = "FLUX.2, Qwen-Image-Edit-Plus, Qwen-Image 2.1, Bria FIBO 2 and FIBO Edit take several pictures"
        return [f"references: the model takes no further pictures beside an init_image; leave them out; {can}"]
    if references and not image_prompts:
        return [f"references: the model takes no reference images; {ADAPTED}"]
    wrong, types = list[str](), [reference.type for reference in references]
    if references and reading.modes is not None and mode not in reading.modes:
        others = ", ".join(reading.modes)
        wrong.append(f"references: diffusers' pipeline for {mode} takes no reference images; those for {others} do")
    if not reading.masks and (masked := next((one.type for one in references if one.mask is not None), None)) is not None:
        wrong.append(f"references: {quoted(masked)} has a mask, and the model's adapters act everywhere; leave the mask out")
    for name in dict.fromkeys(types):
        if name not in configured:
            known = f"; configured: {', '.join(configured)}" if configured else "; none is configured in model.references"
            wrong.append(f"references: no adapter {quoted(name)}{nearest(name, configured) or known}")
        elif any({*one.sources} != _keys_of(name, faces, pictured) for one in references if one.type == name):
            wrong.append(f"references: {quoted(name)} reads {READS[_keys_of(name, faces, pictured)]}")
        elif (several := [one for one in references if one.type == name])[1:]:
            wrong += _problems_of_several(name, several, reading)
    return wrong


def problems_of_pictures(references: Sequence[Reference], most: int, begins: bool, masked: bool) -> list[str]:
    """Return the problems of a row's references where they are further pictures, for a model that takes several.

    Args:
        references: The row's.
        most: How many pictures of one row the model takes.
        begins: Whether the row has an init image, which is the first of its pictures.
        masked: Whether the row has a mask.
    """
    wrong, others = [], [one.type for one in references if one.type != PICTURE]
    if others:
        wrong.append(f"references: no type {quoted(others[0])} in this model, whose references are further pictures: {PICTURE!r}")
    elif any(one.embedding is not None for one in references):
        wrong.append("references: a further picture is an image; give it an image in place of the embedding")
    elif any("scale" in one.model_fields_set or one.mask is not None for one in references):
        wrong.append("references: further pictures have neither a scale nor a mask; leave these out")
    if (given := len(references) + begins) > most and references:
        wrong.append(f"references: {given} pictures{' with the init_image' * begins}, and the model takes {most} at most")
    if references and masked:
        wrong.append("references: further pictures do not go with a mask_image; give them to rows of their own")
    return wrong


def _keys_of(name: str, faces: Collection[str], pictured: Collection[str]) -> frozenset[str]:
    """Return the keys that a reference of a type has."""
    if name in pictured:
        return frozenset({"image", "embedding"})
    return frozenset({"embedding" if name in faces else "image"})


def _problems_of_several(name: str, several: Sequence[Reference], reading: Reading) -> list[str]:
    """Return the problems of the images that a row gives to one adapter, which reads them together or each within its mask."""
    if not reading.several:
        return [f"references: {quoted(name)} has {len(several)} images, and the model's adapter reads one"]
    masked = sum(one.mask is not None for one in several)
    if 0 < masked < len(several):
        return [
            f"references: {quoted(name)} has {len(several)} images, of which {masked} with a mask; give all of them one, or none"
        ]
    if not masked and len({one.scale for one in several}) > 1:
        said = "images of one adapter without masks are read together"
        return [f"references: {quoted(name)} has {len(several)} images with scales of their own; {said}, so give them one scale"]
    return []
