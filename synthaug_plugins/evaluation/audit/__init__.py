"""Which images of a store are copies: of real training images, of held-out images, of each other."""
