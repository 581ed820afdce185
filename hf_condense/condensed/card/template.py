"""What a card looks like: its text, with gaps that `sections.py` fills."""

from __future__ import annotations

import re
from collections.abc import Mapping

START, END = "<!-- hf_condense:start -->", "<!-- hf_condense:end -->"

# The text of a new card. An owner may change everything outside the two markers; between them stands BLOCK.
NEW_CARD = f"""
# {{title}}

{START}{END}
"""

BLOCK = """\
Small sets of images that replace a large training set. The images are either learned or selected from the source, and \
the sets were made with hf_condense. Train on them as on any labelled image dataset, and test on real images.

## Images

{images}

## Load

```python
from datasets import load_dataset  # nothing else is needed

ds = load_dataset({place}, {default}, split="train")  # 8-bit images
```

```python
from hf_condense import load_condensed

ds = load_condensed({place}, {default})  # also a datasets.Dataset
ds.synthetic.decoded(), ds.recipe  # the exact float pixels with their labels, and how they were made
```

{whitening}

## Sets

{sets}

{combined}

{forms}

{extra_splits}

## Accuracy

{accuracies}

{unmeasured}

## How they were made

{recipes}

{teachers}

## Storage

{sizes}

The float budget is the number of pixel values in the images per class, over all classes; in any storage form a set \
may store that many floats. The integers are labels and, in some forms, the places of the floats. All of these and the \
rest are in the tensor file, which is the exact set. The Parquet file holds the set decoded into rows of 8-bit images. \
The fraction in parentheses is relative to the pixels of the source: all its images at the size of the set, \
uncompressed, with 8 bits per channel. The files of the source may be smaller.

## 8-bit images

`load_dataset` returns 8-bit images. Use `load_condensed` for the exact floats, for example to reproduce the \
accuracies that were measured on them.

{eight_bit_errors}

## Nearest real images

{distances}

{verdicts}

## Limits

- Each set was made for the network and the image size in its recipe; other networks and sizes train less well on it.
- A set replaces training data only. Test on real images.
- A set gives no guarantee of privacy: its images may resemble those they were made from, and a coreset contains real \
images.
- Biases and label errors of the source are carried over.

## Licence

A condensed set inherits the terms of its source. This card states {licence}.

{source_licences}

## Citation

{citations}"""

# This follows the table of accuracies, if that has such rows. What pages say as well is in `wording.py`.
FORM_NOTE = """\
"Random rows in the same form" are as many random rows as the set decodes into. They are stored as the set stores its \
images, but not learned, so they show what the storage form alone is worth."""
NOT_MEASURED = """\
Not measured: {names}. Measure a set with `hf_condense.evaluate`; `with_evaluation` adds the result to its card."""

_GAP = re.compile(r"\{(\w+)\}")


def fill(template: str, gaps: Mapping[str, str]) -> str:
    r"""Return a template with its gaps filled; nothing inside a filled-in text is taken for a gap.

    A paragraph that is only an empty gap vanishes, and so does a section all of whose gaps are empty.

    Args:
        template: Paragraphs with an empty line between them; a section begins with a line `## ...`.
        gaps: Text for every `{name}` in the template, empty if there is nothing to say.

    Example:
        >>> fill("Hello {name}.\n\n## More\n\n{more}", {"name": "you", "more": ""})
        'Hello you.'
    """
    sections = (_fill_section(section, gaps) for section in re.split(r"\n\n(?=## )", template))
    return "\n\n".join(section for section in sections if section)


def _fill_section(section: str, gaps: Mapping[str, str]) -> str:
    names = _GAP.findall(section)
    if names and not any(gaps[name] for name in names):
        return ""
    paragraphs = (_GAP.sub(lambda match: gaps[match[1]], paragraph) for paragraph in section.split("\n\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
