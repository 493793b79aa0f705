"""torch, diffusers and open_clip: requests in, images, scores and ranks out; knows nothing of Ray."""
