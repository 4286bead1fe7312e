"""Records a dataset in a simulator, by D4RL's recipe: random, medium, medium-replay or expert.

Fu et al. 2020, section 5: medium is an agent "early-stopped" at about a third of the expert's
performance, medium-replay what its replay buffer held by then, expert an agent trained to the end.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offdiff.core.errors import InputError
from offdiff.core.files import replacing, require_writable, sha256
from offdiff.core.protocols import Policy
from offdiff.core.types import Spec
from offdiff.data.catalogue import family_of, recognise
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.hdf5 import Attribute
from offdiff.data.recorder import (
    Actor,
    ActorSource,
    PolicyActor,
    UniformActor,
    env_spec,
    unit_box,
)
from offdiff.data.recording import Identity, record, work_folder
from offdiff.data.save import destination_path, save_dataset
from offdiff.data.sb3 import SB3Policy, from_sb3_buffer
from offdiff.data.sb3_agents import load_agent
from offdiff.data.sb3_normalizer import NormalizedPolicy, read_normalizer
from offdiff.data.sb3_training import Algorithm, MakeEnv, TrainedAgent, TrainingPlan, train_agent

if TYPE_CHECKING:
    import gymnasium

Recipe = Literal["random", "medium", "medium-replay", "expert"]
DEFAULT_STEPS = 1_000_000
"""Rows of a D4RL locomotion dataset."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What is recorded. Raises InputError for options that contradict each other."""

    env: str
    """Gymnasium environment, e.g. Hopper-v4."""
    to: str
    """New file ending in .hdf5, or new Minari id such as me/hopper/medium-v0."""
    recipe: Recipe
    """random: uniform actions. medium: the agent at about a third of an expert's return.
    medium-replay: all that such an agent saw in training. expert: the agent trained to the end.
    With --agent, medium and expert record that agent and differ in name only."""
    agent: Path | None = None
    """A stable-baselines3 agent (.zip) to record; pickles inside the file are not opened."""
    normalizer: Path | None = None
    """Observation statistics that the agent was trained with: the .pkl of SB3's VecNormalize."""
    train: Algorithm | None = None
    """Train an agent of this kind first, with stable-baselines3: sac, td3 or ppo."""
    steps: int | None = None
    """Rows to record, default 1000000; medium-replay gives as many as were trained on."""
    seed: int = 0
    """Everything random follows from it."""
    deterministic: bool = False
    """The agent's most likely action instead of a sample. D4RL's datasets hold samples."""
    target_return: float | None = None
    """Training for medium and medium-replay stops at this mean return (10 episodes); default: a
    third of the way from D4RL's random to D4RL's expert return, where D4RL knows the task."""
    train_steps: int = 1_000_000
    """Training steps: all of them for expert, at most so many for medium."""
    learning_starts: int = 10_000
    """Training steps of random actions before sac or td3 begin to learn."""
    eval_every: int = 10_000
    """Training steps between two evaluations, which are also the checkpoints."""
    keep_agent: Path | None = None
    """Also save the trained agent here (.zip), for another --agent."""
    trust_agent: bool = False
    """Open the pickles in --agent too, which runs code from that file: only if you trust it."""
    resume: bool = False
    """Continue a stopped recording or training; give the same options again."""
    overwrite: bool = False
    """Replace an existing HDF5 file."""
    device: str = "auto"
    """Where the agent's networks live: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        counts = {
            "steps": 1 if self.steps is None else self.steps,
            "train_steps": self.train_steps,
            "eval_every": self.eval_every,
        }
        for name, value in counts.items():
            if not 1 <= value <= 10**9:
                raise InputError(f"--{_flag(name)} must lie in [1, 1000000000], got {value}")
        if self.seed < 0 or self.learning_starts < 0:
            raise InputError("--seed and --learning-starts must be at least 0")
        given = [flag for flag in ("agent", "train") if getattr(self, flag) is not None]
        if self.recipe == "random" and given:
            raise InputError(f"recipe random needs no agent; leave --{given[0]} out")
        if self.recipe != "random" and len(given) != 1:
            raise InputError(
                f"recipe {self.recipe} needs either --agent FILE.zip or --train sac|td3|ppo"
            )
        if self.normalizer is not None and self.agent is None:
            raise InputError("--normalizer belongs to a saved agent; give --agent, too")
        if self.keep_agent is not None and self.train is None:
            raise InputError("--keep-agent saves a trained agent; give --train, too")
        if self.recipe == "medium-replay":
            self._check_replay()

    def _check_replay(self) -> None:
        if self.train not in ("sac", "td3"):
            raise InputError(
                "recipe medium-replay needs --train sac or --train td3: an agent's file holds no "
                "replay buffer, and ppo keeps none"
            )
        if self.steps is not None:
            raise InputError(
                "recipe medium-replay gives all steps that were trained on; leave --steps out"
            )


def collect(config: CollectConfig, make_env: MakeEnv, *, show: bool = True) -> Path:
    """Records and saves one dataset; gives its file or folder.

    make_env: makes the environment `config.env`, with a step limit.
    A work folder beside the destination keeps what is done until the dataset is whole.
    Raises InputError, with nothing written to the destination, for whatever does not fit.
    """
    path = destination_path(config.to, overwrite=config.overwrite)
    require_writable(path.parent)
    env = make_env()
    with work_folder(path, _identity(config), resume=config.resume) as folder:
        episodes, behaviour = _gather(config, env, make_env, folder, show=show)
        dataset = Dataset(info=_info(config, env, path, behaviour), episodes=episodes)
        save_dataset(dataset, config.to, _provenance(config), overwrite=config.overwrite)
    env.close()
    return path


def _info(
    config: CollectConfig, env: "gymnasium.Env[Any, Any]", path: Path, behaviour: str
) -> DatasetInfo:
    low, half = unit_box(env)
    return DatasetInfo(
        name=path.stem,
        suite="hdf5",
        source=str(path),
        sha256="",
        family=family_of(config.env),
        env_id=config.env,
        max_episode_steps=env.spec.max_episode_steps if env.spec else None,
        score_range=None,
        behaviour=behaviour,
        action_low=tuple(low.tolist()),
        action_high=tuple((low + 2 * half).tolist()),
    )


def _gather(
    config: CollectConfig,
    env: "gymnasium.Env[Any, Any]",
    make_env: MakeEnv,
    folder: Path,
    *,
    show: bool,
) -> tuple[Episodes, str]:
    """The rows, and who acted in words."""
    if config.recipe == "random":
        actor: Actor = UniformActor(env_spec(env).action_dim)
        behaviour = "uniform random actions"
    elif config.agent is not None:
        model = load_agent(config.agent, env, trust=config.trust_agent, device=config.device)
        actor = _actor(config, model, env_spec(env))
        behaviour = f"{config.recipe}: agent {config.agent.name}, {_mode(config)}"
    else:
        plan = _plan(config)
        agent = train_agent(plan, make_env, folder, show=show)
        if config.keep_agent is not None:
            with replacing(config.keep_agent) as temporary:
                agent.model.save(temporary)
        trained = _in_words(agent, plan)
        if config.recipe == "medium-replay":
            return _replay(agent.model), f"replay buffer of {trained}"
        actor, behaviour = _actor(config, agent.model, env_spec(env)), f"{trained}, {_mode(config)}"
    source = ActorSource(env, actor, config.seed)
    steps = DEFAULT_STEPS if config.steps is None else config.steps
    return record(source, steps=steps, folder=folder, show=show), behaviour


def _replay(model: Any) -> Episodes:
    return from_sb3_buffer(model.replay_buffer)


def _actor(config: CollectConfig, model: Any, spec: Spec) -> Actor:
    agent = SB3Policy(model, deterministic=config.deterministic)
    policy: Policy = agent
    if config.normalizer is not None:
        policy = NormalizedPolicy(agent, read_normalizer(config.normalizer, spec.obs_dim))
    return PolicyActor(policy, agent.reseed)


def _mode(config: CollectConfig) -> str:
    return "deterministic actions" if config.deterministic else "sampled actions"


def _plan(config: CollectConfig) -> TrainingPlan:
    assert config.train is not None, "checked by CollectConfig"
    return TrainingPlan(
        algorithm=config.train,
        seed=config.seed,
        steps=config.train_steps,
        target_return=None if config.recipe == "expert" else _target(config),
        leg=config.eval_every,
        learning_starts=config.learning_starts,
        device=config.device,
    )


def _target(config: CollectConfig) -> float:
    """The return at which an agent counts as medium."""
    if config.target_return is not None:
        return config.target_return
    known = recognise("", config.env).score_range
    if known is None:
        raise InputError(
            f"D4RL has no reference returns for {config.env}; give --target-return, about a third "
            "of what an expert gets"
        )
    return known.minimum + (known.maximum - known.minimum) / 3


def _in_words(agent: TrainedAgent, plan: TrainingPlan) -> str:
    goal = "" if plan.target_return is None else f" (target {plan.target_return:.1f})"
    return (
        f"{plan.algorithm.upper()}, trained for {agent.model.num_timesteps} steps to a mean "
        f"return of {agent.curve[-1][1]:.1f}{goal}"
    )


def _identity(config: CollectConfig) -> Identity:
    """What decides the rows. How long to train may change: it continues the same training."""
    return {
        "env": config.env,
        "recipe": config.recipe,
        "agent": _digest(config.agent),
        "normalizer": _digest(config.normalizer),
        "train": config.train,
        "steps": config.steps,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "learning_starts": config.learning_starts,
        "eval_every": config.eval_every,
    }


def _provenance(config: CollectConfig) -> dict[str, Attribute]:
    facts: dict[str, Attribute] = {
        "recipe": config.recipe,
        "seed": config.seed,
        "simulator": f"gymnasium {version('gymnasium')}, mujoco {version('mujoco')}",
    }
    digests = {"agent": _digest(config.agent), "normalizer": _digest(config.normalizer)}
    return facts | {f"{name}_sha256": digest for name, digest in digests.items() if digest}


def _digest(path: Path | None) -> str | None:
    """Of a file that exists; that one does not is told by whoever opens it."""
    return sha256(path) if path is not None and path.is_file() else None


def _flag(name: str) -> str:
    return name.replace("_", "-")
