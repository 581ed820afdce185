"""Condensed sets on the Hub: published in one commit, downloaded at one commit."""
