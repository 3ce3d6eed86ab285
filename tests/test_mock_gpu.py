"""The GPU that is not there: what it does as torch does, what it refuses, and what it counts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmg_bench.methods._ops import takes_triton
from mmg_bench.mock_gpu import MockGpu

GPU = torch.device("cuda", 0)
APART = "^Expected all tensors to be on the same device, but {} was given cuda:0 and cpu$"


@pytest.fixture
def gpu():
    with MockGpu() as gpu:
        yield gpu


@pytest.fixture
def x(gpu) -> Tensor:
    return torch.arange(6.0).view(2, 3).to("cuda")


def test_tensors_say_where_they_are_and_keep_their_values(gpu, x):
    assert (x.device, x.is_cuda, x.is_cpu, x.shape) == (GPU, True, False, (2, 3))
    assert (x.get_device(), torch.ones(1).get_device()) == (0, -1)
    assert x.cpu().device == x.to("cpu").device == torch.device("cpu")
    assert torch.equal(x.cpu(), torch.arange(6.0).view(2, 3))
    here = torch.ones(2)
    there = here.cuda()
    there += 1
    assert here.tolist() == [1, 1], "a copy"
    assert there.tolist() == [2, 2]
    assert here.to(x).device == here.to(x.device).device == GPU
    assert x.to(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert x.to(torch.zeros(1)).device == torch.device("cpu")
    assert x.to(torch.float16).dtype == torch.float16
    assert x.half().device == GPU
    assert x.to("cuda:0") is x.to(GPU, torch.float32) is x.cuda() is x.to(0) is x
    assert x.to(GPU, copy=True) is not x


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.arange(3, device="cuda"),
        lambda x: torch.zeros(3, device=x.device),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.zeros_like(torch.ones(2), device="cuda"),
        lambda x: x.new_zeros(2),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.zeros_like(x),
        lambda x: x.T[0:1].flatten(),
        lambda x: x + 1,
        lambda x: x.topk(1).indices,
        lambda x: x.split(1)[1],
        lambda x: F.one_hot(x.long()),
        lambda x: torch.cat([x, x]),
        lambda x: x.requires_grad_().square().sum(),
        lambda x: torch.nn.Parameter(x),
        lambda x: x.detach(),
        lambda x: torch.zeros(2, 3, out=x),
    ],
)
def test_what_is_made_there_is_there(make, x):
    assert make(x).device == GPU


def test_what_is_made_here_stays_here(x):
    assert torch.zeros(2).device == torch.zeros_like(x, device="cpu").device == torch.device("cpu")
    assert torch.zeros(2, device="meta").device == torch.device("meta")
    assert torch.get_default_device() == torch.device("cpu")


def test_a_default_device_is_followed(gpu):
    with torch.device("cuda"):
        assert torch.zeros(2).device == GPU


def test_work_in_place_and_views_share_values(x):
    row = x[0]
    row.mul_(2)
    x[1] = 7
    x[0, 1:] = torch.tensor([5.0, 6.0])  # a copy, which goes from here to there
    x[:, torch.tensor([0])] = torch.tensor(9.0)
    assert x.tolist() == [[9, 5, 6], [9, 7, 7]]
    x.unsqueeze_(0)
    assert x.shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("mix", "name"),
    [
        (lambda x: x + torch.ones(3), "add"),
        (lambda x: torch.ones(3) + x, "add"),
        (lambda x: x @ torch.ones(3), "matmul"),
        (lambda x: torch.cat([x, torch.ones(2, 3)]), "cat"),
        (lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]), "stack"),
        (lambda x: x[0, 0] * torch.ones(3), "mul"),
        (lambda x: x.gather(1, torch.tensor([[0], [1]])), "gather"),
        (lambda x: x.index_select(0, torch.tensor([0])), "index_select"),
        (lambda x: torch.ones(2, 3)[x.long()], "__getitem__"),
        (lambda x: torch.ones(6).__setitem__(x.long(), 0), "__setitem__"),
        (lambda x: x.__setitem__(torch.tensor([0, 1]), torch.ones(2, 3)), "__setitem__"),
        (lambda x: x.index_put((torch.tensor([0, 1]),), torch.ones(2, 3)), "index_put"),
        (lambda x: F.linear(x, torch.ones(4, 3)), "linear"),
        (lambda x: F.embedding(x.long(), torch.ones(8, 3)), "embedding"),
        (lambda x: torch.where(x > 0, x, torch.ones(3)), "where"),
    ],
)
def test_tensors_of_both_sides_are_refused(mix, name, x):
    with pytest.raises(RuntimeError, match=APART.format(name)):
        mix(x)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.tensor(1.0),
        lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x: x.masked_fill(x > 0, torch.tensor(0.0)),
        lambda x: x[torch.tensor([0])],
        lambda x: x[torch.tensor([True, False])],
        lambda x: x.clone().copy_(torch.ones(3)),
        lambda x: x.index_put((torch.tensor([0]),), torch.tensor(1.0)),
    ],
)
def test_single_numbers_and_indices_of_the_host_are_taken(mix, x):
    assert mix(x).device == GPU


def test_copies_go_to_the_host(x):
    here = torch.zeros(2, 3)
    assert here.copy_(x).device == torch.device("cpu")
    assert torch.equal(here, x.cpu())
    here[0] = x[1] + 1
    here[torch.tensor([1])] = x[0, 0]
    assert (here.device, here.tolist()) == (torch.device("cpu"), [[4, 5, 6], [0, 0, 0]])


def test_no_views_of_numpy_and_no_generators_of_the_host(x):
    for view in (x.numpy, lambda: np.asarray(x), lambda: np.array(x)):
        with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy\. Use Tensor\.cpu"):
            view()
    assert x.cpu().numpy().sum() == 15
    drawn = torch.Generator().manual_seed(0)
    for draw in (
        lambda: torch.rand(3, generator=drawn, device="cuda"),
        lambda: x.normal_(generator=drawn),
    ):
        with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
            draw()


def test_products_of_halves_in_float32(x):
    """torch knows `out_dtype` on a GPU alone."""
    halves = x.bfloat16()
    product = torch.mm(halves, halves.T, out_dtype=torch.float32)
    assert (product.dtype, product.device) == (torch.float32, GPU)
    assert product.tolist() == [[5, 14], [14, 50]]


def test_triton_is_not_given_its_tensors(x):
    assert not takes_triton(x)


@pytest.mark.parametrize(
    ("work", "kernels", "why"),
    [
        (lambda x: x.T.reshape(3, 2)[0].detach(), 0, []),
        (lambda x: torch.empty_like(x), 0, []),
        (lambda x: (x + 1).sum(), 2, []),
        (lambda x: x.to(torch.float32), 0, []),
        (lambda x: x.to("cpu"), 1, ["copy"]),
        (lambda x: torch.ones(3).to("cuda", non_blocking=True), 1, []),
        (lambda x: torch.tensor([1, 2], device="cuda"), 0, ["tensor"]),
        (lambda x: x.tolist(), 0, ["tolist"]),
        (lambda x: x.sum().item(), 2, ["_local_scalar_dense"]),
        (lambda x: bool(x.any()), 2, ["_local_scalar_dense"]),
        (lambda x: (x > 1).nonzero(), 2, ["nonzero"]),
        (lambda x: (x > 1).flatten().nonzero_static(size=4), 2, []),
        (lambda x: x[x > 1], 2, ["index"]),
        (lambda x: x[torch.tensor([0], device="cuda")], 1, ["tensor"]),
        (lambda x: x.unique(), 1, ["_unique2"]),
        (lambda x: torch.ones(9).sum(), 0, []),
        (lambda x: torch.ones(2, 3).copy_(x), 1, ["copy"]),
        (lambda x: torch.ones(2, 3).__setitem__(0, x[0]), 1, ["copy"]),
        (lambda x: x.__setitem__(0, torch.ones(3)), 1, ["copy"]),
        (lambda x: x.copy_(x + 1), 2, []),
        (lambda x: x[torch.tensor([0])], 1, ["copy"]),
        (lambda x: x[0], 0, []),
    ],
)
def test_kernels_and_waits_are_counted(work: Callable[[Tensor], object], kernels, why, gpu, x):
    before, waited = gpu.kernels, len(gpu.waits)
    work(x)
    assert gpu.kernels - before == kernels
    assert [wait.split(" ", 1)[1] for wait in gpu.waits[waited:]] == why


def test_a_wait_is_told_by_the_line_that_makes_it(gpu, x):
    before = len(gpu.waits)
    F.one_hot(x.long().flatten()[:1])
    x.unique()
    line = test_a_wait_is_told_by_the_line_that_makes_it.__code__.co_firstlineno
    assert gpu.waits[-1] == f"test_mock_gpu.py:{line + 3} _unique2"
    assert all(wait.startswith("test_mock_gpu.py:") for wait in gpu.waits[before:])


def test_there_may_be_several(x):
    second = torch.device("cuda", 1)
    with MockGpu(2):
        y = torch.ones(3).to(1)
        assert [y.device, (y + 1).device, y.to(x.device).device, torch.zeros(1, device="cuda:1").device] == [
            second,
            second,
            GPU,
            second,
        ]
        assert x.clone().copy_(y).device == GPU
        assert (y * torch.tensor(2.0)).device == second
        one = torch.tensor([0], device="cuda:1")
        for mix in (lambda: x + y, lambda: x * y[0], lambda: x[one], lambda: y.__setitem__(one, x[0, :1])):
            with pytest.raises(RuntimeError, match=r"same device, but \w+ was given cuda:1 and cuda:0$"):
                mix()
    with MockGpu(), pytest.raises(RuntimeError, match="invalid device ordinal: cuda:1"):
        torch.ones(1, device="cuda:1")


def test_modules_go_there_whole(gpu):
    made = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = made(x)
    made.to("cuda")
    assert {value.device for value in (*made.parameters(), *made.buffers())} == {GPU}
    assert all(isinstance(value, torch.nn.Parameter) for value in made.parameters())
    torch.testing.assert_close(made(x.to("cuda")).cpu(), expected)
    with pytest.raises(RuntimeError, match=APART.format("linear")):
        made(x)


def test_there_is_none_after_it():
    with MockGpu() as gpu:
        torch.ones(2, device="cuda")
    assert gpu.kernels == 1
    torch.ones(2) + 1
    assert gpu.kernels == 1
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(2, device="cuda")
