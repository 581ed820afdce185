"""Numbers and words as sentences and tables need them."""

from __future__ import annotations


def plural(n: float, noun: str) -> str:
    """Return a noun as it stands behind a number.

    Example:
        >>> plural(1, "epoch"), plural(0.5, "epoch"), plural(3, "class")
        ('epoch', 'epochs', 'classes')
    """
    if n == 1:
        return noun
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def decimals(value: float, digits: int, sign: str = "") -> str:
    """Return a number with some decimals; zero has no minus, however small the negative number that it stands for.

    Args:
        value: The number.
        digits: Number of decimals.
        sign: `"+"` if positive numbers and zero have a sign, too.

    Example:
        >>> decimals(-0.004, 2), decimals(-0.004, 2, "+"), decimals(-0.006, 2)
        ('0.00', '+0.00', '-0.01')
    """
    text = f"{value:{sign}.{digits}f}"
    return text if float(text) else text.replace("-", sign)
