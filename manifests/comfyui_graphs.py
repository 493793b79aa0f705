"""Reads graphs of ComfyUI, where sd-parsers needs help: links, samplers in several nodes, LoRAs, and nodes that no row has.

Links are taken from the nodes' inputs, since the workflow beside the graph is the editor's and groups nodes otherwise.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from promptmill.manifests.picture_texts import UnreadError

MOST_NODES = 2000
MOST_SAMPLERS = 20
FURTHEST = 20  # links that are followed from a sampler to its guidance

# Nodes that no parameter is missed of.
_PLAIN = re.compile(
    r"KSampler(Advanced|Select)?|SamplerCustom(Advanced)?|RandomNoise|(Basic|CFG)Guider|BasicScheduler|FluxGuidance"
    r"|.*CheckpointLoader.*|Empty.*Latent.*|CLIPTextEncode|(UNET|VAE|CLIP|DualCLIP|TripleCLIP)Loader|VAEDecode"
    r"|(Save|Preview)Image.*|.*Note|Reroute|Primitive.*|LoraLoader.*"
)


@dataclass(frozen=True)
class Graph:
    """Holds a graph's nodes by their numbers, each with its class and its inputs; a link is a list of a node and an output.

    Attributes:
        kinds: The classes.
        inputs: The inputs; of samplers that are spread over several nodes, all in one.
    """

    kinds: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, nodes: Mapping[str, Any]) -> "Graph":
        """Return the graph of the JSON that ComfyUI writes as `prompt`.

        Raises:
            UnreadError: The nodes are none, or too many.
        """
        if not nodes or not all(isinstance(node, dict) for node in nodes.values()):
            raise UnreadError("has metadata of ComfyUI that are no graph")
        kinds = {str(number): str(node.get("class_type", "")) for number, node in nodes.items()}
        inputs = {str(number): given if isinstance(given := node.get("inputs"), dict) else {} for number, node in nodes.items()}
        graph = cls(kinds, inputs)
        spread = {number: graph._gathered(number) for number, kind in kinds.items() if kind.startswith("SamplerCustom")}
        graph = cls(kinds, {**inputs, **spread})
        if len(nodes) > MOST_NODES or sum("steps" in one for one in graph.inputs.values()) > MOST_SAMPLERS:
            raise UnreadError(f"has a graph of ComfyUI of more than {MOST_NODES:,} nodes or {MOST_SAMPLERS} samplers")
        return graph

    def for_parser(self) -> dict[str, Any]:
        """Return the graph and its links in the form that sd-parsers reads."""
        nodes = {number: {"class_type": kind, "inputs": dict(self.inputs[number])} for number, kind in self.kinds.items()}
        links = [
            [0, str(value[0]), 0, number, 0, str(name).upper()]
            for number, one in self.inputs.items()
            for name, value in one.items()
            if _is_link(value)
        ]
        return {"prompt": nodes, "workflow": {"links": links}}

    def loras(self) -> list[tuple[Any, Any]]:
        """Return the file and the strength of each LoRA that a node loads."""
        return [(one["lora_name"], one.get("strength_model", 1.0)) for one in self.inputs.values() if "lora_name" in one]

    def others(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the class and the values of each node that no row has anything for."""
        for number, kind in self.kinds.items():
            if not _PLAIN.fullmatch(kind):
                yield kind, {name: value for name, value in self.inputs[number].items() if not isinstance(value, list)}

    def _gathered(self, number: str) -> dict[str, Any]:
        """Return the inputs of a sampler whose noise, steps, guidance and texts come from nodes of their own, in one.

        A node with such a name in the middle of the graph is the sampler of Flux and of other models of flows.
        """
        own = self.inputs[number]
        found: dict[str, Any] = {"cfg": own.get("cfg", 1.0), **own}
        for name in ("noise", "sampler", "sigmas", "guider"):
            found |= {
                key: value for key, value in self._behind(own.get(name)).items() if key not in ("positive", "negative", "model")
            }
        guider = self._behind(own.get("guider")) or own
        for name, others in (("positive", ("positive", "conditioning")), ("negative", ("negative",))):
            if link := next((guider[other] for other in others if _is_link(guider.get(other))), None):
                found[name] = link
        if (guidance := self._guidance(found.get("positive"))) is not None:
            found["guidance"] = guidance
        return {"sampler_name": "unknown", "steps": None, **found}

    def _behind(self, link: Any) -> Mapping[str, Any]:
        return self.inputs.get(str(link[0]), {}) if _is_link(link) else {}

    def _guidance(self, link: Any) -> Any:
        """Return the scale of distilled guidance on the way from a sampler to its text, or None."""
        for _ in range(FURTHEST):
            if not _is_link(link):
                return None
            node = self._behind(link)
            if self.kinds.get(str(link[0])) == "FluxGuidance":
                return node.get("guidance")
            link = node.get("conditioning")
        return None


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
