"""HTML that is built of elements; text is escaped unless it is markup already."""

from __future__ import annotations

import html

_VOID = frozenset({"img", "input", "meta"})  # elements without content; those of SVG are none of them


class Html(str):
    """Markup, which is written as it is."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element as markup. Children and attributes of unknown origin cannot leave their place.

    Args:
        name: Name of the element.
        *children: What it contains: `Html` as it is, anything else as text. None is left out.
        **attributes: Its attributes. `_` in a name stands for `-`, one at the end is dropped. True writes the name
            alone, and None or False leaves the attribute out.

    Example:
        >>> element("p", "a < b", class_="note", hidden=True)
        '<p class="note" hidden>a &lt; b</p>'
    """
    written = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            written.append(key if value is True else f'{key}="{text(value)}"')
    opening = f"<{' '.join(written)}>"
    return Html(opening if name in _VOID else f"{opening}{markup(*children)}</{name}>")


def markup(*children: object) -> Html:
    """Return children one after the other: `Html` as it is, anything else as text; None is left out."""
    return Html("".join(c if isinstance(c, Html) else text(c) for c in children if c is not None))


def text(value: object) -> Html:
    """Return a value as text that stands for itself, also inside an attribute.

    Example:
        >>> text('<"&>')
        '&lt;&quot;&amp;&gt;'
    """
    # Files may hold halves of characters, which cannot be written.
    return Html(html.escape(str(value).encode("utf-8", "replace").decode()))
