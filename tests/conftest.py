import os

from hypothesis import settings

# Read once, by whoever imports huggingface_hub first: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Machines that run this are shared: a slow example says nothing about the code.
settings.register_profile("shared", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("shared")
