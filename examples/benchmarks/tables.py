"""Print rows that `forms.py --out` has kept as Markdown tables.

There is one for each dataset and number of images per class: a cell has the mean accuracy in per cent and its standard
deviation under each recipe, and the number of steps. Then comes one for each dataset with what learning adds. This
prints those of the page of benchmarks:

    python examples/benchmarks/tables.py examples/benchmarks/records/forms.jsonl
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

FORMS = ("pixels", "patches", "dct", "siren")  # in the order of the columns
METHODS = ("m3d", "dm", "dance", "ncfm", "dc", "dsa", "idc", "mtt", "tesla", "datm", "esp")  # in that of the rows
GAINING = ("dct", "pixels")  # the forms of the tables of what learning adds
MARKS = "¹²³⁴⁵⁶⁷⁸⁹"


def main(argv: list[str] | None = None) -> list[str]:
    """Print the tables and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path, help="files that forms.py wrote by --out")
    args = parser.parse_args(argv)
    groups: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for line in (line for path in args.records for line in path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if not record["job"]["held_out"]:
            dataset = Path(record["job"]["dataset"] or "demo").name
            groups[dataset, record["job"]["ipc"]].append(record)
    tables = [table(dataset, groups[dataset, ipc]) for dataset, ipc in sorted(groups)]
    by_dataset = {
        name: {ipc: groups[name, ipc] for other, ipc in sorted(groups) if other == name} for name, _ in groups
    }
    tables += [gains(dataset, by_dataset[dataset]) for dataset in sorted(by_dataset)]
    print("\n\n".join(tables))
    return tables


def table(dataset: str, records: list[dict]) -> str:
    """Return the table of a dataset and a number of images per class; of equal cells the last one is shown."""
    job = records[0]["job"]
    classes = next(row["rows"] for record in records for row in record[job["recipes"][0]] if row["set"] == "random")
    cells: dict[tuple[str, tuple[int, int]], str] = {}
    notes: list[str] = []
    last = {(record["method"], record["job"]["form"]): record for record in records}
    for record in records:
        column = FORMS.index(record["job"]["form"].split(":")[0]), record["rows"] // classes
        if record is last[record["method"], record["job"]["form"]]:
            own = [[row for row in record[recipe] if row["set"] == record["set"]] for recipe in job["recipes"]]
            cells[record["method"], column] = f"{accuracies(own)} ({record['steps']:,}){mark(record, notes)}"
        for recipe_rows in zip(*(record[recipe] for recipe in job["recipes"]), strict=True):
            name = recipe_rows[0]["set"]
            kind = "in the form" if name.startswith("random as") else "as many as decoded"
            if name.startswith("random x") or kind == "in the form" or (name == "random" and column == (0, 1)):
                cells[f"random rows, {kind}", column] = accuracies([[row] for row in recipe_rows])
    columns = sorted({column for _, column in cells})
    methods = [f"`{method}`" for method in METHODS if any(key[0] == method for key in cells)]
    names = [*methods, "random rows, as many as decoded", "random rows, in the form"]
    lines = [f"| {dataset}, {job['ipc']} per class | " + " | ".join(heading(column) for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in names:
        row = [cells.get((name.strip("`"), column), "") for column in columns]
        if any(row):
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", *(f"- {MARKS[i]} {text}" for i, text in enumerate(notes)), f"- {costs(records)}"])


def gains(dataset: str, groups: dict[int, list[dict]]) -> str:
    """Return a table of the points that learning adds to the rows that sets start from, by number of images per class.

    These are random rows, in the form of the set and as many as it decodes into.
    """
    cells: dict[tuple[str, str, int], str] = {}
    for ipc, records in groups.items():
        means = means_of(records)
        for (method, form, number), own in means.items():
            if method != "random" and form in GAINING and ("random", form, number) in means:
                points = zip(own, means["random", form, number], strict=True)
                cells[method, form, ipc] = ", ".join(f"{100 * (mean - start):+.1f}" for mean, start in points)
    columns = [(form, ipc) for form in GAINING for ipc in groups if any(key[1:] == (form, ipc) for key in cells)]
    rows = [
        f"| `{method}` | " + " | ".join(cells.get((method, *column), "") for column in columns) + " |"
        for method in METHODS
        if any(key[0] == method for key in cells)
    ]
    head = f"| {dataset} | " + " | ".join(f"{form}, {ipc} per class" for form, ipc in columns) + " |"
    return "\n".join([head, "|---" * (len(columns) + 1) + "|", *rows])


def means_of(records: list[dict]) -> dict[tuple[str, str, int], list[float]]:
    """Return the mean accuracies under each recipe by method (or "random"), form and number of rows; the last count."""
    means: dict[tuple[str, str, int], list[float]] = {}
    for record in records:
        form = record["job"]["form"].split(":")[0]
        for by_recipe in zip(*(record[recipe] for recipe in record["job"]["recipes"]), strict=True):
            own = [row["mean"] for row in by_recipe]
            name, rows = by_recipe[0]["set"], by_recipe[0]["rows"]
            if name == record["set"]:
                means[record["method"], form, rows] = own
            elif name == "random":
                means["random", "pixels", rows] = own
            elif name.startswith("random as"):
                means["random", form, rows] = own
    return means


def heading(column: tuple[int, int]) -> str:
    """Return the name of a storage form, and how many rows it has in the space of an image."""
    form, rows = column
    return FORMS[form] if rows == 1 else f"{FORMS[form]}, {rows} rows"


def accuracies(by_recipe: Iterable[list[dict]]) -> str:
    """Return the accuracies of a set under each recipe."""
    return ", ".join(f"{100 * rows[0]['mean']:.1f} ± {100 * rows[0]['std']:.1f}" for rows in by_recipe)


def mark(record: dict, notes: list[str]) -> str:
    """Return the mark of a cell that has a note, which is added to the notes unless it is among them."""
    if "note" not in record:
        return ""
    if record["note"] not in notes:
        notes.append(record["note"])
    return " " + MARKS[notes.index(record["note"])]


def costs(records: list[dict]) -> str:
    """Return what the cells took, as one sentence."""

    def extent(name: str, digits: int = 0) -> str:
        values = [record[name] for record in records]
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    steps, before = extent("CPU seconds"), extent("CPU seconds before the first update")
    return (
        f"CPU seconds of the steps: {steps}; before them, with experts and pools that were not cached: {before}. "
        f"Peak memory: {extent('peak GiB of the process so far', 1)} GiB."
    )


if __name__ == "__main__":
    main()
