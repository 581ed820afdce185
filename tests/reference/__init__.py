"""Textbook implementations, slow and obvious, which share no code with the fast ones that are tested against them."""
