"""Layers in several threads and processes: inference and training side by side, workers, forks, data parallelism.

Everything is compared with one thread of one process, most of it bit by bit. Data loaders fork the process of the
tests, which has run its kernels on several threads by then. Children that differentiate start afresh: torch refuses a
backward pass in a child of a process that has differentiated fake tensors, as other tests do.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sides import LAYERS, differentiable, draw, leaves, of, pair, quiet, weighting
from torch import Tensor
from torch.autograd import grad
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import scratchnn
from scratchnn import nn
from scratchnn.accuracy.layers import Layer

# One generator of random numbers serves all threads, so which thread draws what is a matter of chance.
REPEATABLE = [layer for layer in LAYERS if layer.name not in ("RReLU", "FractionalMaxPool2d", "FractionalMaxPool3d")]

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

THREADS = 4
PATIENCE = 120  # seconds, for a child that does not come back


def network() -> Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        nn.Linear(16, 4),
    )


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def loss(model: Callable[[Tensor], Tensor], x: Tensor, first: int = 0) -> Tensor:
    return torch.nn.functional.cross_entropy(model(x), torch.arange(first, first + len(x)) % 4)


def gradients(model: Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss(model, x).backward()
    return [p.grad.clone() for p in model.parameters()]


# --- threads ------------------------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """``work(0)``, ``work(1)``, ... at the same time."""
    together = threading.Barrier(THREADS)

    def start(number: int) -> Any:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


@of(REPEATABLE)
@quiet
def test_threads_share_a_layer(layer: Layer) -> None:
    """Forward and backward of different inputs at once: to the bit what one thread alone computes."""
    torch.set_num_threads(1)
    module = pair(layer, torch.float32)[0].eval()
    inputs = [tuple(x.roll(number, 0) for x in draw(layer, torch.float32)) for number in range(THREADS)]

    def work(number: int) -> list[Tensor]:
        own = leaves(inputs[number])
        found = []
        for _ in range(2):
            output = module(*own)
            found += [output.detach(), *grad(output, differentiable(module, own), weighting(output))]
            with torch.no_grad():
                found.append(module(*own))
        return found

    for found, expected in zip(in_threads(work), map(work, range(THREADS)), strict=True):
        assert all(map(torch.equal, found, expected))


@of(REPEATABLE)
@quiet
def test_threads_share_a_graph(layer: Layer) -> None:
    """Several backward passes through the same nodes at once, each for gradients of its own."""
    module, _ = pair(layer, torch.float32)
    own = leaves(draw(layer, torch.float32))
    output = module(*own)
    sources = differentiable(module, own)

    def work(number: int) -> list[Tensor]:
        wanted = [sources[number % len(sources)]] if number % 2 else sources
        return list(grad(output, wanted, weighting(output, number), retain_graph=True))

    for found, expected in zip(in_threads(work), map(work, range(THREADS)), strict=True):
        assert all(map(torch.equal, found, expected))


def test_threads_with_threads_of_their_own() -> None:
    """Callers in several threads, each of whose layers is computed on several."""
    torch.set_num_threads(2)
    model = network()
    x = [images(16, seed) for seed in range(THREADS)]

    def work(number: int) -> list[Tensor]:
        output = model(x[number])
        return [output.detach(), *grad(output.sin().sum(), list(model.parameters()))]

    for found, expected in zip(in_threads(work), map(work, range(THREADS)), strict=True):
        assert all(map(torch.equal, found, expected))


def test_gradients_of_threads_add_up() -> None:
    model = network().double()
    x = [images(4, seed).double() for seed in range(THREADS)]

    def work(number: int) -> None:
        for _ in range(5):
            loss(model, x[number]).backward()

    in_threads(work)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for number in range(THREADS):
        work(number)
    torch.testing.assert_close(found, [p.grad for p in model.parameters()])


def test_modes_stay_in_their_thread() -> None:
    """The choice of kernels, autocast and the absence of gradients are those of the thread that made them."""
    model, x = network(), images(2)

    def naive() -> Tensor:
        with scratchnn.kernels("naive"):
            return model(x).detach()

    expected = {True: naive(), False: model(x).detach()}
    assert not torch.equal(expected[True], expected[False])  # sums in another order

    def work(number: int) -> None:
        for _ in range(5):
            if number % 2:
                assert torch.equal(naive(), expected[True])
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    output = model(x)
                assert output.dtype == torch.bfloat16
                assert not output.requires_grad
            else:
                output = model(x)
                assert output.requires_grad
                assert torch.equal(output, expected[False])

    in_threads(work)


# --- processes ----------------------------------------------------------------------------------------------------


def run_in_children(work: Callable[..., None], *args: Any, count: int = 1, start_method: str = "forkserver") -> None:
    """``work(number, *args)`` in other processes; what they raise is raised here."""
    mp.set_forkserver_preload(["test_processes"])
    children = mp.start_processes(work, args, nprocs=count, start_method=start_method, join=False)
    patience = time.monotonic() + PATIENCE
    while not children.join(timeout=1):
        if time.monotonic() > patience:
            for child in children.processes:
                child.kill()
            raise AssertionError(f"a child has not come back after {PATIENCE} seconds")


@pytest.fixture
def used() -> Module:
    """A model whose kernels have run on several threads: forked children inherit none of these."""
    torch.set_num_threads(3)
    model = network()
    gradients(model, images(16))
    return model


def same_as(number: int, model: Module, x: Tensor, expected: list[Tensor]) -> None:
    torch.set_num_threads(1)
    assert all(map(torch.equal, gradients(model, x), expected))


def fork_after_use(number: int, x: Tensor, expected: list[Tensor]) -> None:
    torch.set_num_threads(3)
    model = network()
    assert all(map(torch.equal, gradients(model, x), expected))
    run_in_children(same_as, model, x, expected, count=2, start_method="fork")


def test_forked_children_compute_the_same() -> None:
    """With one thread, as for torch: OpenMP cannot start threads in a child of a process that has."""
    x = images(5)
    run_in_children(fork_after_use, x, gradients(network(), x))


class Embedded(Dataset):
    """Images, or what a model makes of them: a dataset whose transform is a network."""

    def __init__(self, model: Module) -> None:
        self.model, self.images = model.eval(), images(12)

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.model(self.images[index : index + 1])[0], os.getpid()


def loaded(dataset: Dataset, **options: Any) -> tuple[Tensor, set[int]]:
    outputs, processes = [], set()
    for _ in range(2):
        for batch, pids in DataLoader(dataset, batch_size=3, **options):
            outputs.append(batch)
            processes |= set(pids.tolist())
    return torch.cat(outputs), processes


def test_workers_of_a_data_loader(used: Module) -> None:
    dataset = Embedded(used)
    expected, _ = loaded(dataset)
    found, processes = loaded(dataset, num_workers=2, multiprocessing_context="fork", timeout=PATIENCE)
    assert torch.equal(found, expected)
    assert len(processes) == 4  # two in each epoch
    assert os.getpid() not in processes


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_that_start_afresh(used: Module, context: str) -> None:
    """They get the model pickled, and import scratchnn by unpickling it."""
    dataset = Embedded(used)
    expected, _ = loaded(dataset)
    found, processes = loaded(dataset, num_workers=1, multiprocessing_context=context, timeout=PATIENCE)
    assert torch.equal(found, expected)
    assert os.getpid() not in processes


def train(number: int, model: Module) -> None:
    torch.set_num_threads(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(30):
        optimizer.zero_grad()
        loss(model, images(8)).backward()
        optimizer.step()


def test_shared_weights() -> None:
    """Hogwild: two processes train one model in shared memory, without locks."""
    model = network()
    model.share_memory()
    assert all(p.is_shared() for p in model.parameters())
    before = loss(model, images(8)).item()
    run_in_children(train, model, count=2)
    assert loss(model, images(8)).item() < 0.5 * before


def answer(number: int, requests: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    model, x = requests.get()
    answers.put(model(x).detach())
    assert requests.get() is None  # until the tensor has been fetched


def test_models_are_sent_between_processes(used: Module) -> None:
    context = mp.get_context("fork")
    requests, answers = context.SimpleQueue(), context.SimpleQueue()
    child = context.Process(target=answer, args=(0, requests, answers), daemon=True)
    child.start()
    x = images(2)
    requests.put((used, x))
    found = answers.get().clone()
    requests.put(None)
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert torch.equal(found, used(x))


# --- data parallelism ---------------------------------------------------------------------------------------------

WORLD, BATCH = 2, 8


def half(rank: int, x: Tensor) -> Tensor:
    """The part of a batch that a process of this rank trains on."""
    return x[rank * len(x) // WORLD : (rank + 1) * len(x) // WORLD]


def own_loss(model: Callable[[Tensor], Tensor], x: Tensor, rank: int) -> Tensor:
    return loss(model, half(rank, x), rank * len(x) // WORLD)


def assert_gradients(found: Module | Iterator[Tensor], expected: list[Tensor], exact: bool = True) -> None:
    mine = [p.grad for p in (found.parameters() if isinstance(found, Module) else found)]
    rtol, atol = (1e-5, 1e-6) if exact else (0.02, 2e-3)
    torch.testing.assert_close(mine, expected, rtol=rtol, atol=atol)


def check_plain(rank: int, expected: list[Tensor]) -> None:
    """Two halves give the gradients of the whole batch, whatever way they are gathered."""
    for options in (
        {},
        {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.001},
        {"static_graph": True},
        {"find_unused_parameters": True},
    ):
        parallel = DistributedDataParallel(network(), **options)
        for _ in range(2):
            parallel.zero_grad()
            own_loss(parallel, images(BATCH), rank).backward()
            assert_gradients(parallel.module, expected)


def check_accumulation(rank: int, expected: list[Tensor]) -> None:
    parallel = DistributedDataParallel(network())
    with parallel.no_sync():
        own_loss(parallel, images(BATCH), rank).backward()
    own_loss(parallel, images(BATCH), rank).backward()
    assert_gradients(parallel.module, [2 * g for g in expected])


def check_hooks(rank: int, expected: list[Tensor]) -> None:
    """Gradients sent in half precision."""
    for hook in (default_hooks.allreduce_hook, default_hooks.fp16_compress_hook, default_hooks.bf16_compress_hook):
        parallel = DistributedDataParallel(network())
        parallel.register_comm_hook(None, hook)
        own_loss(parallel, images(BATCH), rank).backward()
        assert_gradients(parallel.module, expected, exact=hook is default_hooks.allreduce_hook)


class Branching(Module):
    """Each process uses another of its branches, and one is used by none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = network()
        self.branches = torch.nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.branches[which](self.stem(x))


def check_unused(rank: int) -> None:
    torch.manual_seed(4)
    whole = Branching()
    parallel = DistributedDataParallel(copy.deepcopy(whole), find_unused_parameters=True)
    x = images(BATCH)
    own_loss(lambda x: parallel(x, rank), x, rank).backward()
    total = sum(own_loss(lambda x, number=number: whole(x, number), x, number) for number in range(WORLD)) / WORLD
    total.backward()
    for mine, other in zip(parallel.module.parameters(), whole.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)
        else:
            assert mine.grad is None


def check_checkpointed(rank: int, expected: list[Tensor]) -> None:
    """Computed again in the backward pass, in single precision and under autocast."""

    class Checkpointed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.layers, x, use_reentrant=False)

    parallel = DistributedDataParallel(Checkpointed(), static_graph=True)
    own_loss(parallel, images(BATCH), rank).backward()
    assert_gradients(parallel.module, expected)
    parallel.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        value = own_loss(parallel, images(BATCH), rank)
    value.backward()
    assert_gradients(parallel.module, expected, exact=False)


def check_uneven(rank: int) -> None:
    """The second process has one batch more than the first, which answers for it with nothing."""
    parallel = DistributedDataParallel(network())
    with Join([parallel]):
        for step in range(1 + rank):
            parallel.zero_grad()
            loss(parallel, images(4, step)).backward()
    own = gradients(network(), images(4, rank))
    assert_gradients(parallel.module, [g / (1 + rank) for g in own])


def check_statistics(rank: int) -> None:
    """Batch norm's running statistics are those of the first process, before each forward pass."""
    torch.manual_seed(6)
    parallel = DistributedDataParallel(torch.nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    single = copy.deepcopy(parallel.module)
    x = images(BATCH)
    for _ in range(2):
        parallel(half(rank, x)).square().mean().backward()
        single(half(0, x))
    parallel(half(rank, x))
    single(half(rank, x))
    for mine, other in zip(parallel.module.buffers(), single.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def check_sharded(rank: int, expected: list[Tensor]) -> None:
    """Parameters, or the optimizer's state, spread over the processes."""
    model = network()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model[0], nn.Conv2d)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    own_loss(model, images(BATCH), rank).backward()
    torch.testing.assert_close([p.grad.full_tensor() for p in model.parameters()], expected, rtol=1e-5, atol=1e-6)
    optimizer.step()

    parallel = DistributedDataParallel(network())
    spread = ZeroRedundancyOptimizer(parallel.parameters(), torch.optim.SGD, lr=0.1)
    own_loss(parallel, images(BATCH), rank).backward()
    spread.step()
    whole = [p.full_tensor() for p in model.parameters()]
    torch.testing.assert_close(whole, list(parallel.parameters()), rtol=1e-5, atol=1e-6)


def work(rank: int, store: str, expected: list[Tensor]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    check_plain(rank, expected)
    check_accumulation(rank, expected)
    check_hooks(rank, expected)
    check_unused(rank)
    check_checkpointed(rank, expected)
    check_uneven(rank)
    check_statistics(rank)
    check_sharded(rank, expected)
    dist.destroy_process_group()


@needs_gloo
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    expected = gradients(network(), images(BATCH))
    run_in_children(work, str(tmp_path / "store"), expected, count=WORLD)
