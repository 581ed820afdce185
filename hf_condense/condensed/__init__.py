"""The finished set: tensors, storage forms, recipe, files, card, Hub. It knows nothing of how a set was made."""
