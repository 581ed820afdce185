"""Render the card of every folder of saved sets from the recipes and accuracies that the sets hold.

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
    """Write the card `out/<folder>.md` and its pictures `out/<folder>/<config>/preview.png`."""
    sets = {name: read_facts(folder / name) for name in list_sets(folder)}
    if not sets:
        raise SystemExit(f"{folder} holds no condensed set; pass folders written by save_condensed")
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
    """Condense, measure and save a set within seconds; its numbers mean nothing."""
    ds = load_demo()
    small = condense_dataset(ds["train"], "dm", ipc=1, network="convnet-w8", steps=2)
    table = evaluate(small, ds["test"], networks="convnet-w8", recipe="dc", epochs=2, seeds=2, eight_bit=True)
    small.with_evaluation(table).save_condensed(folder)


def main() -> None:
    """Render one card for each folder on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders written by save_condensed")
    parser.add_argument("--out", type=Path, default=Path("model_cards"), help="folder for the cards")
    parser.add_argument("--fast", action="store_true", help="render the card of a demo set only, to see that it runs")
    args = parser.parse_args()
    if args.fast:
        with TemporaryDirectory() as place:
            make_demo(Path(place, "sets", "demo"))
            print(make_card(Path(place, "sets", "demo"), Path(place)).read_text(encoding="utf-8"))
    for folder in args.folders:
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"wrote {make_card(folder.resolve(), args.out)}")


if __name__ == "__main__":
    main()
