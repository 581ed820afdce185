"""The card of a folder or repository of condensed sets."""
