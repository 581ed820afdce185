"""Parts that know nothing of images: errors, checks, keyed randomness, the cache, progress, devices, processes."""
