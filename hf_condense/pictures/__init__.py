"""Figures of condensed sets, of their scores and of runs, drawn with matplotlib.

This package is imported on request only: `from hf_condense.pictures import class_grid`. It needs the extra `pictures`.
Every function returns a `matplotlib` figure and saves it if it is given a file. The words are those of the tables.
Series differ in dashes, markers or hatches as well as in colour, so that figures can be read in grey.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        "hf_condense.pictures draws with matplotlib, which is not installed; install the extra: "
        "pip install '.[pictures]' in a clone of hf_condense"
    ) from error

from hf_condense.pictures.embeddings import embedding_scatter
from hf_condense.pictures.runs import Snapshots, evolution_gif, evolution_strip
from hf_condense.pictures.scores import accuracy_against_ipc, accuracy_against_time, accuracy_by_network
from hf_condense.pictures.sets import class_grid, nearest_real_images, real_beside_condensed

__all__ = [
    "Snapshots",
    "accuracy_against_ipc",
    "accuracy_against_time",
    "accuracy_by_network",
    "class_grid",
    "embedding_scatter",
    "evolution_gif",
    "evolution_strip",
    "nearest_real_images",
    "real_beside_condensed",
]
