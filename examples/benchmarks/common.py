"""What several benchmarks share. They are scripts, so that this file is found because it lies beside them."""

import resource
import sys

DIGITS = ("mnist", "svhn", "demo")  # names of datasets: mirroring changes the meaning of their images
WITHOUT_FLIPS = "color_crop_cutout_scale_rotate"


def peak_of_process() -> float:
    """Return the peak memory of this process so far, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
