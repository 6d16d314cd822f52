"""Diffusion models as they lie on disk, known without their weights, then loaded: our own folders, pipelines of diffusers; what was learned on top of them."""
