import os
from pathlib import Path

# Workers are told where promptmill lies, and nothing else of the module path: of a driver's stand-ins they look up `tests`.
ROOT = str(Path(__file__).parents[2])
given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
if ROOT not in given:
    os.environ["PYTHONPATH"] = os.pathsep.join([*given, ROOT])
