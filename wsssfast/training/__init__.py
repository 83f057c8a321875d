"""Training: the loop, its data, its state on disk, and what is trained with it."""
