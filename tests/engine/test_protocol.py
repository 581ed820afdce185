"""What the engine offers to methods: hooks, networks with given weights, learnables beside the set, composed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_condense import (
    CondensedDataset,
    MethodConfig,
    MethodInfo,
    Run,
    condense_dataset,
    load_condensed,
    option,
    register_method,
)
from hf_condense.engine.method import Composer, Loss
from hf_condense.engine.registry import unregister_method
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.networks.flat import parameter_vector
from hf_condense.testing import check_method, quick_method, toy_dataset
from tests.support import duel, half_size
from tests.support.condensed_sets import assert_same

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel")).remove_columns("note")


@pytest.fixture(autouse=True)
def _duel() -> Iterator[None]:
    with duel.registered():
        yield


def condense(**options: Any) -> CondensedDataset:
    return quick_method("duel", **options).condense(TOY)


def condense_with_run(**options: Any) -> tuple[CondensedDataset, Run]:
    """Return a set and the run that made it."""
    runs: list[Run] = []
    small = condense(callbacks=[lambda run, done, loss: runs.append(run)], **options)
    return small, runs[-1]


def test_method_that_uses_every_hook_keeps_every_law() -> None:
    check_method("duel")


def test_method_that_uses_every_hook_learns_in_every_storage_form() -> None:
    with half_size.registered():
        for storage in ("patches", "half"):
            small = condense(storage=storage)
            assert len(small) == 3 * 2 * 4


def test_adversary_is_maximised_and_not_stored() -> None:
    def last_value(adversary_speed: float, steps: int) -> float:
        values: list[float] = []
        condense(
            adversary_speed=adversary_speed,
            speed=1e-12,
            steps=steps,
            patience=100,
            callbacks=[lambda run, done, loss: values.append(loss)],
        )
        return values[-1]

    assert last_value(1.0, steps=4) > 1.05 * last_value(1e-12, steps=4)
    small = condense()
    assert set(small.synthetic.all()) == {"images", "labels", "soft_labels"}


def test_resumed_run_repeats_adversary_and_plateau(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(run: Run, done: int, loss: float) -> None:
        if done == 4:
            raise Stop

    options = {"steps": 7, "patience": 1}
    with pytest.raises(Stop):
        condense(checkpoint_dir=tmp_path, checkpoint_every=3, callbacks=[stop], **options)
    resumed = condense(checkpoint_dir=tmp_path, checkpoint_every=3, **options)
    straight = condense(**options)
    assert torch.equal(resumed.synthetic.images, straight.synthetic.images)
    rates = [duel.Duel(duel.DuelConfig(patience=1)).rate(t, [1.0] * (t + 1)) for t in range(3)]
    assert rates == [1.0, 0.5, 0.25]


def test_checkpoint_of_another_identity_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    condense(checkpoint_dir=tmp_path)
    monkeypatch.setattr(duel.Duel, "identity", lambda self, run: {"parameters": 5})
    with pytest.raises(
        ValueError, match=r"belongs to another run \(parameters: \d+ in the checkpoint, 5 in this run\)"
    ):
        condense(checkpoint_dir=tmp_path)


def test_real_batches_differ_from_step_to_step() -> None:
    _, run = condense_with_run()
    first, second, again = (run.real_batch(run.classes, 6, t) for t in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_learnable_that_the_optimiser_leaves_out_raises_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        duel.Duel, "optimiser", lambda self, run: torch.optim.SGD(list(run.synthetic.learned().values()), lr=0.1)
    )
    with pytest.raises(ValueError, match="the optimiser of 'duel' has no group with directions"):
        condense()


@pytest.mark.parametrize(
    ("hook", "expected"), [("initialise", "SyntheticSet"), ("auxiliary", "dict"), ("optimiser", "Optimizer")]
)
def test_hook_that_returns_something_else_is_named(hook: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duel.Duel, hook, lambda self, run: None)
    with pytest.raises(TypeError, match=f"{hook} of the method 'duel' should .* of type {expected}; got NoneType"):
        condense()


def test_what_a_loss_changes_for_its_time_is_restored_when_the_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    is_open = []

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("no derivative")

    def losses(self: object, run: Run, t: int) -> Iterator[Loss]:
        is_open.append(True)
        images = run.synthetic.stored["images"] * 1
        images.register_hook(fail)
        try:
            yield Loss(images.sum(), torch.zeros(()))
        finally:
            is_open.clear()

    monkeypatch.setattr(duel.Duel, "losses", losses)
    with pytest.raises(RuntimeError, match="no derivative") as caught:
        condense()
    assert caught.tb is not None  # which holds the generator
    assert not is_open


def test_options_are_found_by_their_roles() -> None:
    small = condense(families="flip", begin="noise")
    assert small.recipe.augment == "flip"
    assert duel.DuelConfig(rows=7).of_role("batch_real") == 7
    assert duel.Duel(duel.DuelConfig(rows=7)).batch_real == 7
    assert duel.DuelConfig(families="none").of_role("augment") == "none"
    assert condense(families="none").recipe.augment is None


def test_unknown_role_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"role should be one of .*'image_rate'.*; got 'image_rat'"):
        option(1.0, "A rate.", role="image_rat")


class TestNetworks:
    def test_network_with_given_weights_has_the_logits_of_the_original(self) -> None:
        _, run = condense_with_run()
        images = run.source.at(torch.arange(4))
        first = run.network("a")
        weights, logits = parameter_vector(first), run.logits(images)
        run.network("b")
        assert not torch.equal(run.logits(images), logits)
        assert torch.equal(run.logits(images, run.network(weights=weights)), logits)

    def test_networks_of_two_slots_are_alive_at_once(self) -> None:
        _, run = condense_with_run()
        images = run.source.at(torch.arange(4))
        main, other = run.network("a"), run.network("b", slot="other")
        embeddings = run.embed(images, main)
        assert torch.equal(run.embed(images), embeddings)
        assert not torch.equal(run.embed(images, other), embeddings)
        assert torch.equal(run.embed(images, main), embeddings)

    def test_call_with_the_same_slot_overwrites_the_weights(self) -> None:
        _, run = condense_with_run()
        first = run.network("a")
        before = parameter_vector(first)
        assert run.network("b") is first
        assert not torch.equal(parameter_vector(first), before)

    def test_fresh_weights_are_drawn_without_making_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, run = condense_with_run()
        first = parameter_vector(run.network("a"))
        monkeypatch.setattr(torch.nn.Module, "__init__", None)  # whoever makes a layer fails
        run.network("b")
        assert torch.equal(parameter_vector(run.network("a")), first)

    def test_network_of_the_callers_own_is_used_as_it_is(self) -> None:
        _, run = condense_with_run()
        images = run.source.at(torch.arange(4))
        network = run.factory.build(run.seed, "a")
        assert torch.equal(run.logits(images, network), run.logits(images, run.network("a")))

    def test_weights_of_another_length_raise_value_error(self) -> None:
        _, run = condense_with_run()
        with pytest.raises(ValueError, match=r"weights should be a vector of the network's \d+ parameters; got \(3,\)"):
            run.network(weights=torch.zeros(3))

    def test_batch_statistics_are_fresh_with_given_weights(self) -> None:
        _, run = condense_with_run(network="convnet-w4-d1-bn")
        network = run.network("a")
        weights = parameter_vector(network)
        (mean,) = (buffer for name, buffer in network.named_buffers() if name.endswith("running_mean"))
        network(run.source.at(torch.arange(8)))
        assert float(mean.abs().max()) > 0
        run.network("a", weights=weights)
        assert float(mean.abs().max()) == 0


@dataclass(frozen=True)
class MeansConfig(MethodConfig):
    """Options of `Means`."""

    rows: int = option(4, "Real rows that are averaged for one image.", ge=1)


class Means(Composer[MeansConfig]):
    """Composes images that are means of random real rows."""

    info = MethodInfo(
        name="means",
        title="Means of rows",
        kind="composed",
        summary="Averages random rows.",
        paper="A test",
        authors="Nobody",
        venue="none",
        year=2026,
        link="https://example.org/means",
        cost="none",
    )
    Config = MeansConfig

    def compose(self, run: Run) -> SyntheticSet:
        synthetic = run.start("noise")
        with torch.no_grad():
            synthetic.stored["images"].copy_(torch.cat([self._means(run, c) for c in run.classes]))
        return synthetic

    def _means(self, run: Run, c: int) -> Tensor:
        """Return the images of one class: (ipc, C, H, W)."""
        return torch.stack([run.real_batch([c], self.config.rows, turn)[0].mean(0) for turn in range(run.ipc[c])])


class TestComposed:
    @pytest.fixture(autouse=True)
    def _means(self) -> Iterator[None]:
        register_method(Means)
        yield
        unregister_method("means")

    def test_composer_keeps_every_law(self) -> None:
        check_method("means")

    def test_composed_set_is_saved_and_loaded_exactly(self, tmp_path: Path) -> None:
        small = condense_dataset(TOY, "means", 2, network="convnet-w4-d1", progress=False)
        assert (small.recipe.kind, small.recipe.steps, small.recipe.rows) == ("composed", None, None)
        assert small.recipe.nearest is not None, "composed images should be compared with real ones"
        small.save_condensed(tmp_path)
        assert_same(load_condensed(tmp_path), small)
        assert "| composed |" in (tmp_path / "README.md").read_text()

    def test_composer_that_returns_something_else_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Means, "compose", lambda self, run: None)
        with pytest.raises(
            TypeError, match=r"compose of the method 'means' should .* of type SyntheticSet; got NoneType"
        ):
            condense_dataset(TOY, "means", 2, network="convnet-w4-d1", progress=False)

    @pytest.mark.parametrize("forward", [Run.embed, Run.logits])
    def test_forward_pass_before_any_network_raises_runtime_error(
        self, forward: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Means, "compose", lambda self, run: forward(run, run.source.at(torch.arange(2))))
        with pytest.raises(RuntimeError, match=r"use the network that run\.network made last; call, for example, "):
            condense_dataset(TOY, "means", 2, network="convnet-w4-d1", progress=False)

    def test_steps_raise_value_error(self) -> None:
        with pytest.raises(ValueError, match="steps=5 makes no sense for 'means', which composes its images once"):
            condense_dataset(TOY, "means", 2, steps=5, progress=False)

    def test_kind_of_another_base_class_raises_type_error(self) -> None:
        class Wrong(Means):
            info = MethodInfo("wrong", "-", "synthetic", "-", "-", "-", "-", 2026, "https://example.org", "-")

        with pytest.raises(TypeError, match=r"Wrong\.info should be a MethodInfo of kind 'composed'"):
            register_method(Wrong)
