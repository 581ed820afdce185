"""What knows nothing of images: errors, checks, keyed randomness, the cache, progress, devices, processes."""
