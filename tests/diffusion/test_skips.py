"""Networks without some of their blocks: what they compute, how many blocks run, what is lawful."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from offdiff.augment.diffusion import UnguidedConfig
from offdiff.core.errors import InputError
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.core.types import Spec
from offdiff.data.codec import Codec
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.dit import DiT
from offdiff.diffusion.genomes import Evolution, Genome, first_generation, next_generation
from offdiff.diffusion.guidance import guided
from offdiff.diffusion.mmdit import MMDiT
from offdiff.diffusion.paths import Cosine
from offdiff.diffusion.skips import Skipping, skipping, with_skips
from offdiff.diffusion.solvers import SAMPLERS, calls_of, sampler
from offdiff.diffusion.unet import UNet
from offdiff.diffusion.world_model import (
    ErrorCurve,
    WorldModel,
    describe,
    load_model,
    make_denoiser,
)

SKIPS = ((1,), (), (1, 2), (2,))
LEVELS = (20.0, 3.0, 0.5, 0.1)
CODEC = Codec(
    spec=Spec(3, 2), horizon=4, action_map="linear", mean=torch.zeros(7), std=torch.ones(7)
)


def network(kind: str, depth: int = 4) -> DiT | MMDiT:
    torch.manual_seed(0)
    net: DiT | MMDiT
    if kind == "dit":
        net = DiT(4, 4, width=16, depth=depth, heads=2)
    else:
        net = MMDiT(4, (3, 1), width=16, depth=depth, heads=2)
    randomise(net)
    return net


def randomise(net: nn.Module) -> None:
    """adaLN-Zero's gates are closed in the beginning."""
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)


def world_model() -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(horizon=4, network="dit-xs")
    denoiser = make_denoiser(config, CODEC).requires_grad_(False)
    randomise(denoiser)
    return WorldModel(
        config=config,
        denoiser=denoiser,
        codec=CODEC,
        errors=ErrorCurve(torch.zeros(2), torch.zeros(2, 2)),
        data_hash="",
        validation=((0, 1.0),),
        grids={4: LEVELS},
        skips={4: SKIPS},
    )


@contextmanager
def executed(net: nn.Module) -> Iterator[list[int]]:
    """The numbers of the blocks, in the order in which they run."""
    ran: list[int] = []
    blocks = net.get_submodule("blocks")
    handles = [
        block.register_forward_pre_hook(lambda *_, k=k: ran.append(k))
        for k, block in enumerate(blocks.children())
    ]
    yield ran
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", ["dit", "mmdit"])
def test_it_is_the_network_of_the_other_blocks(kind: str) -> None:
    net, x, noise = network(kind), torch.randn(3, 5, 4), torch.randn(3)
    short = copy.deepcopy(net)
    del short.blocks[1:3]
    whole = net(x, noise)
    with skipping(net, (1, 2)):
        assert torch.equal(net(x, noise), short(x, noise))
        with skipping(net, ()):
            assert torch.equal(net(x, noise), whole)
        assert torch.equal(net(x, noise), short(x, noise))
    assert not torch.equal(short(x, noise), whole)
    with pytest.raises(RuntimeError), skipping(net, (1,)):
        raise RuntimeError
    assert torch.equal(net(x, noise), whole)


@pytest.mark.parametrize("solver", ["euler", "dpmpp", "unipc"])
def test_as_many_blocks_run_as_declared(solver: str) -> None:
    model = world_model()
    denoise = guided(model.denoiser, lambda estimate, _: estimate)
    start = model.start(torch.randn(2, 5, 7), 4)
    with executed(model.denoiser.network) as ran:
        sampler(solver, model, 4)(denoise, start, model.levels(4))
    assert ran == [0, 2, 3, 0, 1, 2, 3, 0, 3, 0, 1, 3]


@pytest.mark.parametrize(("solver", "levels"), [("heun", 4), ("midpoint", 4), ("euler", 3)])
def test_the_whole_network_runs_where_nothing_was_searched(solver: str, levels: int) -> None:
    model = world_model()
    start, sigmas = model.start(torch.randn(2, 5, 7), levels), model.levels(levels)
    with executed(model.denoiser.network) as ran:
        out = sampler(solver, model, levels)(model.denoiser, start, sigmas)
    assert len(ran) == 4 * calls_of(solver, levels)
    assert torch.equal(out, SAMPLERS[solver](model.denoiser, start, sigmas))


def test_augmenters_skip_what_is_stored() -> None:
    model, generator = world_model(), torch.Generator()
    draw = UnguidedConfig(levels=4).prepare(model)(None, generator)
    with executed(model.denoiser.network) as ran:
        draw(model.denoiser, 2, generator)
    assert len(ran) == 16 - sum(map(len, SKIPS))


def test_skips_are_read_back_and_are_no_part_of_the_hash(tmp_path: Path) -> None:
    model, file = world_model(), tmp_path / "model.safetensors"
    model.save(file)
    read = load_model(file, torch.device("cpu"))
    assert read.skips == {4: SKIPS}
    assert read.hash == replace(model, skips={}).hash
    assert describe(read)["skipped in 4 steps"] == "1 | - | 1 2 | 2"
    tensors, meta = load_tensors(file)
    del meta["skips"]  # as in files of before
    save_tensors(file, tensors, meta)
    assert load_model(file, torch.device("cpu")).skips == {}


NETS = {depth: network("dit", depth) for depth in range(3, 10)}


@st.composite
def problems(draw: st.DrawFn) -> tuple[Skipping, int, int]:
    depth = draw(st.integers(3, 9))
    # From a share that allows one block of the depth on.
    most = draw(st.floats(1 / depth, 0.95))
    limits = Skipping(
        network=NETS[depth], most=most, least=draw(st.floats(0, most, exclude_max=True))
    )
    return limits, draw(st.integers(1, 6)), draw(st.integers(0, 2**20))


def require_lawful(limits: Skipping, skip: Tensor) -> None:
    assert skip.shape[1] == limits.blocks - 2
    assert skip.sum(1).max() <= limits.most * limits.blocks + 1e-6
    assert skip.sum() >= limits.needed(len(skip))


@given(problems())
def test_mutations_and_crossovers_keep_the_limits(problem: tuple[Skipping, int, int]) -> None:
    limits, steps, seed = problem
    generator = torch.Generator().manual_seed(seed)
    evolution = Evolution(population=12, kept=4, mutated=4, crossed=4, finalists=1)
    times = first_generation(limits.none(steps), Cosine(), 80.0, evolution, generator)
    genomes = [Genome(one.times, limits.random(steps, generator)) for one in times]
    for _ in range(3):
        for genome in genomes:
            require_lawful(limits, genome.skip)
            assert (genome.times.diff() >= 0).all()
        genomes = next_generation(genomes, evolution, limits, generator)


@given(problems())
def test_mutations_change_what_is_skipped(problem: tuple[Skipping, int, int]) -> None:
    """Unless there is but one choice: every block that may be skipped has to be."""
    limits, steps, seed = problem
    generator = torch.Generator().manual_seed(seed)
    skip = limits.random(steps, generator)
    mutated = limits.mutated(skip, 0.25, generator)
    only_one = limits.needed(steps) == skip.numel()
    assert torch.equal(mutated, skip) == only_one


def test_what_is_wanted_is_kept_as_far_as_it_fits() -> None:
    limits, generator = Skipping(network=NETS[8], most=0.25), torch.Generator()
    wanted = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]).bool()
    made = limits.lawful(wanted, generator)
    assert made.sum(1).tolist() == [2, 1]
    assert (made <= wanted).all()
    assert limits.in_order(wanted) == ((5,), (1, 2, 3))
    assert limits.lawful(limits.none(2), generator).sum() == limits.needed(2) == 2


def test_skipped_blocks_stay_with_their_times() -> None:
    genome = Genome(torch.tensor([0.9, 0.1, 2.0]), torch.eye(3).bool()).sorted()
    assert genome.times.tolist() == pytest.approx([0.1, 0.9, 1.0])
    assert genome.skip.int().argmax(1).tolist() == [1, 0, 2]


def test_what_cannot_be_skipped_is_told() -> None:
    unet = UNet(4, 4, width=32)
    with pytest.raises(InputError, match=r"not those of a UNet: use a model with a dit-\* or"):
        Skipping(network=unet)
    with pytest.raises(InputError, match="transformer"), skipping(unet, (1,)):
        pass
    with pytest.raises(InputError, match="is not one; allow a larger share"):
        Skipping(network=NETS[3])
    with pytest.raises(InputError, match="is not one; allow a larger share"):
        Skipping(network=network("dit", 2), most=0.9, least=0)
    with pytest.raises(InputError, match="0 <= least <= most"):
        Skipping(network=NETS[8], most=0.25, least=0.5)
    model = world_model()
    light = with_skips(SAMPLERS["euler"], model.denoiser.network, SKIPS)
    with pytest.raises(InputError, match="for 4 levels, not for 3"):
        light(model.denoiser, torch.randn(2, 5, 7), model.levels(3))
