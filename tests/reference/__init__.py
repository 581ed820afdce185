"""Textbook implementations that the fast ones are tested against: slow, obvious, written on their own."""
