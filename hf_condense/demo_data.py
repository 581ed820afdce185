"""The MNIST excerpt that ships with the package, for `hf-condense demo` and for a first try without the internet."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, DatasetInfo, NamedSplit
from datasets.table import InMemoryTable

DESCRIPTION = "An excerpt of MNIST (LeCun, Cortes, Burges): 500 training and 100 test images of every digit."
LICENCE = "cc-by-sa-3.0"
FOLDER = Path(__file__).parent / "data" / "mnist"


def load_demo() -> DatasetDict:
    """Load the MNIST excerpt that ships with the package. It needs no internet connection and leaves no cache file.

    The images are real MNIST digits, 28 x 28 pixels, one channel, under CC BY-SA 3.0 (see `data/mnist/LICENSE.md`).
    The columns and features are those of MNIST on the Hub: `image` (`Image`) and `label` (`ClassLabel`, "0" to "9").

    Returns:
        The splits `train` (5,000 rows) and `test` (1,000 rows), balanced over the ten digits, in random order.

    References:
        LeCun et al., "Gradient-based learning applied to document recognition", Proceedings of the IEEE, 1998.

    Example:
        >>> ds = load_demo()
        >>> ds["train"].num_rows, ds["test"].num_rows, ds["train"].column_names
        (5000, 1000, ['image', 'label'])
    """
    return DatasetDict({split: _read(split) for split in ("train", "test")})


def _read(split: str) -> Dataset:
    """Read one split; its features come from the schema that the file stores."""
    table = InMemoryTable(pq.read_table(FOLDER / f"{split}.parquet"))
    info = DatasetInfo(description=DESCRIPTION, license=LICENCE, dataset_name="mnist-excerpt")
    return Dataset(table, info=info, split=NamedSplit(split))
