"""Takes the best images of each class out of a dataset, as many of each, and trains a small classifier with them.

    python examples/balanced-classifier/train.py DATASET [--quota 24] [--epochs 20]

The classifier is judged on pictures that were drawn, not rendered, so that its accuracy says whether the rendered images are right.
"""

import argparse
import json

import numpy as np
import torch
from torch import nn

import promptmill
from promptmill.embedded.pictures import draw
from promptmill.embedded.world import COLORS, PLACES, SIZES, Scene, Thing


def best(dataset: promptmill.Dataset, quota: int) -> dict[str, str]:
    """Return the labels of the chosen images by key: of each class the `quota` images with the highest CLIP score.

    Raises:
        SystemExit: A class has fewer images; the message names each such class.
    """
    kept = [row for row in dataset.table(["key", "label", "clip_score", "selected"]).to_pylist() if row["selected"]]
    classes: dict[str, list[str]] = {}
    for row in sorted(kept, key=lambda row: (-row["clip_score"], row["key"])):
        classes.setdefault(row["label"], []).append(row["key"])
    short = [f"{label} has {len(keys)}" for label, keys in sorted(classes.items()) if len(keys) < quota]
    if short or not classes:
        found = ", ".join(short) or "nothing was kept"
        raise SystemExit(f"{quota} images of each class are wanted; {found}. Give each class more rows, or ask for a smaller quota")
    return {key: label for label, keys in classes.items() for key in keys[:quota]}


def rendered(dataset: promptmill.Dataset, chosen: dict[str, str], classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the chosen images: (B, 3, 64, 64) float32 in [-1, 1], and the numbers of their classes, (B,) int64."""
    found = [(np.asarray(image), classes.index(chosen[key])) for key, image, _ in dataset.images() if key in chosen]
    return tensor(np.stack([pixels for pixels, _ in found])), torch.tensor([number for _, number in found])


def drawn(each: int, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pictures to judge by, `each` of every class, in the forms that `rendered` has."""
    rng, scenes = np.random.default_rng(1), []
    for label in classes * each:
        color, shape = label.split()
        background = str(rng.choice([one for one in COLORS if one != color]))
        scenes.append(Scene((Thing(shape, color, str(rng.choice(SIZES)), str(rng.choice(PLACES))),), background))
    return tensor(draw(scenes, rng).pixels), torch.arange(len(classes)).repeat(each)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """Convert pixels, (B, 64, 64, 3) uint8, to a batch of a network: (B, 3, 64, 64) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def network(classes: int) -> nn.Sequential:
    """Make a small convolutional network that takes the strongest answer over all places."""
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(96, classes))


def train(images: torch.Tensor, labels: torch.Tensor, classes: int, epochs: int) -> nn.Sequential:
    """Train a network on images; half of each batch is mirrored, which changes none of the classes."""
    torch.manual_seed(0)
    model = network(classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    batches = -(-len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(32):
            batch = images[part]
            batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
            nn.functional.cross_entropy(model(batch), labels[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train on a dataset and print, as JSON, how many images there are of each class and how many answers are right."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("dataset", help="the folder or URI of the dataset")
    asked.add_argument("--quota", type=int, default=24, help="images of each class")
    asked.add_argument("--epochs", type=int, default=20)
    given = asked.parse_args()
    dataset = promptmill.open(given.dataset)
    chosen = best(dataset, given.quota)
    classes = sorted(set(chosen.values()))
    images, labels = rendered(dataset, chosen, classes)
    model = train(images, labels, len(classes), given.epochs)
    pictures, truth = drawn(50, classes)
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in pictures.split(100)])
    accuracy = (answers == truth).float().mean().item()
    counts = {label: int((labels == number).sum()) for number, label in enumerate(classes)}
    print(json.dumps({"images": counts, "drawn pictures": len(truth), "accuracy": round(accuracy, 3)}))


if __name__ == "__main__":
    main()
