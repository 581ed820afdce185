"""Six processes that do the same at once: `python -m tests.support.hub_crowd REPOSITORY ANOTHER` prints JSON.

Each pushes a set of its own to one repository, all push the same set to another, and each loads one set and the default
from the first. The answers of every process are listed, or what went wrong.
"""

import json
import multiprocessing
import sys
import traceback

import torch

from hf_condense import load_condensed
from tests.support.condensed_sets import assert_same, make_set

PROCESSES = 6


def work(number: int, repo: str, another: str, together, answers) -> None:
    """Be one of the crowd."""
    try:
        together.wait(60)
        own = make_set(ipc=number).push_to_hub(repo).oid
        together.wait(60)
        same = make_set().push_to_hub(another).oid
        together.wait(60)
        assert_same(load_condensed(repo, f"dm_ipc{number}"), make_set(ipc=number))
        answers.put({"own": own, "same": same, "default": load_condensed(repo).recipe.config_name})
    except Exception:
        together.abort()
        answers.put({"error": traceback.format_exc()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")  # everything is imported once; nothing of the Hub is open yet
    together, answers = context.Barrier(PROCESSES), context.Queue()
    numbers = range(1, PROCESSES + 1)
    crowd = [context.Process(target=work, args=(number, *sys.argv[1:], together, answers)) for number in numbers]
    for process in crowd:
        process.start()
    json.dump([answers.get(timeout=180) for _ in crowd], sys.stdout)
    for process in crowd:
        process.join()
