from hypothesis import settings

# Machines that run this are shared: a slow example says nothing about the code.
settings.register_profile("shared", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("shared")
