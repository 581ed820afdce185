"""Expert trajectories: how they are trained, recorded, cached and resumed."""

import contextlib
import dataclasses
import errno
import gc
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_condense.methods._recordings as recordings_module
from hf_condense.base.errors import NonFiniteLossError
from hf_condense.base.paths import cache_folder
from hf_condense.engine.run import Run
from hf_condense.methods._experts import ExpertConfig, expert_recipe, recorded_experts
from hf_condense.methods._recordings import Recordings, Training
from hf_condense.methods.mtt import TrajectoryMatching
from hf_condense.networks.factory import network_factory
from hf_condense.networks.flat import FlatNetwork, parameter_vector
from hf_condense.networks.sharpness import sharpen
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.support.observed_step import objective_of_step

CONFIG = ExpertConfig(experts=3, snapshots=4, snapshot_every=2, lr_expert=0.05, batch_expert=12)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    return objective_of_step(
        TrajectoryMatching, {"experts": 1, "snapshots": 3, "expert_span": 2, "cache": False}, 0
    ).run


def recorded(run: Run, config: ExpertConfig = CONFIG, *, cache: bool = True) -> Recordings:
    return recorded_experts(dataclasses.replace(run, cache=cache), config)


def test_snapshots_equal_those_of_plain_gradient_descent(run: Run) -> None:
    """Each of the three updates takes the whole set, so that the order of rows does not matter."""
    config = dataclasses.replace(CONFIG, batch_expert=36, snapshot_every=1)
    snapshots = recorded(run, config).window(1, 0, 4)
    net = run.factory.build(run.seed, "expert", 1)
    images, labels = run.source.at(torch.arange(36)), run.source.labels
    for n in range(4):
        torch.testing.assert_close(snapshots[n], parameter_vector(net), rtol=1e-4, atol=1e-6)
        gradients = torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p -= 0.05 * g


def test_snapshots_differ_from_each_other_and_from_expert_to_expert(run: Run) -> None:
    """Snapshots without a copy would all share the last weights."""
    experts = recorded(run)
    snapshots = torch.stack([experts.window(e, 0, 4) for e in range(3)])  # (E, S, P)
    assert len(experts) == 3
    assert snapshots.shape == (3, 4, FlatNetwork(run.factory.build(0)).size)
    assert float((snapshots.diff(dim=1)).abs().amax(2).min()) > 0
    assert float((snapshots.diff(dim=0)).abs().amax(2).min()) > 0
    assert torch.equal(experts.window(1, 1, 2), snapshots[1, 1:3])


def test_snapshots_are_an_epoch_apart_by_default(run: Run, monkeypatch) -> None:
    updates: list[int] = []
    original = recordings_module.train_network
    monkeypatch.setattr(recordings_module, "train_network", lambda *a, **k: updates.append(original(*a, **k)))
    recorded(run, dataclasses.replace(CONFIG, snapshot_every=None, experts=1))
    assert updates == [9]  # 36 images in batches of 12, three times


def test_experts_are_recorded_once_and_shared(run: Run, trained: list[int]) -> None:
    first = recorded(run)
    assert trained == [0, 1, 2]
    again = recorded(run)
    assert trained == [0, 1, 2]
    assert first.files == again.files
    more = recorded(run, dataclasses.replace(CONFIG, experts=5, lr_img=7.0, steps=3))
    assert trained == [0, 1, 2, 3, 4]
    assert more.files[:3] == first.files


@pytest.mark.parametrize(
    "changes",
    [
        {"snapshots": 3},
        {"snapshot_every": 3},
        {"lr_expert": 0.04},
        {"momentum_expert": 0.5},
        {"batch_expert": 9},
        {"augment_expert": "flip"},
        {"flatness": 0.1},
        {"flatness": 0.1, "surrogate_gap": 1.0},
    ],
)
def test_other_options_give_other_experts(run: Run, changes: dict) -> None:
    first, other = recorded(run), recorded(run, dataclasses.replace(CONFIG, **changes))
    assert first.files[0].parent != other.files[0].parent
    if "snapshots" not in changes:
        assert torch.equal(first.window(0, 0, 1), other.window(0, 0, 1))
        assert not torch.allclose(first.window(0, 2, 1), other.window(0, 2, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum_expert": 1.0}, "momentum_expert should be smaller than 1; got 1.0"),
        ({"surrogate_gap": 1.0}, "surrogate_gap=1.0 requires flatness > 0; pass a flatness"),
        ({"augment_expert": "flipp"}, "augment_expert: unknown augmentation 'flipp'"),
        ({"lr_expert": float("inf")}, "lr_expert should be finite; got inf"),
    ],
)
def test_options_are_checked_before_anything_is_trained(options: dict, message: str, trained: list[int]) -> None:
    with pytest.raises(ValueError, match=message):
        quick_method("esp", cache=False, **options).condense(toy_dataset())
    assert trained == []


def test_frozen_parameters_raise_value_error(trained: list[int]) -> None:
    def half_frozen(*, channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        factory = network_factory("convnet-w8-d1", channels=channels, image_size=image_size, num_classes=num_classes)
        net = factory.build(0)
        next(net.parameters()).requires_grad_(False)
        return net

    with pytest.raises(ValueError, match=r"1 parameters of the network are frozen \("):
        quick_method("mtt", cache=False, network=half_frozen).condense(toy_dataset())
    assert trained == []


@pytest.mark.parametrize("failing", [False, True])
def test_temporary_folder_is_removed_after_a_run_without_cache(failing: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(recordings_module, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    options = {"lr_expert": 1e30, "snapshots": 8} if failing else {}
    with pytest.raises(NonFiniteLossError) if failing else contextlib.nullcontext():
        quick_method("esp", cache=False, **options).condense(toy_dataset())
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_decision_to_compile_does_not_depend_on_the_number_of_experts(run: Run, monkeypatch) -> None:
    amounts_of_work = []
    monkeypatch.setattr(recordings_module, "compiling_pays", lambda work, device: amounts_of_work.append(work) or False)
    for count in (1, 2):
        recorded(dataclasses.replace(run, compile="auto"), dataclasses.replace(CONFIG, experts=count))
    assert amounts_of_work[0] == amounts_of_work[1] > 0


def test_other_seeds_networks_and_images_give_other_experts(run: Run) -> None:
    folders = {recorded(run).files[0].parent, recorded(dataclasses.replace(run, seed=1)).files[0].parent}
    other = dataclasses.replace(
        run, factory=network_factory("convnet-w4-d1", channels=3, image_size=(8, 8), num_classes=3)
    )
    folders.add(recorded(other).files[0].parent)
    other = dataclasses.replace(run)
    other.whiten()
    folders.add(recorded(other).files[0].parent)
    assert len(folders) == 4


def test_other_rows_and_other_sizes_of_images_give_other_experts(run: Run) -> None:
    folders = {recorded(run).files[0].parent}
    for rows, size in ((13, (8, 8)), (12, (8, 12))):
        source = load_source(toy_dataset(rows=rows), label_column="label", image_size=size, cache=False, progress=False)
        factory = network_factory(run.factory.name, channels=3, image_size=size, num_classes=3)
        folders.add(recorded(dataclasses.replace(run, source=source, factory=factory)).files[0].parent)
    assert len(folders) == 3


def test_interrupted_recording_records_only_missing_experts(run: Run, trained: list[int]) -> None:
    whole = recorded(run)
    before = [whole.window(e, 0, 4) for e in range(3)]
    whole.files[1].unlink()
    assert torch.equal(recorded(run).window(1, 0, 4), before[1])
    assert trained == [0, 1, 2, 1]


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"", lambda data: b"x" * len(data)])
def test_damaged_file_is_recorded_again(damage, run: Run, trained: list[int]) -> None:
    whole = recorded(run)
    before = whole.window(
        1, 0, 4
    ).clone()  # cloned, because the tensor is mapped to the file, which is overwritten in place
    whole.files[1].write_bytes(damage(whole.files[1].read_bytes()))
    assert torch.equal(recorded(run).window(1, 0, 4), before)
    assert trained == [0, 1, 2, 1]


def test_expert_that_another_run_records_in_the_meantime_is_not_trained(
    run: Run, trained: list[int], monkeypatch
) -> None:
    files = recorded(run).files
    second, record = files[1].read_bytes(), recordings_module._Recorder.record
    for file in files:
        file.unlink()

    def record_while_another_run_writes(recorder, file, advance) -> None:
        record(recorder, file, advance)
        files[1].write_bytes(second)

    monkeypatch.setattr(recordings_module._Recorder, "record", record_while_another_run_writes)
    recorded(run)
    assert trained == [0, 1, 2, 0, 2]


def test_experts_without_cache_are_deleted_with_their_last_reference(run: Run) -> None:
    experts = recorded(run, cache=False)
    folder = experts.files[0].parent
    assert folder.is_dir()
    assert not cache_folder("experts").exists()
    del experts
    assert not folder.exists()


def test_experts_that_the_cache_cannot_take_are_recorded_for_the_run_alone(
    run: Run, trained: list[int], monkeypatch, caplog, tmp_path
) -> None:
    """The disk is full after the first expert; each is trained once all the same."""
    temporary, write = tmp_path / "temporary", recordings_module.write_tensors
    temporary.mkdir()

    def write_first(file, tensors) -> None:
        if file.parent != temporary and file.stem != "0000":
            raise OSError(errno.ENOSPC, f"no space left while writing {file}")
        write(file, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(recordings_module, "mkdtemp", lambda prefix: str(temporary))
        patched.setattr(recordings_module, "write_tensors", write_first)
        experts = recorded(run)
    assert trained == [0, 1, 2]
    assert [file.parent == temporary for file in experts.files] == [False, True, True]
    (record,) = caplog.records
    assert record.getMessage().startswith("no space left while writing ")
    assert record.getMessage().endswith("0001.safetensors. The experts are used by this run, but not cached")
    windows = [experts.window(e, 0, 4).clone() for e in range(3)]
    del experts
    assert not temporary.exists()
    again = recorded(run)
    assert trained == [0, 1, 2, 1, 2]
    assert all(torch.equal(again.window(e, 0, 4), windows[e]) for e in range(3))


def test_networks_without_a_name_are_not_cached(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))

    def linear(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, num_classes))

    quick_method("mtt").condense(toy_dataset(), network=linear)
    assert not cache_folder("experts").exists()
    quick_method("mtt").condense(toy_dataset())
    assert cache_folder("experts").exists()


def test_experts_are_shared_by_methods(tmp_path, monkeypatch, trained: list[int]) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    for method in ("mtt", "tesla", "esp"):
        quick_method(method).condense(toy_dataset())
    assert trained == [0, 1]


def test_diverging_weights_raise_non_finite_loss_error(run: Run) -> None:
    config = dataclasses.replace(CONFIG, lr_expert=1e30, snapshots=8)
    with pytest.raises(NonFiniteLossError, match=r"expert 0 are not finite .* a smaller lr_expert usually helps"):
        recorded(run, config)


def test_recording_is_logged(run: Run, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        recorded(run)
    assert "recorded 3 experts" in caplog.text


def quadratic(start: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a module whose weight is a point, and the matrix of a quadratic loss."""
    net = nn.Linear(3, 1, bias=False).double()
    net.weight.data.copy_(start)
    matrix = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    return net, matrix


@pytest.mark.parametrize("gap", [0.0, 0.7])
def test_sharpened_gradient_of_a_quadratic_equals_its_closed_form(gap: float) -> None:
    """SAM gives A (w + rho g / |g|). GSAM subtracts the component of g that is orthogonal to it."""
    start = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    net, matrix = quadratic(start)

    def accumulate() -> None:
        (0.5 * (net.weight @ matrix @ net.weight.T)).sum().backward()

    accumulate()
    sharpen(net, accumulate, 0.3, gap)
    g = start @ matrix
    uphill = (start + 0.3 * g / g.norm()) @ matrix
    orthogonal = g - (g * uphill).sum() / uphill.square().sum() * uphill
    torch.testing.assert_close(net.weight.grad, uphill - gap * orthogonal)
    assert torch.equal(net.weight.data, start)


@pytest.mark.parametrize(("name", "value"), [("flatness", -0.1), ("surrogate_gap", -1.0)])
def test_negative_flatness_raises_value_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} should be at least 0; got {value}"):
        TrainingRecipe("mine", epochs=1, **{name: value})


@pytest.mark.parametrize("spec", ["convnet-w8-d1", "convnet-w8-d1-bn"])
def test_flat_network_gives_the_logits_of_the_network(spec: str) -> None:
    net = network_factory(spec, channels=3, image_size=(8, 8), num_classes=4).build(3)
    flat, images = FlatNetwork(net), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    vector = parameter_vector(net)
    logits = flat.logits(vector, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    torch.testing.assert_close(logits, net(images))
    other = parameter_vector(network_factory(spec, channels=3, image_size=(8, 8), num_classes=4).build(4))
    assert not torch.allclose(flat.logits(other, images), logits)
    assert flat.size == len(vector) == sum(p.numel() for p in net.parameters())
    weights = [p for p in net.parameters() if p.ndim > 1]
    for block, weight in zip(flat.blocks, weights, strict=True):
        assert torch.equal(vector[block], weight.detach().flatten())


def test_parameter_vector_is_a_copy() -> None:
    net = nn.Linear(1, 1, bias=False)
    vector = parameter_vector(net)
    net.weight.data += 1
    assert float(vector) == pytest.approx(float(net.weight.detach()) - 1)


def test_experts_that_compiled_code_trains_are_cached_apart(run: Run) -> None:
    training = Training("expert", "lr_expert", expert_recipe(CONFIG, 2, 36), 3, 4, 2, 2)
    folders = {recordings_module._cache_folder(run, training, compiled) for compiled in (False, True)}
    assert len(folders) == 2


def test_recipe_of_experts_has_the_options_of_sharpness() -> None:
    recipe = expert_recipe(dataclasses.replace(CONFIG, flatness=0.1, surrogate_gap=0.7), every=2, rows=36)
    assert (recipe.flatness, recipe.surrogate_gap) == (0.1, 0.7)
