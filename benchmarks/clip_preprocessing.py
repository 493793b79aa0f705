"""Measures batched tensor preprocessing against open_clip's own transform of one PIL image after the other.

    python -m benchmarks.clip_preprocessing --images 32

prints, for images of several sizes and CLIP's usual 224 pixels, the milliseconds an image of both on one thread, their ratio, and
the largest difference between them in levels of 255.
"""

import time
from collections.abc import Callable

import click
import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from promptmill.pipelines.scoring.clip_preprocessing import preprocess

SIZES = ((64, 64), (512, 512), (768, 512), (1024, 1024))
ROUNDS = 5


def best_of(work: Callable[[], torch.Tensor]) -> float:
    """Return the seconds of the quickest of some rounds."""
    work()
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


@click.command()
@click.option("--images", default=32, show_default=True, help="In a batch.")
def main(images: int) -> None:
    """Measure both on the same noise."""
    torch.set_num_threads(1)
    config = PreprocessCfg(size=224)
    transform = image_transform_v2(config, is_train=False)
    random = np.random.default_rng(0)
    for height, width in SIZES:
        batch = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(images)]

        def one_by_one(batch: list[np.ndarray] = batch) -> torch.Tensor:
            return torch.stack([transform(Image.fromarray(pixels)) for pixels in batch])

        def together(batch: list[np.ndarray] = batch) -> torch.Tensor:
            return preprocess(batch, config)

        theirs, ours = best_of(one_by_one), best_of(together)
        levels = ((one_by_one() - together()).abs() * torch.tensor(config.std).view(3, 1, 1) * 255).max().item()
        each = f"open_clip {1e3 * theirs / images:.2f} ms an image, batched {1e3 * ours / images:.2f} ms"
        click.echo(f"{height} x {width}: {each}, {theirs / ours:.1f}x as fast, at most {levels:.0f} levels apart")


if __name__ == "__main__":
    main()
