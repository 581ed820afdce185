"""The card of a folder or repository of condensed sets; `template.py` shows what it looks like."""
