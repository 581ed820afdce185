"""Condensed sets on the Hub."""
