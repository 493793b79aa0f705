"""Lets FaceID Plus adapters read, for each row, its own picture of a face beside the face's embedding.

diffusers hands such an adapter the embeddings as it hands others the tokens of pictures, but has one attribute of the adapter's
layer (`clip_embeds`) for the pictures of a call. `PicturedFaces` takes the place of the layer, and is handed both of each row in
one tensor.
"""

from typing import Any

import torch

from promptmill.configs.weights import ReferenceWeights


class PicturedFaces(torch.nn.Module):
    """Holds the projection layer of a FaceID Plus adapter, diffusers' own.

    Args:
        layer: The layer, an `IPAdapterFaceIDPlusImageProjection`.
        weights: How the config declares the adapter.

    Attributes:
        width: Of how many values the embedding of a face is.
    """

    def __init__(self, layer: Any, weights: ReferenceWeights):
        super().__init__()
        self.layer = layer
        self.width: int = layer.proj.net[0].proj.in_features
        self._read: int = layer.proj_in.in_features
        # FaceID Plus v2 adds what it makes of the picture to what it makes of the embedding; the first one has no such sum.
        layer.shortcut = weights.shortcut_scale is not None
        layer.shortcut_scale = weights.shortcut_scale or 0.0

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Return the tokens of faces, (faces, tokens, width of texts), from what `pack` makes of each, (faces, 1, values)."""
        self.layer.clip_embeds = packed[..., self.width :].reshape(len(packed), 1, -1, self._read)
        made: torch.Tensor = self.layer(packed[..., : self.width].contiguous())
        self.layer.clip_embeds = None
        return made


def pack(face: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Return the embedding of a face, (1, 1, width), and the tokens of its picture, (1, tokens, values), as one (1, 1, …)."""
    return torch.cat([face.flatten(), picture.flatten()])[None, None]


def let_read_pictures(denoiser: Any, declared: dict[str, ReferenceWeights]) -> None:
    """Put `PicturedFaces` in the place of the FaceID Plus layers of a UNet that has loaded the adapters, in their order."""
    projections = denoiser.encoder_hid_proj
    projections.image_projection_layers = torch.nn.ModuleList(
        PicturedFaces(layer, weights) if weights.kind == "face_plus" else layer
        for layer, weights in zip(projections.image_projection_layers, declared.values(), strict=True)
    )
