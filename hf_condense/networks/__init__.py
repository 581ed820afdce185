"""Networks and how they are trained: augmentation, training recipes, the training loop."""
