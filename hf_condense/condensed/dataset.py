"""The finished set: a `datasets.Dataset` that carries its exact tensors and its recipe."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from PIL import Image
from torch import Tensor

from hf_condense.base.checks import boolean, check_path, check_text
from hf_condense.condensed.folder import save
from hf_condense.condensed.hub.publish import Publication, push
from hf_condense.condensed.preview import first_images
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import Parts
from hf_condense.condensed.scores import RELABELLED, Evaluation
from hf_condense.condensed.scores.records import check_whole
from hf_condense.condensed.tensors import CondensedTensors

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger("hf_condense")

_OWN = ("synthetic", "recipe", "source", "labeller")
_KEEPS_TYPE = frozenset(
    {"with_format", "set_format", "reset_format", "with_transform", "set_transform", "formatted_as"}
)


class CondensedDataset(datasets.Dataset):
    """A condensed set: rows for any training script, with the exact tensors and the recipe.

    The rows are 8-bit images, or real rows for a coreset. Formatting, copying and pickling keep this type. Methods that
    change rows or columns (`map`, `select`, `filter`, `rename_column`, ...) return a plain `Dataset`, so that a set has
    the rows of its tensors. The tensors are sorted by class; the rows of a learned set take classes in turn. Copies
    share the tensors, as they share the Arrow table.

    Attributes:
        synthetic: The exact tensors, in pixel units: 0 is black, 1 is white.
        recipe: How the set was made.
        source: The real training set from which the set was made. It exists in memory only and is not pickled or saved.
        labeller: What gave the soft labels, a function from pixels (n, C, H, W) to logits (n, K) in label order, or
            None. It exists in memory only, like `source`.

    Example:
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.demo_data import load_demo
        >>> small = condense_dataset(load_demo()["train"], "random", ipc=2, progress=False)
        >>> small.num_rows, small.column_names, small.synthetic.images.shape
        (20, ['image', 'label'], torch.Size([20, 1, 28, 28]))
        >>> type(small.with_format("torch")).__name__, type(small.select([0])).__name__
        ('CondensedDataset', 'Dataset')
    """

    synthetic: CondensedTensors
    recipe: Recipe
    source: datasets.Dataset | None
    labeller: Callable[[Tensor], Tensor] | None

    @classmethod
    def from_parts(
        cls, rows: datasets.Dataset, tensors: CondensedTensors, recipe: Recipe, source: datasets.Dataset | None = None
    ) -> CondensedDataset:
        """Make a condensed set of rows, tensors and a recipe. The order of neither is changed.

        Args:
            rows: One row for each decoded image: `decoded_rows` of a synthetic set, real rows of a coreset.
            tensors: The exact tensors, sorted by class.
            recipe: How the set was made.
            source: The real training set, or None.

        Raises:
            ValueError: If the number of rows is not the number of decoded images.
        """
        if len(rows) != tensors.num_rows:
            raise ValueError(f"{len(rows)} rows for {tensors.num_rows} decoded images; there should be one for each")
        condensed = cls.__new__(cls)
        own = {"synthetic": tensors, "recipe": recipe, "source": source, "labeller": None}
        condensed.__setstate__({**rows.__dict__, **own})
        return condensed

    def preview(self, per_class: int = 10, *, max_classes: int = 100) -> Image.Image:
        """Return the first images of every class as one picture.

        Each class has a row, unless no class has more than one image: then the images are in rows of ten.

        Args:
            per_class: Images to show per class, at most; >= 1.
            max_classes: Largest number of classes to show, in label order, >= 1.

        Raises:
            TypeError: If one of them is no integer.
            ValueError: If `per_class` or `max_classes` is below 1.
        """
        return first_images(self.synthetic, per_class, max_classes=max_classes)

    def with_evaluation(self, table: Evaluation) -> CondensedDataset:
        """Return the set with measured accuracies in its recipe. Its card then shows them.

        Args:
            table: What `evaluate` returned for this set. It replaces earlier accuracies. With `eight_bit=True`,
                `evaluate` also measures the 8-bit rows, which users of `load_dataset` get.

        Raises:
            TypeError: If `table` is not an `Evaluation`.
            ValueError: If it is the evaluation of another set, or of the first images of every class only.

        Example:
            >>> from hf_condense import condense_dataset, evaluate
            >>> from hf_condense.demo_data import load_demo
            >>> ds = load_demo()
            >>> small = condense_dataset(ds["train"], "random", ipc=1, progress=False)
            >>> table = evaluate(small, ds["test"], networks="convnet-w4", recipe="dc", epochs=1, progress=False)
            >>> len(small.with_evaluation(table).recipe.evaluation)
            2
        """
        if not isinstance(table, Evaluation):
            raise TypeError(f"table should be what evaluate returns; got {table!r:.80} ({type(table).__name__})")
        own, names = self.recipe.config_name, list(dict.fromkeys(score.set for score in table.scores))
        if not {own, own + RELABELLED} & {*names}:
            raise ValueError(f"the evaluation should be that of {own!r}; got one of {', '.join(map(repr, names))}")
        if table.run not in (None, self.recipe.run):
            raise ValueError(
                f"the evaluation is of another set that is called {own!r}, too, but was made in another run; pass what "
                "evaluate returned for this one"
            )
        check_whole(self.recipe, [score.ipc for score in table.scores if score.set in (own, own + RELABELLED)])
        measured = copy.copy(self)
        measured.recipe = dataclasses.replace(self.recipe, evaluation=table.to_records())
        return measured

    def save_condensed(self, folder: str | Path, config_name: str | None = None, *, overwrite: bool = False) -> Path:
        """Write the set into a folder that `load_condensed` and `datasets.load_dataset` can read.

        A folder holds any number of sets; the first one is the default. It has the layout of a Hub repository. If the
        same set is there already and differs in times only, because a script ran again, nothing is written; accuracies
        that are stored there stay. In a distributed run the main process writes; the others return at once, and have to
        wait for it before they load the set.

        Args:
            folder: Folder, which is created if missing; `~` stands for the home folder. The text of an existing
                README.md is kept.
            config_name: Name of the set in the folder. Default: `{method}_ipc{n}` and the storage form, as in
                `m3d_ipc1_dct8`.
            overwrite: Whether to replace a set of the same name with another recipe.

        Returns:
            The folder of this set, `folder/<config>`.

        Raises:
            TypeError: If the folder is no path, the name no text, or `overwrite` neither True nor False.
            ValueError: If the name cannot be used, or the set cannot be written exactly.
            FileExistsError: If the folder has another set of the same name and `overwrite` is False; or, in any case,
                if it is the folder of a set, or has a set whose name differs in upper and lower case only.
            CondensedFormatError: If the card or another set in the folder, or the one of this name without
                `overwrite`, cannot be read.
            OSError: If writing fails. Earlier files are then unchanged.
        """
        check_path("folder", folder)
        return save(self.parts, folder, name=config_name, overwrite=boolean("overwrite", overwrite))

    def save_to_disk(self, *args: Any, **kwargs: Any) -> None:
        """Save the 8-bit rows alone, as `datasets.Dataset.save_to_disk` does, and say so: see `save_condensed`."""
        logger.warning(
            "save_to_disk keeps the 8-bit rows only; save_condensed also keeps the exact tensors and the recipe"
        )
        self._plain().save_to_disk(*args, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        config_name: str | None = None,
        set_default: bool | None = None,
        split: str | None = None,
        data_dir: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool | None = False,
        max_shard_size: int | str | None = None,
        num_shards: int | None = None,
        embed_external_files: bool = True,
        num_proc: int | None = None,
        *,
        license: str | None = None,
        replace_card: bool = False,
        overwrite: bool = False,
        extra_splits: Mapping[str, datasets.Dataset] | None = None,
        page: bool = False,
    ) -> CommitInfo:
        """Publish the set in a dataset repository on the Hub: exact tensors, recipe, Parquet and card in one commit.

        `load_condensed(repo_id)` loads the set, and `datasets.load_dataset(repo_id, split="train")` loads its 8-bit
        rows. A repository holds any number of sets; other files in it are left alone. If the repository has the same
        set already, no commit is made, even if it was made again and differs in times; new accuracies make one, and
        stored ones stay if this set has none. If the call is interrupted, repeat it to complete the upload. In a
        distributed run every process must call this: the main one publishes, and all get its answer.

        Args:
            repo_id: `"user/name"`, or `"name"` for the user who is logged in. The repository is created if missing.
            config_name: Name of the set in the repository. Default: `{method}_ipc{n}` and the storage form, as in
                `m3d_ipc1_dct8`.
            set_default: Make this set the one that is loaded without a name. By default that is the first set.
            split: Only `"train"` is accepted, because a condensed set is for training.
            data_dir: Cannot be chosen: files are in the folder `config_name`.
            commit_message: Title of the commit. Default: `"Upload {config_name}"`.
            commit_description: Text of the commit.
            private: Make a new repository private; True is refused where a public one is there. Default: the owner's
                setting.
            token: Token with write access. Default: that of `hf auth login` or `HF_TOKEN`.
            revision: Branch to push to, which is created if missing. Default: the main branch.
            create_pr: Open a pull request instead of changing the branch.
            max_shard_size: Cannot be chosen, nor can `num_shards` and `num_proc`: a set is one small file.
            num_shards: See `max_shard_size`.
            embed_external_files: Only True is accepted: a published set contains its images.
            num_proc: See `max_shard_size`.
            license: Licence in the card's metadata. Default: that of the existing card, else that of the source.
            replace_card: Write a new card. Default: keep text and metadata of the existing one outside our section.
            overwrite: Whether to replace a set of the same name with another recipe.
            extra_splits: Rows by split name that are published unchanged beside the set, for example
                `{"test": ds["test"]}`. They must have the columns of the set; missing soft labels become NaN. No split
                may be called `"all"`, which is what `datasets` calls all splits together. Default: keep the existing
                extra splits, unless the columns of the set have changed. Splits that are given replace all existing
                ones, with a warning about those that are lost; `{}` removes all.
            page: Also publish `page.html` beside the card: one file that shows all sets of the repository, without a
                server. Later pushes renew a page that is there.

        Returns:
            The new commit; the latest one, with an empty `commit_message`, if nothing had to change.

        Raises:
            TypeError: If a switch is neither True nor False, what should be text is not, `extra_splits` is no mapping,
                or an extra split is not a `Dataset`.
            ValueError: If a name or value cannot be used, the set cannot be written exactly, or `private=True` and the
                repository is public. Nothing is changed.
            FileExistsError: If the repository has another set of the same name, data without a card, or somebody
                else's `page.html` where `page=True`. Nothing is changed.
            CondensedFormatError: If the card or another set in the repository cannot be read. Nothing is changed.
            PermissionError: If the token is missing or has no write access.
            FileNotFoundError: If the repository is private and not yours, or a pull request is missing.
            ConnectionError: If the Hub cannot be reached or does not answer. The message says how to continue.

        Example:
            >>> small.push_to_hub("me/cifar10-condensed", private=True)  # doctest: +SKIP
            >>> small.push_to_hub("me/cifar10-condensed", extra_splits={"test": ds["test"]})  # doctest: +SKIP
        """
        fixed = {
            "split": (split, ("train",)),
            "data_dir": (data_dir, ()),
            "max_shard_size": (max_shard_size, ()),
            "num_shards": (num_shards, (1,)),
            "embed_external_files": (embed_external_files, (True,)),
            "num_proc": (num_proc, ()),
        }
        for name, (given, possible) in fixed.items():
            if given is not None and given not in possible:
                raise ValueError(
                    f"{name}={given!r} cannot be used: a condensed set has one small train split; leave {name} out"
                )
        texts = {"revision": revision, "commit_message": commit_message, "commit_description": commit_description}
        for name, text in texts.items():
            check_text(name, text)
        how = Publication(
            private=None if private is None else boolean("private", private),
            token=token,
            revision=revision,
            create_pr=create_pr is not None and boolean("create_pr", create_pr),
            commit_message=commit_message,
            commit_description=commit_description,
            set_default=set_default is not None and boolean("set_default", set_default),
            license=license,
            replace_card=boolean("replace_card", replace_card),
            overwrite=boolean("overwrite", overwrite),
            extra_splits=extra_splits,
            page=boolean("page", page),
        )
        return push(self.parts, repo_id, config_name, how)

    def __repr__(self) -> str:
        return f"Condensed{super().__repr__()}"

    def __copy__(self) -> CondensedDataset:
        new = type(self).__new__(type(self))
        new.__setstate__(dict(self.__dict__))
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> CondensedDataset:
        memo.update({id(shared): shared for shared in (self.synthetic, self.source, self.labeller)})
        new = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__dict__, memo))
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None, "labeller": None}

    @property
    def parts(self) -> Parts:
        """The rows, as a plain `Dataset`, the tensors and the recipe."""
        return Parts(self._plain(), self.synthetic, self.recipe)

    def _plain(self) -> datasets.Dataset:
        """Return the rows as a plain `Dataset`, which shares table, format and search indexes."""
        plain = datasets.Dataset.__new__(datasets.Dataset)
        plain.__setstate__({name: value for name, value in self.__dict__.items() if name not in _OWN})
        return plain


def _on_plain_rows(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of `Dataset` run on the plain rows of a condensed set."""

    @functools.wraps(method)
    def run(self: CondensedDataset, *args: Any, **kwargs: Any) -> Any:
        return method(self._plain(), *args, **kwargs)

    return run


for _name in dir(datasets.Dataset):
    # All methods of Dataset are wrapped, not a list of names: those of newer versions must not keep stale tensors.
    if _name.startswith("_") or _name in _KEEPS_TYPE or _name in vars(CondensedDataset):
        continue
    _member = inspect.getattr_static(datasets.Dataset, _name)
    if isinstance(_member, (classmethod, staticmethod)):
        setattr(CondensedDataset, _name, staticmethod(getattr(datasets.Dataset, _name)))
    elif inspect.isfunction(_member):
        setattr(CondensedDataset, _name, _on_plain_rows(_member))


def check_condensed(name: str, value: object) -> None:
    """Raise `TypeError` unless a value that the caller knows by some name is a condensed set."""
    if not isinstance(value, CondensedDataset):
        raise TypeError(
            f"{name} should be a CondensedDataset, as load_condensed returns it; got {type(value).__name__}"
        )
