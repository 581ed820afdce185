"""Read the user's dataset as images by class: columns, decoding, whitening."""
