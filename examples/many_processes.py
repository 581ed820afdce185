"""Condense and evaluate in several processes, which divide the classes and the networks among themselves.

Every process gets the same set, and one of them saves it. On GPUs `accelerate launch` starts one process for each. On
CPUs it would start a single one, so take `torchrun` there. Without a launcher there is one process:

    accelerate launch --num_processes 2 examples/many_processes.py
    torchrun --nproc_per_node 2 examples/many_processes.py

Launchers such as Slurm's `srun` do not connect the processes to each other: start one of these two commands under them.
"""

import argparse
from pathlib import Path

from accelerate import PartialState

from hf_condense import condense_dataset, evaluate
from hf_condense.demo_data import load_demo


def main(fast: bool = False, out: Path = Path("condensed/many_processes")) -> None:
    """Run the example; `fast` takes so few steps that the numbers mean nothing."""
    ds = load_demo()
    train, test = (ds["train"].select(range(200)), ds["test"].select(range(100))) if fast else (ds["train"], ds["test"])
    small = condense_dataset(
        train,
        "dm",
        ipc=1,
        network="convnet-w8" if fast else "convnet-w32",
        steps=2 if fast else 100,
        augment="color_crop_cutout_scale_rotate",  # no flips, as mirroring changes a digit's meaning
        compile=not fast and "auto",
    )
    table = evaluate(
        small,
        test,
        networks="convnet-w8" if fast else "convnet-w32",
        recipe="dc",
        epochs=2 if fast else 300,
        seeds=2 if fast else 4,
        compile=not fast and "auto",
    )
    state = PartialState()  # of the processes
    if state.is_main_process:  # all processes have the result; one writes it (but push_to_hub is called by all)
        small.with_evaluation(table).save_condensed(out, overwrite=True)
        print(table)
        print(f"{state.num_processes} processes; saved {out}")
    state.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("condensed/many_processes"), help="folder for the result")
    arguments = parser.parse_args()
    main(arguments.fast, arguments.out)
