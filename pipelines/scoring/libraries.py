"""Imports open_clip for all that scores, without what no worker uses of it."""

import torch  # noqa: F401 (by itself, before it is imported as a part of another: the whole of it is used)

from promptmill.pipelines.work.lean_imports import lean_imports

with lean_imports():
    import open_clip
    from open_clip.transform import PreprocessCfg

__all__ = ["PreprocessCfg", "open_clip"]
