"""Holds the training loop that every stage shares: seeded by the step, resumable after a kill at any moment.

Nothing random outlives a step: data and noise of step n come from generators seeded by (seed, n). So the weights, the optimiser's
moments and the step are the whole state, and a run that was killed and resumed ends with the bits of one that was not, on the same
kind of hardware with the same number of threads.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Recipe:
    """Holds the hyperparameters of one stage.

    Attributes:
        steps: Optimiser steps in all.
        learning_rate: The peak, reached after `warmup` steps and held until the last `decay` share of the steps, over which the
            rate falls linearly to zero.
        weight_decay: AdamW's.
        ema: Decay of the exponential moving average of the weights, which is what a stage ships.
        clip: Largest norm of the gradient.
        seed: Seed of the initial weights and, with the step, of everything drawn.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, falling)


@dataclass(frozen=True)
class Draw:
    """Holds the two sources of randomness of one step."""

    step: int
    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def of(cls, seed: int, step: int) -> "Draw":
        # torch's CPU generator heeds 32 bits of a seed only, so the pair is hashed. The noise is made on the CPU, so that a
        # GPU trains on the same numbers.
        mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
        return cls(step, np.random.default_rng([seed, step]), torch.Generator().manual_seed(mixed))

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal noise of the given shape, fp32, on the training device."""
        return torch.randn(shape, generator=self.torch).to(DEVICE)


def train(
    model: nn.Module,
    loss: Callable[[Draw], Tensor],
    recipe: Recipe,
    checkpoint: Path,
    *,
    save_every_s: float = 60.0,
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
) -> nn.Module:
    """Train `model` in place and return `model` with the averaged weights.

    Args:
        model: The module whose parameters that require a gradient are trained.
        loss: The scalar loss of one step.
        recipe: The stage's hyperparameters.
        checkpoint: A safetensors file; where the file exists, training goes on from its state. Replaced atomically.
        save_every_s: Seconds between checkpoints.
        stop_after: Stop once this many steps are done (the checkpoint is kept), as if interrupted.
        say: Takes lines of progress.
    """
    trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    buffers = dict(model.named_buffers())
    average = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    done, spent = _load(checkpoint, recipe, trained, average, buffers, optimizer)
    if done:
        say(f"{checkpoint.stem}: going on after step {done} of {recipe.steps}")

    model.train()
    started = saved = spoken = time.monotonic()
    running = math.nan
    last = min(recipe.steps, stop_after or recipe.steps)
    for step in range(done, last):
        value = loss(Draw.of(recipe.seed, step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.step()
        # A young average would remember the random start: its memory grows with the steps.
        keep = min(recipe.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in trained], 1 - keep)

        now = time.monotonic()
        running = value.item() if math.isnan(running) else 0.98 * running + 0.02 * value.item()
        if now - spoken > 15 or step + 1 == last:
            pace = (now - started) / (step + 1 - done)
            left = pace * (recipe.steps - step - 1)
            progress = f"{checkpoint.stem}: step {step + 1}/{recipe.steps}"
            say(f"{progress}  loss {running:.5f}  {pace:.3f} s a step  {left / 60:.1f} min left")
            spoken = now
        if now - saved > save_every_s or step + 1 == last:
            _save(checkpoint, recipe, step + 1, spent + now - started, trained, average, buffers, optimizer)
            saved = time.monotonic()

    with torch.no_grad():
        for parameter, averaged in zip(trained, average, strict=True):
            parameter.copy_(averaged)
    return model.eval()


def seconds_spent(checkpoint: Path) -> float:
    """Return the time in seconds that the training behind a checkpoint has taken in all."""
    with safe_open(checkpoint, "pt") as file:
        return float(json.loads(file.metadata()["state"])["seconds"])


def _save(
    path: Path,
    recipe: Recipe,
    done: int,
    seconds: float,
    trained: list[Tensor],
    average: list[Tensor],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"buffer.{name}": buffer.contiguous() for name, buffer in buffers.items()}
    for i, parameter in enumerate(trained):
        state = optimizer.state[parameter]
        tensors[f"{i}.weight"] = parameter.detach().contiguous()
        tensors[f"{i}.average"] = average[i].contiguous()
        tensors[f"{i}.first"] = state["exp_avg"].contiguous()
        tensors[f"{i}.second"] = state["exp_avg_sq"].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    state_text = json.dumps({"done": done, "seconds": seconds, "recipe": asdict(recipe)})
    scratch = path.with_name(path.name + ".tmp")
    save_file(tensors, scratch, metadata={"state": state_text})
    with scratch.open("rb+") as file:
        os.fsync(file.fileno())
    scratch.replace(path)


def _load(
    path: Path,
    recipe: Recipe,
    trained: list[Tensor],
    average: list[Tensor],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    with safe_open(path, "pt", device=DEVICE) as file, torch.no_grad():
        state = json.loads(file.metadata()["state"])
        for name, wanted in asdict(recipe).items():
            if state["recipe"][name] != wanted:
                raise SystemExit(f"{path}: was trained with {name} {state['recipe'][name]}, not {wanted}; delete it to begin again")
        for name, buffer in buffers.items():
            buffer.copy_(file.get_tensor(f"buffer.{name}"))
        for i, parameter in enumerate(trained):
            parameter.copy_(file.get_tensor(f"{i}.weight"))
            average[i].copy_(file.get_tensor(f"{i}.average"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(state["done"])),
                "exp_avg": torch.empty_like(parameter).copy_(file.get_tensor(f"{i}.first")),
                "exp_avg_sq": torch.empty_like(parameter).copy_(file.get_tensor(f"{i}.second")),
            }
    return state["done"], state["seconds"]
