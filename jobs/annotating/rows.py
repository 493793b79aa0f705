"""Makes the rows of a dataset of maps: what a row of the manifest becomes, with the files of its picture and of the maps."""

import hashlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from promptmill.configs.preprocessors import annotator_of
from promptmill.jobs.annotating.inputs import Inputs
from promptmill.manifests.images import ImageError, UnreachableError, load
from promptmill.pipelines.work.units import Placed, sample_key
from promptmill.shards.tables import IMAGE
from promptmill.shards.tars import Sample, write_tar

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.control_maps import ControlMaps

PNG_LEVEL = 1  # of zlib: maps are small at any level


class RowMaker:
    """Makes the rows of a dataset of maps in this process; models are loaded when the first map is made."""

    def __init__(self, inputs: Inputs):
        self._inputs = inputs
        self._maps: ControlMaps | None = None
        self._models = {name: inputs.values["models"][f"model.annotators.{name}"] for name in inputs.annotators}

    def rows(self, shard: int, some: Sequence[Placed]) -> list[dict[str, Any]]:
        """Return the rows of pictures of a shard, each with its files as a tar, or without files where there is no picture.

        Raises:
            ModelError: A model cannot be loaded.
            UnreachableError: A picture's storage or host failed.
        """
        return [self._row(shard, one) for one in some]

    def _row(self, shard: int, placed: Placed) -> dict[str, Any]:
        from promptmill.pipelines.rendering.annotators import MapError

        request = placed.request
        path = request.init_image or ""
        row: dict[str, Any] = {"key": sample_key(shard, placed.row, None), "id": request.id, "shard": shard, IMAGE: None}
        row |= {"prompt": request.prompt or None, "init_image": path}
        try:
            picture = load(path, self._inputs.roots, placed.file, size=self._inputs.wanted.size)
            return {**row, "init_image_sha256": picture.sha256, **self._made(row["key"], picture)}
        except UnreachableError:
            raise
        except ImageError as error:
            return {**row, "status": "failed", "error": "bad_image", "error_message": f"init_image: {error}", "maps": []}
        except MapError as error:
            return {**row, "status": "failed", "error": "render_error", "error_message": str(error), "maps": []}

    def _made(self, key: str, picture: Any) -> dict[str, Any]:
        from promptmill.pipelines.rendering.conditioning import prepare

        width, height = size = self._inputs.wanted.size or picture.image.size
        pixels = prepare(picture.image, width, height)
        files, told = {"png": _png(pixels)}, []
        for name, preprocess in self._inputs.wanted.preprocess.items():
            made = self._all_maps().get(picture.sha256, preprocess, size, lambda: pixels)
            files[f"{name}.png"] = content = _png(made)
            model = self._models.get(annotator_of(preprocess) or "")
            one = {"name": name, "preprocess": preprocess, "model": model, "empty": not made.any()}
            told.append({**one, "sha256": hashlib.sha256(content).hexdigest()})
        values = {"status": "kept", "width": width, "height": height, "maps": told}
        packed = {IMAGE: write_tar([Sample(key, files)]), "sha256": hashlib.sha256(files["png"]).hexdigest()}
        return {**values, **packed, "bytes": len(files["png"])}

    def _all_maps(self) -> "ControlMaps":
        if self._maps is None:
            from promptmill.pipelines.rendering.annotators import Annotators
            from promptmill.pipelines.rendering.control_maps import ControlMaps
            from promptmill.pipelines.rendering.loading import device_here

            annotators = Annotators(self._inputs.annotators, device_here(), self._inputs.threads)
            annotators.load(self._inputs.annotators)
            self._maps = ControlMaps(annotators)
        return self._maps


def _png(pixels: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()
