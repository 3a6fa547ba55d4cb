"""Batch normalization over two processes with gloo, against one process that sees the whole batch."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from scratchnn import nn
from scratchnn.nn import SyncBatchNorm

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

SPLITS = [(4, 4), (5, 3), (8, 0)]  # samples of each process
WORLD = 2


def whole_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 5, 6, 4, generator=generator) * 3 + 100
    return x, torch.randn(8, 5, 6, 4, generator=generator)


def layer(dtype: torch.dtype = torch.float32) -> torch.nn.BatchNorm2d:
    torch.manual_seed(1)
    module = nn.BatchNorm2d(5, dtype=dtype)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    return module


def share(x: Tensor, split: tuple[int, int], rank: int) -> Tensor:
    return x[: split[0]] if rank == 0 else x[split[0] :]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def check_one(rank: int, split: tuple[int, int], layout: torch.memory_format) -> None:
    """Output, gradients and running statistics."""
    single, sync = layer(), SyncBatchNorm.convert_sync_batchnorm(layer())
    x, grad = whole_batch(0)
    expected = x.clone().requires_grad_()
    y = single(expected)
    y.backward(grad)
    own = share(x, split, rank).contiguous(memory_format=layout).requires_grad_()
    output = sync(own)
    output.backward(share(grad, split, rank))
    close(output, share(y, split, rank))
    close(own.grad, share(expected.grad, split, rank))
    if own.numel():
        assert output.is_contiguous(memory_format=layout)
    for name in ("weight", "bias"):
        total = getattr(sync, name).grad.clone()
        dist.all_reduce(total)
        close(total, getattr(single, name).grad)
    for mine, other in zip(sync.buffers(), single.buffers(), strict=True):
        close(mine, other)
    for module in (single, sync):
        module.eval()
    close(sync(own.detach()), share(single(x), split, rank))


def check_twice(rank: int, split: tuple[int, int]) -> None:
    """The gradient of a gradient."""
    results = []
    x, grad = (t.double() for t in whole_batch(1))
    for module, own, g in (
        (layer(torch.float64), x, grad),
        (
            SyncBatchNorm.convert_sync_batchnorm(layer(torch.float64)).double(),
            share(x, split, rank),
            share(grad, split, rank),
        ),
    ):
        own, g = own.clone().requires_grad_(), g.clone().requires_grad_()
        first = torch.autograd.grad(module(own), [own, module.weight], g, create_graph=True)
        loss = first[0].cos().sum()
        results.append(torch.autograd.grad(loss, [own, g, module.weight]))
    for position in range(2):
        torch.testing.assert_close(results[1][position], share(results[0][position], split, rank))
    weight = results[1][2].clone()
    dist.all_reduce(weight)
    torch.testing.assert_close(weight, results[0][2])


def check_training(rank: int) -> None:
    """Some steps of a small network under DistributedDataParallel."""
    torch.manual_seed(2)
    single = torch.nn.Sequential(
        torch.nn.Conv2d(5, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2)
    )
    sync = SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(single))
    assert sum(isinstance(module, SyncBatchNorm) for module in sync) == 2
    parallel = torch.nn.parallel.DistributedDataParallel(sync)
    steps = [torch.optim.SGD(model.parameters(), 0.05) for model in (single, parallel)]
    for seed in range(3):
        x = whole_batch(seed)[0] - 100
        for model, batch, step in ((single, x, steps[0]), (parallel, share(x, (4, 4), rank), steps[1])):
            step.zero_grad()
            model(batch).square().sum(1).sin().mean().backward()
            step.step()
    for mine, other in zip(sync.state_dict().values(), single.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for split in SPLITS:
        for layout in (torch.contiguous_format, torch.channels_last):
            check_one(rank, split, layout)
        check_twice(rank, split)
    check_training(rank)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # an ordinary exit aborts where a thread of gloo's has not ended yet


def test_two_processes_are_one(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path / "store"),), nprocs=WORLD)


def test_alone_it_is_batch_norm() -> None:
    single = layer()
    sync = SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(single))
    assert type(sync) is SyncBatchNorm
    x, _ = whole_batch(0)
    for training in (True, False):
        assert torch.equal(sync.train(training)(x), single.train(training)(x))
    for mine, other in zip(sync.buffers(), single.buffers(), strict=True):
        assert torch.equal(mine, other)


def test_conversion_shares_what_it_replaces() -> None:
    for library in (nn, torch.nn):
        model = torch.nn.Sequential(library.BatchNorm1d(3, bias=False), torch.nn.Sequential(library.BatchNorm3d(4)))
        weights = list(model.parameters())
        converted = SyncBatchNorm.convert_sync_batchnorm(model.eval(), None)
        assert converted is model
        assert all(mine is other for mine, other in zip(model.parameters(), weights, strict=True))
        assert [type(module) for module in (model[0], model[1][0])] == [SyncBatchNorm] * 2
        assert not model[0].training


def test_errors() -> None:
    for library in (nn, torch.nn):
        with pytest.raises(ValueError, match="at least 2D"):
            library.SyncBatchNorm(3)(torch.randn(3))
        with pytest.raises(ValueError, match="non-zero"):
            library.SyncBatchNorm(3)(torch.randn(2, 0, 4))
