"""Makes the options by which diffusers and transformers load the parts of a model with fewer bits a weight."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from promptmill.configs.weights import GGUF
from promptmill.pipelines.rendering.libraries import of_diffusers, transformers
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import lean_imports

# Weights alone are stored smaller, and each is computed with as the numbers of `dtype` that it stands for. So what is next to a row
# in a batch has no influence on the row, as it would have where activations were scaled together.
TORCHAO = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}


def quantisation(kinds: Mapping[str, str], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the options of a pipeline's `from_pretrained` that quantise parts as they are loaded.

    Args:
        kinds: int8, fp8 or nf4, by the names of parts.
        dtype: What is computed with.
        device: Where the model computes.

    Raises:
        ModelError: A library is missing, or NF4 is asked for without a GPU.
    """
    if not kinds:
        return {}
    made = {name: _config(kind, name, dtype, device) for name, kind in kinds.items()}
    return {"quantization_config": of_diffusers("PipelineQuantizationConfig")(quant_mapping=made)}


def quantisation_of_part(kind: str | None, name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the options of a part's own `from_pretrained` or `from_single_file` that quantise the part; none without a kind."""
    return {"quantization_config": _config(kind, name, dtype, device)} if kind else {}


def gguf(place: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of `from_single_file` for a file of GGUF, whose weights stay as they are; none for another file."""
    if place.suffix != GGUF:
        return {}
    config = _made(lambda: of_diffusers("GGUFQuantizationConfig")(compute_dtype=dtype), "model.denoiser", "gguf")
    return {"quantization_config": config}


def _config(kind: str, name: str, dtype: torch.dtype, device: torch.device) -> Any:
    where = f"model.quantize.{name}"
    # diffusers and transformers have classes of one name each for their own modules.
    classes = transformers if name.startswith("text_encoder") else None
    if kind == "nf4":
        if device.type != "cuda":
            raise ModelError(f"{where}: nf4 needs a GPU, and this is a CPU; int8 and fp8 need none")
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return _made(lambda: _class(classes, "BitsAndBytesConfig")(**options), where, "bitsandbytes")

    def torchao() -> Any:
        import torchao.quantization

        return _class(classes, "TorchAoConfig")(getattr(torchao.quantization, TORCHAO[kind])())

    return _made(torchao, where, "torchao")


def _class(classes: Any, name: str) -> Any:
    return of_diffusers(name) if classes is None else getattr(classes, name)


def _made(make: Callable[[], Any], where: str, package: str) -> Any:
    try:
        with lean_imports():
            return make()
    except ImportError:
        raise ModelError(f"{where} needs {package}: pip install 'promptmill[quantize]'") from None
