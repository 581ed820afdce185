"""Compare the speed of this library with plain loops that do the same work, and with the machine's matrix products.

A plain loop is what a paper's code does, in few lines: class by class, without compiled code, whole batches at once,
PyTorch's own layers. It uses this library's weights and augmentation, so that only the way differs in which the work is
done. Its updates and those of the library take turns, so that other work on the machine slows both down alike. For
example:

    python examples/benchmarks/speed.py uoft-cs/cifar10 --networks convnet-w32 convnet --ipc 1 10
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_condense import RECIPES, condense_dataset
from hf_condense.demo_data import load_demo
from hf_condense.engine.run import Run
from hf_condense.methods.herding import Herding
from hf_condense.networks.architectures import HalvingPool
from hf_condense.networks.augment import Augmentation
from hf_condense.networks.factory import network_factory
from hf_condense.networks.flat import FlatNetwork, parameter_vector
from hf_condense.networks.training import chunk_size, train_network
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.class_source import ClassSource
from hf_condense.source.load import load_source

FAMILIES = "color_crop_cutout_flip_scale_rotate"
EXPERTS = {"experts": 1, "snapshots": 5, "snapshot_every": 1, "expert_span": 4, "student_steps": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "dm": {"batch_real": 256},
    "m3d": {"batch_real": 256, "ipm": 5},
    "dc": {"batch_real": 256, "outer_loop": 5, "inner_loop": 5, "init": "real"},
    "mtt": EXPERTS,
    "tesla": EXPERTS,
    "esp": EXPERTS,
}
OTHERS = ("expert recording", "evaluation", "herding", "kcenter")
Step = Callable[[int], object]


def published(network: Any) -> Any:
    """Return a network with PyTorch's own layers, in place of those that this library made faster."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, HalvingPool):
                setattr(parent, name, torch.nn.AvgPool2d(2))
            elif isinstance(layer, torch.nn.ReLU):
                layer.inplace = False
    return network


class PlainLoop:
    """What all plain loops share: the images, their optimiser, the real rows and the network.

    Args:
        run: A run of the library, which gives real rows, networks and the number of images per class.
        options: Options of the method.
    """

    def __init__(self, run: Run, options: dict[str, Any]) -> None:
        self.run, self.options, self.device = run, options, run.device
        self.generator = torch.Generator().manual_seed(0)
        rows = [run.source.positions(c)[i] for c, n in run.ipc.items() for i in range(n)]
        self.images = run.source.at(torch.tensor(rows)).clone().requires_grad_()
        self.labels = torch.tensor([c for c, n in run.ipc.items() for _ in range(n)], device=self.device)
        self.optimiser = torch.optim.SGD([self.images], lr=1e-3, momentum=0.5)
        self.augmentation = Augmentation.parse(FAMILIES)

    def real(self, c: int) -> Tensor:
        """Return a real batch of a class: (batch_real, C, H, W)."""
        positions = self.run.source.positions(c)
        drawn = torch.randperm(len(positions), generator=self.generator)[: self.options["batch_real"]]
        return self.run.source.at(drawn + positions.start)

    def fresh_network(self, t: int) -> torch.nn.Module:
        """Return a network with fresh weights."""
        return published(self.run.factory.build("plain", t)).to(self.device)

    def update(self, loss: Tensor) -> None:
        """Take a step along the gradient of a loss."""
        self.optimiser.zero_grad()
        loss.backward(inputs=[self.images])
        self.optimiser.step()

    def augmented_pair(self, c: int) -> tuple[Tensor, Tensor]:
        """Return a real batch and the images of a class under the same augmentation."""
        transform = self.augmentation.draw(1, self.generator)
        pair = self.real(c), self.images[self.labels == c]
        real, synthetic = (transform(rows, torch.zeros(len(rows), dtype=torch.int64)) for rows in pair)
        return real, synthetic


class PlainEmbedding(PlainLoop):
    """DM and M3D: compare the embeddings of each class under a random network."""

    def __call__(self, t: int) -> None:
        """Update the images."""
        steps_per_network = self.options.get("ipm", 1)
        if t % steps_per_network == 0:
            self.network = self.fresh_network(t).requires_grad_(False)
        loss = torch.zeros((), device=self.device)
        for c in self.run.classes:
            real, synthetic = self.augmented_pair(c)
            loss = loss + self.discrepancy(self.network.embed(real), self.network.embed(synthetic))
        self.update(loss)

    def discrepancy(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Return the squared distance of the means."""
        return (real.mean(0) - synthetic.mean(0)).square().sum()


class PlainMoments(PlainEmbedding):
    """M3D: the squared maximum mean discrepancy of a mixture of Gaussians."""

    def discrepancy(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Return the squared maximum mean discrepancy."""
        rows = torch.cat([synthetic, real])
        distances = torch.cdist(rows, rows).square()
        bandwidth = distances.detach().sum() / (len(rows) * (len(rows) - 1))
        kernel = sum(torch.exp(-distances / (bandwidth * width)) for width in (0.25, 0.5, 1.0, 2.0, 4.0))
        n = len(synthetic)
        return kernel[:n, :n].mean() - 2 * kernel[:n, n:].mean() + kernel[n:, n:].mean()


class PlainGradients(PlainLoop):
    """DC: compare the gradients of each class, then train the network on the images."""

    def __call__(self, t: int) -> None:
        """Update the images, and train the network for the next update."""
        if t % self.options["outer_loop"] == 0:
            self.network = self.fresh_network(t)
        parameters = list(self.network.parameters())
        loss = torch.zeros((), device=self.device)
        for c in self.run.classes:
            goal = torch.autograd.grad(self.class_loss(self.real(c), c), parameters)
            own = torch.autograd.grad(self.class_loss(self.images[self.labels == c], c), parameters, create_graph=True)
            for a, b in zip(own, goal, strict=True):
                if a.ndim > 1:
                    loss = loss + (1 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)).sum()
        self.update(loss)
        if (t + 1) % self.options["outer_loop"]:
            optimiser = torch.optim.SGD(parameters, lr=0.01)
            for _ in range(self.options["inner_loop"]):
                optimiser.zero_grad()
                F.cross_entropy(self.network(self.images.detach()), self.labels).backward()
                optimiser.step()

    def class_loss(self, rows: Tensor, c: int) -> Tensor:
        """Return the mean cross-entropy of rows of a class."""
        return F.cross_entropy(self.network(rows), torch.full((len(rows),), c, device=self.device))


class PlainStudent(PlainLoop):
    """MTT: train a student on the images, and differentiate through its steps."""

    def __init__(self, run: Run, options: dict[str, Any]) -> None:
        super().__init__(run, options)
        self.net = FlatNetwork(self.fresh_network(0))
        self.start = parameter_vector(self.net.net).to(self.device)
        steps = 0.01 * torch.randn(options["expert_span"], self.net.size, generator=self.generator).to(self.device)
        self.displacement = steps.sum(0)
        self.basis = torch.linalg.qr(steps.T)[0].T  # (expert_span, P)
        self.rate = torch.tensor(0.01, device=self.device)

    def gradient(self, weights: Tensor, graph: bool = True) -> Tensor:
        """Return the student's gradient on the augmented images: (P,)."""
        weights = weights if weights.requires_grad else weights.requires_grad_()
        transform = self.augmentation.draw(len(self.images), self.generator)
        images = transform(self.images, torch.arange(len(self.images)))
        loss = F.cross_entropy(self.net.logits(weights, images), self.labels)
        return torch.autograd.grad(loss, weights, create_graph=graph)[0]

    def ratio(self, displacement: Tensor) -> Tensor:
        """Return the squared distance to the expert's end over that of its start."""
        return (displacement - self.displacement).square().sum() / self.displacement.square().sum()

    def __call__(self, t: int) -> None:
        """Update the images."""
        student = self.start.clone().requires_grad_()
        for _ in range(self.options["student_steps"]):
            student = student - self.rate * self.gradient(student)
        self.update(self.ratio(student - self.start))


class PlainConstantMemory(PlainStudent):
    """TESLA: the same with the weights of the student as constants, one step in memory at a time."""

    def __call__(self, t: int) -> None:
        """Update the images."""
        weights = [self.start.clone()]
        for _ in range(self.options["student_steps"]):
            weights.append((weights[-1] - self.rate * self.gradient(weights[-1], graph=False)).detach())
        moved = (weights[-1] - self.start).detach().requires_grad_()
        direction = torch.autograd.grad(self.ratio(moved), moved)[0]
        self.optimiser.zero_grad()
        for point in weights[:-1]:
            loss = -self.rate * (direction * self.gradient(point.detach())).sum()
            loss.backward(inputs=[self.images])
        self.optimiser.step()


class PlainSubspace(PlainStudent):
    """ESP: the next step of the student should stay in the subspace of the expert's steps."""

    def __call__(self, t: int) -> None:
        """Update the images."""
        moved = -self.rate * self.gradient(self.start.clone())
        outside = moved - (moved @ self.basis.T) @ self.basis
        squared_length = self.displacement.square().sum()
        progress = (moved @ self.displacement) / squared_length
        self.update(outside.square().sum() / squared_length + (progress - 1 / self.options["student_steps"]).square())


PLAIN = {
    "dm": PlainEmbedding,
    "m3d": PlainMoments,
    "dc": PlainGradients,
    "mtt": PlainStudent,
    "tesla": PlainConstantMemory,
    "esp": PlainSubspace,
}


class Turns:
    """A callback that lets a plain loop take turns with a run of the library, and times both.

    Args:
        make_plain: Makes the plain loop from the run.
        flops: Counts the floating-point operations of the library, if given.
    """

    def __init__(self, make_plain: Callable[[Run], Step] | None, flops: FlopCounterMode | None = None) -> None:
        self.make_plain, self.flops = make_plain, flops
        self.plain: Step | None = None
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.counted: list[int] = []
        self.started = 0.0

    def __call__(self, run: Run, done: int, loss: float) -> None:
        """Note the time of an update, and make one by the plain loop."""
        self.ours.append(now(run.device) - self.started)
        if self.flops is not None:
            self.counted.append(self.flops.get_total_flops())
        if self.make_plain is not None:
            self.plain = self.plain or self.make_plain(run)
            started = now(run.device)
            self.plain(done - 1)
            self.theirs.append(now(run.device) - started)
        self.started = now(run.device)


def now(device: torch.device) -> float:
    """Return the time in seconds, after the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def method_row(method: str, ds: datasets.Dataset, network: str, ipc: int, args: argparse.Namespace) -> tuple:
    """Return the median seconds of an update by the library and by the plain loop, and the operations of the first."""
    options = {**OPTIONS[method], **args.limits.get(method, {})}
    shared = {"ipc": ipc, "network": network, "storage": "pixels", "progress": False, **options}
    turns = Turns(lambda run: PLAIN[method](run, options))
    condense_dataset(ds, method, steps=args.updates + 1, compile=args.compile, callbacks=[turns], **shared)
    with FlopCounterMode(display=False) as flops:
        count = Turns(None, flops)
        condense_dataset(ds, method, steps=max(2, min(args.updates, 6)), compile=False, callbacks=[count], **shared)
    operations = [b - a for a, b in zip(count.counted, count.counted[1:], strict=False)]
    return statistics.median(turns.ours[1:]), statistics.median(turns.theirs[1:]), statistics.median(operations)


def training_row(source: ClassSource, network: str, rows: int | None, args: argparse.Namespace) -> tuple:
    """Return the same for an update of a network on all real rows (None), or on some rows as `evaluate` makes it."""
    factory = network_factory(
        network, channels=source.image_shape[0], image_size=source.image_shape[1:], num_classes=len(source.class_names)
    )
    device = source.device
    data: TrainingSet
    if rows is None:
        data = TrainingSet(source, source.labels, factory.num_classes)
    else:
        positions = torch.cat([torch.tensor(source.positions(c)[:rows]) for c in source.classes])
        data = TrainingSet(source.at(positions), source.labels[positions].to(device), factory.num_classes)
    batch, updates = min(256, len(data)), 3
    net, plain_net = factory.build(0).to(device), published(factory.build(0)).to(device)
    trainee = torch.compile(net, dynamic=False) if args.compile else net
    chunk = chunk_size(net, source.image_shape, batch)

    def ours(trained: Any = trainee) -> None:
        train_network(trained, data, RECIPES["dc"], 0, "speed", max_updates=updates, chunk=chunk)

    def plain() -> None:
        optimiser = torch.optim.SGD(plain_net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for _ in range(updates):
            index = torch.randperm(len(data))[:batch]
            images, targets = data.batch(index)
            optimiser.zero_grad()
            F.cross_entropy(plain_net(images), targets).backward()
            optimiser.step()

    seconds = alternate([ours, plain], args.updates, device)
    with FlopCounterMode(display=False) as flops:
        ours(net)
    return *(value / updates for value in seconds), flops.get_total_flops() / updates


def coreset_row(
    method: str, ds: datasets.Dataset, source: ClassSource, network: str, ipc: int, args: argparse.Namespace
) -> tuple:
    """Return the same for a whole coreset, from encoded pictures on."""
    updates = args.limits.get(method, {}).get("feature_updates", Herding.Config().feature_updates)
    factory = network_factory(
        network, channels=source.image_shape[0], image_size=source.image_shape[1:], num_classes=len(source.class_names)
    )

    def ours() -> None:
        options = {"network": network, "feature_updates": updates, "progress": False}
        condense_dataset(ds, method, ipc, cache=False, **options)

    def plain() -> None:
        decoded = load_source(ds, cache=False, progress=False).to(source.device)
        net = published(factory.build(0)).to(source.device)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for _ in range(updates):
            index = torch.randint(len(decoded), (Herding.Config().feature_batch,))
            optimiser.zero_grad()
            F.cross_entropy(net(decoded.at(index)), decoded.labels[index].to(source.device)).backward()
            optimiser.step()
        with torch.no_grad():
            features = torch.cat([net.embed(images).double() for images in decoded.all_images(256)])
        for c in decoded.classes:
            CORESETS[method](features[decoded.positions(c).start : decoded.positions(c).stop], ipc)

    if args.updates == 1:  # A wide network takes minutes: nothing to warm up, and no further turn to count operations.
        return *alternate([ours, plain], 1, source.device, warm_up=False), None
    seconds = alternate([ours, plain], min(args.updates, 3), source.device)
    with FlopCounterMode(display=False) as flops:
        ours()
    return *seconds, flops.get_total_flops()


def plain_herding(rows: Tensor, n: int) -> list[int]:
    """Return the rows whose mean stays closest to the mean of all."""
    total, chosen = torch.zeros_like(rows[0]), list[int]()
    for k in range(1, n + 1):
        distances = (rows.mean(0) - (total + rows) / k).square().sum(1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total = total + rows[chosen[-1]]
    return chosen


def plain_k_center(rows: Tensor, n: int) -> list[int]:
    """Return rows that are far from each other, beginning with the one nearest to the mean."""
    chosen = [int((rows - rows.mean(0)).square().sum(1).argmin())]
    while len(chosen) < n:
        chosen.append(int(torch.cdist(rows, rows[chosen]).amin(1).argmax()))
    return chosen


CORESETS = {"herding": plain_herding, "kcenter": plain_k_center}


def alternate(
    works: Sequence[Callable[[], object]], repeats: int, device: torch.device, warm_up: bool = True
) -> list[float]:
    """Return the median seconds of several pieces of work, which take turns; a turn to warm up does not count."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + warm_up):
        for work, times in zip(works, seconds, strict=True):
            started = now(device)
            work()
            times.append(now(device) - started)
    return [statistics.median(times[warm_up:]) for times in seconds]


def matrix_rate(device: torch.device, size: int) -> float:
    """Return the floating-point operations per second of large matrix products in float32."""
    matrix = torch.randn(size, size, device=device)
    (seconds,) = alternate([lambda: matrix @ matrix], 5, device)
    return 2 * size**3 / seconds


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--rows", nargs="+", default=[*OPTIONS, *OTHERS], choices=[*OPTIONS, *OTHERS], metavar="ROW")
    parser.add_argument("--networks", nargs="+", default=["convnet-w32"], help="networks to compare")
    parser.add_argument("--ipc", nargs="+", type=int, default=[1, 10], help="images per class")
    parser.add_argument("--updates", type=int, default=15, help="updates, or repeats, of which the median is taken")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without compiled code")
    parser.add_argument("--fast", action="store_true", help="a tiny network, to see that it runs")
    args = parser.parse_args(argv)
    args.limits = {}
    if args.fast:
        args.networks, args.ipc, args.updates, args.compile = ["convnet-w4"], [1], 2, False
        few = {method: {"batch_real": 8} for method in ("dm", "m3d", "dc")}
        args.limits = {**few, **{method: {"feature_updates": 2} for method in CORESETS}}

    ds = (datasets.load_dataset(args.dataset) if args.dataset else load_demo())["train"]
    if args.fast:
        ds = ds.shuffle(seed=0).select(range(200))
    source = load_source(ds, progress=False)
    source = source.to("cuda" if torch.cuda.is_available() else "cpu")
    most = matrix_rate(source.device, 256 if args.fast else 2048)
    print(f"{most / 1e9:.0f} GFLOP/s in matrix products; {torch.get_num_threads()} threads; {source.device}")
    print("| what | network | images per class | plain, ms | ours, ms | ours / plain | share of the peak |")
    print("|---|---|---|---|---|---|---|", flush=True)
    measures: dict[str, Callable[[str, int], tuple]] = {
        "expert recording": lambda network, ipc: training_row(source, network, None, args),
        "evaluation": lambda network, ipc: training_row(source, network, ipc, args),
    }
    for method in CORESETS:
        measures[method] = lambda network, ipc, method=method: coreset_row(method, ds, source, network, ipc, args)
    for method in OPTIONS:
        measures[method] = lambda network, ipc, method=method: method_row(method, ds, network, ipc, args)
    lines = []
    for row, network, ipc in product(args.rows, args.networks, args.ipc):
        if row == "expert recording" and ipc != args.ipc[0]:
            continue
        ours, plain, operations = measures[row](network, ipc)
        share = None if operations is None else operations / ours / most
        lines.append({"row": row, "network": network, "ipc": ipc, "plain": plain, "ours": ours, "share": share})
        amount = "" if row == "expert recording" else ipc
        times = f"{1e3 * plain:.1f} | {1e3 * ours:.1f} | {ours / plain:.2f}"
        print(f"| {row} | {network} | {amount} | {times} | {'-' if share is None else f'{share:.0%}'} |", flush=True)
    return lines


if __name__ == "__main__":
    main()
