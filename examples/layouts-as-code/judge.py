"""Judges the images of a dataset by the embedded world's oracle: whether each shows what its layout says, where it says.

    python examples/layouts-as-code/judge.py DATASET

Prints one line of JSON: how many images there are, how many are right, and the first differences of those that are not.
"""

import json
import sys
from pathlib import Path

import numpy as np

import promptmill
from promptmill.embedded.oracle import differences


def main() -> None:
    """Judge the dataset that the command line names."""
    wrong: dict[str, list[str]] = {}
    number = 0
    for key, image, row in promptmill.open(Path(sys.argv[1])).images(selected=True):
        number += 1
        if found := differences(row["wanted"], np.asarray(image)):
            wrong[key] = found
    print(json.dumps({"images": number, "right": number - len(wrong), "wrong": dict(list(wrong.items())[:3])}))


if __name__ == "__main__":
    main()
