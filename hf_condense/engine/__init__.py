"""One run: the protocol of a method, the registry, settings, the plan, the loop, checkpoints, the learnable set."""
