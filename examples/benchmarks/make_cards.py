"""Render the cards of saved sets, one for every folder of them, from what was recorded of their making and measuring.

For example, after `table = evaluate(small, test, eight_bit=True)` and
`small.with_evaluation(table).save_condensed("sets/mnist")`:

    python examples/benchmarks/make_cards.py sets/mnist sets/cifar10 --out model_cards
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_condense import condense_dataset, evaluate
from hf_condense.condensed.card.render import default_config, render
from hf_condense.condensed.facts import PREVIEW, read_facts
from hf_condense.condensed.folder import list_sets, read_card
from hf_condense.demo_data import load_demo


def make_card(folder: Path, out: Path) -> Path:
    """Write `out/<folder>.md` and the pictures that it shows, `out/<folder>/<config>/preview.png`."""
    sets = {name: read_facts(folder / name) for name in list_sets(folder)}
    if not sets:
        raise SystemExit(f"{folder} holds no condensed set; pass folders that save_condensed wrote")
    default = default_config(read_card(folder) or "")
    for name in sets:
        if (folder / name / PREVIEW).is_file():
            (out / folder.name / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name / PREVIEW, out / folder.name / name / PREVIEW)
    card = out / f"{folder.name}.md"
    text = render(sets, None, default=default, place=f"path/to/{folder.name}", pictures=f"{folder.name}/")
    card.write_text(text, encoding="utf-8")
    return card


def make_demo(folder: Path) -> None:
    """Save a set that is condensed and measured in seconds; its numbers mean nothing."""
    ds = load_demo()
    small = condense_dataset(ds["train"], "dm", ipc=1, network="convnet-w8", steps=2)
    table = evaluate(small, ds["test"], networks="convnet-w8", recipe="dc", epochs=2, seeds=2, eight_bit=True)
    small.with_evaluation(table).save_condensed(folder)


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders that save_condensed wrote")
    parser.add_argument("--out", type=Path, default=Path("model_cards"), help="folder of the cards")
    parser.add_argument("--fast", action="store_true", help="the card of a demo set, to see that it runs")
    given = parser.parse_args()
    if given.fast:
        with TemporaryDirectory() as place:
            make_demo(Path(place, "sets", "demo"))
            print(make_card(Path(place, "sets", "demo"), Path(place)).read_text(encoding="utf-8"))
    for folder in given.folders:
        given.out.mkdir(parents=True, exist_ok=True)
        print(f"wrote {make_card(folder.resolve(), given.out)}")


if __name__ == "__main__":
    main()
