"""What is trained, and how: networks, augmentation, training recipes, the training loop."""
