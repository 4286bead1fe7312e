"""int8 denoisers: error against the float model, calibration, what is refused, files."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from offdiff.augment.base import Source
from offdiff.augment.diffusion import PGDConfig
from offdiff.cli import main
from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.tensors import load_tensors
from offdiff.core.types import Spec
from offdiff.data.codec import Codec
from offdiff.data.load import load_dataset
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.denoiser import Denoiser, LevelLaw
from offdiff.diffusion.dit import DiT
from offdiff.diffusion.guidance import PolicyGuidance, guided_jointly
from offdiff.diffusion.mlp import WindowMLP
from offdiff.diffusion.oracles import Mixture
from offdiff.diffusion.quantize import covered_share, own_states, paired_error, quantize
from offdiff.diffusion.sampling import karras_sigmas, sample_heun
from offdiff.diffusion.world_model import (
    ErrorCurve,
    WorldModel,
    describe,
    load_model,
    make_denoiser,
)

pytest.importorskip("torchao")

CPU = torch.device("cpu")
ROWS, COLUMNS = 16, 4
MODES = ("dynamic", "static", "weight")


def plain_denoiser(network: nn.Module) -> Denoiser:
    slots = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    return Denoiser(network, slots, (2, 1, 1, 0), level_channels=False)


@pytest.fixture(scope="module")
def four_modes() -> tuple[Denoiser, Tensor]:
    """A residual MLP trained briefly on four waves of 64 numbers, and the data."""
    generator = torch.Generator().manual_seed(0)
    time = torch.linspace(0, 2 * math.pi, ROWS)[:, None]
    phases = 2 * math.pi * torch.rand(4, 1, COLUMNS, generator=generator)
    means = 2**0.5 * (time + phases).sin()
    mixture = Mixture(torch.full((4,), 0.25), means, torch.full((4,), 0.1))
    data = mixture.sample(2048, generator=generator)
    data = (data - data.mean()) / data.std()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WindowMLP(COLUMNS, COLUMNS, rows=ROWS, width=128, depth=2)
    denoiser, law, steps = plain_denoiser(network), LevelLaw(), 250
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, steps)
    for _ in range(steps):
        clean = data[torch.randint(len(data), (128,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        denoiser.loss(clean, noise, law.sample(128, generator=generator)).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return denoiser.eval().requires_grad_(False), data


def world_model(
    network: str, data_hash: str = "0" * 64, obs: int = 3, action: int = 2
) -> WorldModel:
    """Untrained, but its output is not zero."""
    config = ModelConfig(horizon=4, network=network)
    columns = obs + action + 1
    codec = Codec(
        spec=Spec(obs, action),
        horizon=4,
        action_map="linear",
        mean=torch.zeros(columns),
        std=torch.ones(columns),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = make_denoiser(config, codec)
        for parameter in denoiser.parameters():
            nn.init.normal_(parameter, std=0.05)
    return WorldModel(
        config=config,
        denoiser=denoiser.eval().requires_grad_(False),
        codec=codec,
        errors=ErrorCurve(torch.tensor([-1.0, 1.0]), torch.ones(2, action)),
        data_hash=data_hash,
        validation=((1, 1.0),),
    )


def samples(model: WorldModel) -> Tensor:
    noise = model.noise(8, 80.0, generator=torch.Generator().manual_seed(3))
    return sample_heun(model.denoiser, noise, karras_sigmas(4))


def test_samples_stay_near_those_of_the_float_model(four_modes: tuple[Denoiser, Tensor]) -> None:
    denoiser, _ = four_modes
    ends_float = quantize(denoiser)
    whole = quantize(denoiser, keep=())
    errors = [paired_error(denoiser, d, n=256, levels=12) for d in (ends_float, whole)]
    assert 0 < errors[0] < errors[1] < 0.04
    weight = quantize(denoiser, mode="weight")
    assert 0 < paired_error(denoiser, weight, n=256, levels=12) < errors[0]
    assert denoiser.quantised is None, "the float model is left as it was"


def test_calibration_on_own_states_beats_clean_data(four_modes: tuple[Denoiser, Tensor]) -> None:
    denoiser, data = four_modes
    states = own_states(denoiser)
    clean = data[:1024]

    def error(states: tuple[Tensor, Tensor]) -> float:
        made = quantize(denoiser, mode="static", keep=(), states=states)
        return paired_error(denoiser, made, n=256, levels=12)

    own = error(states)
    assert own < 0.04
    # Waves are bounded and noise is not: what is calibrated on them alone clips the first steps.
    # (With float ends, or on data with tails like the noise's, calibration matters far less.)
    assert own <= 0.25 * error((clean, states[1]))
    assert own <= 0.25 * error((clean, torch.full((1024,), 0.002)))


def test_own_states_keep_their_own_level(four_modes: tuple[Denoiser, Tensor]) -> None:
    denoiser, _ = four_modes
    states, levels = own_states(denoiser, 256)
    # A state at level sigma has about sigma^2 more variance than the unit data.
    ratio = states.square().mean((1, 2)) / (1 + levels**2)
    assert 0.5 < float(ratio.median()) < 1.5
    assert float(((ratio > 0.2) & (ratio < 3)).float().mean()) > 0.98
    times = levels / (1 + levels)
    assert float(times.median()) == pytest.approx(0.4, abs=0.1)
    # What lies below 0 or above 1 is clipped to the ends, 16 % and 7 %.
    assert 0.1 < float((times < 0.01).float().mean()) < 0.25
    assert 0.02 < float((times > 0.98).float().mean()) < 0.15


def test_covered_arithmetic_of_a_transformer() -> None:
    width, depth = 32, 2
    denoiser = plain_denoiser(DiT(COLUMNS, COLUMNS, width=width, depth=depth, heads=2))
    made = quantize(denoiser)
    per_row = ROWS * (3 + 1 + 4 + 4) * width**2
    blocks = depth * (per_row + 6 * width**2)  # modulation is computed once per window
    attention = depth * 2 * ROWS**2 * width
    final = 2 * width**2
    ends = 2 * ROWS * COLUMNS * width + 256 * width + width**2
    assert made.quantised is not None
    assert made.quantised.covered == pytest.approx(
        (blocks + final) / (blocks + final + attention + ends)
    )
    linear = [n for n, m in denoiser.network.named_modules() if isinstance(m, nn.Linear)]
    assert covered_share(denoiser, linear) == pytest.approx(
        (blocks + final + ends) / (blocks + final + attention + ends)
    )
    assert len(made.quantised.layers) == 5 * depth + 1


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_refused(mode: str) -> None:
    model = world_model("mlp-128")
    x, sigma = torch.randn(2, 5, model.codec.columns), torch.ones(2)
    guidance = PolicyGuidance(codec=model.codec, policy=Still())
    guided_jointly(model.denoiser, guidance)(x, sigma)
    made = quantize(model.denoiser, mode=mode)  # type: ignore[arg-type]
    made(x, sigma)
    with pytest.raises(InputError, match="gradients do not pass"):
        guided_jointly(lambda x, s, /: made(x, s), guidance)(x, sigma)


def test_what_cannot_be_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("unet-32", "temporal-32"):
        with pytest.raises(InputError, match="convolutions stay"):
            quantize(world_model(name).denoiser)
    denoiser = world_model("mlp-128").denoiser
    with pytest.raises(InputError, match="already"):
        quantize(quantize(denoiser))
    with pytest.raises(InputError, match="did you mean 'time'"):
        quantize(denoiser, keep=("tim",))
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"offdiff\[quantize\]"):
        quantize(denoiser)


@pytest.mark.parametrize("network", ["dit-xs", "mlp-128"])
@pytest.mark.parametrize("mode", MODES)
def test_a_file_gives_the_same_model_back(tmp_path: Path, network: str, mode: str) -> None:
    model = world_model(network)
    model.save(tmp_path / "float.safetensors")
    denoiser = quantize(model.denoiser, mode=mode, keep=("out",))  # type: ignore[arg-type]
    made = dataclasses.replace(model, denoiser=denoiser)
    made.save(tmp_path / "int8.safetensors")
    found = load_model(tmp_path / "int8.safetensors", CPU)
    assert torch.equal(samples(found), samples(made))
    assert not torch.equal(samples(found), samples(model))
    assert found.denoiser.quantised == denoiser.quantised
    assert mode in describe(found)["quantised"]
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "int8.safetensors"
    ).read_bytes()
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("float", "int8")]
    assert sizes[1] < 0.4 * sizes[0]
    tensors, _ = load_tensors(tmp_path / "int8.safetensors")
    assert any(tensor.dtype == torch.int8 for tensor in tensors.values())


def test_a_file_without_torchao_or_its_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "int8.safetensors"
    model = world_model("mlp-128")
    dataclasses.replace(model, denoiser=quantize(model.denoiser, mode="static")).save(file)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchao", None)
        with pytest.raises(MissingExtraError, match=r"offdiff\[quantize\]"):
            load_model(file, CPU)
    monkeypatch.setattr("offdiff.diffusion.world_model.unpack", _without_scales)
    with pytest.raises(InputError, match="lacks what a world model needs"):
        load_model(file, CPU)


def test_the_command_and_augmentation(
    tmp_path: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_dataset(str(toy_file))
    source, out = tmp_path / "float.safetensors", tmp_path / "int8.safetensors"
    world_model("mlp-128", data_hash=episodes_hash(data.episodes)).save(source)
    command = ["model", "quantize", str(source), "--out", str(out)]
    assert main([*command, "--mode", "static", "--keep", "in,out"]) == 0
    assert "int8 static" in capsys.readouterr().out
    assert main(command) == 2, "the file exists"
    assert main(["model", "info", str(out)]) == 0
    assert "int8 static" in capsys.readouterr().out
    for joint in (False, True):
        config = PGDConfig(model_file=str(out), levels=3, joint=joint)
        made = config.build(
            Source(
                episodes=data.episodes, info=data.info, device=CPU, cache=tmp_path, progress=False
            )
        )
        generator = torch.Generator().manual_seed(0)
        if joint:
            with pytest.raises(InputError, match="gradients do not pass"):
                made.generate(20, Still(), generator=generator)
        else:
            assert made.generate(20, Still(), generator=generator).obs.isfinite().all()


class Still:
    """Acts 0."""

    def act(self, obs: Tensor, /) -> Tensor:
        return torch.zeros(*obs.shape[:-1], 2)

    def reset(self, which: Tensor, /) -> None:
        """Nothing to forget."""


def _without_scales(network: nn.Module, plain: dict[str, Tensor], quantised: object) -> None:
    from offdiff.diffusion.quantize import unpack

    kept = {name: tensor for name, tensor in plain.items() if "input_scale" not in name}
    unpack(network, kept, quantised)  # type: ignore[arg-type]
