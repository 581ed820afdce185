"""Make a static Space that shows all condensed sets of a folder or of a repository on the Hub.

    python examples/space/make_space.py condensed/demo --out space
    python examples/space/make_space.py me/mnist-condensed --push me/mnist-condensed-page

The folder holds `index.html`, one page without a server or an address outside, and the `README.md` of a Space. With
`--push`, it is published; this needs a token with write access (`hf auth login`).
"""

import argparse
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, SpaceCard, SpaceCardData

from hf_condense import condense_dataset, write_page
from hf_condense.demo_data import load_demo


def make_space(sets: str, out: Path, title: str) -> Path:
    """Write the files of the Space and return its page."""
    page = write_page(sets, out / "index.html")
    facts = SpaceCardData(title=title, sdk="static", app_file="index.html", pinned=False, emoji="🔍")
    SpaceCard(f"---\n{facts.to_yaml()}\n---\n\nMade with hf_condense.\n").save(out / "README.md")
    return page


def main(argv: list[str] | None = None) -> None:
    """Make the Space, and publish it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="?", help="folder or repository of sets; default: one made of packaged digits")
    parser.add_argument("--out", type=Path, default=Path("space"), help="folder of the Space (default: %(default)s)")
    parser.add_argument("--title", default="Condensed image sets", help="title of the Space (default: %(default)s)")
    parser.add_argument("--push", metavar="USER/SPACE", help="also publish it under this name")
    parser.add_argument("--fast", action="store_true", help="as without arguments, to see that it runs")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if args.sets is None:
            condense_dataset(load_demo()["train"], "random", ipc=2, progress=False).save_condensed(folder)
        page = make_space(args.sets or folder, args.out, args.title)
    print(f"wrote {page} ({page.stat().st_size:,} bytes)")
    if args.push:
        api = HfApi()
        api.create_repo(args.push, repo_type="space", space_sdk="static", exist_ok=True)
        api.upload_folder(folder_path=args.out, repo_id=args.push, repo_type="space")
        print(f"published {args.push}")


if __name__ == "__main__":
    main()
