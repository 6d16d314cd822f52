"""How real and synthetic images meet in a batch, for every trainer: records of stores, modes, partners, and the batch sampler. Knows no trainer's models."""
