"""Acting by plans: remembers the episode, asks for a plan when it is time, follows it.

Dimension letters: B environments, C remembered steps, H imagined observations, K actions,
O observation, A action.
"""

import time
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from offdiff.core.planning import Follower, Pins, Plan, Planner, Situation, check_plan
from offdiff.core.types import Spec


class Pinning(Protocol):
    """Decides parts of plans beforehand, from (B, O) present observations."""

    def __call__(self, obs: Tensor, /) -> Pins:
        """Pins for plans that begin at these observations."""
        ...


@dataclass
class _Memory:
    """The running episodes; every field has the environments as its first dimension."""

    history: Tensor
    actions: Tensor
    wanted: Tensor
    remembered: Tensor
    time: Tensor
    action: Tensor
    """(B, A) the last one taken"""
    reward: Tensor
    """(B,) what it brought"""
    queue: Tensor
    """(B, K, A) planned actions, the next one first"""
    left: Tensor
    """(B,) int64, steps until a new plan is due"""
    imagined: Tensor | None = None
    """(B, H, O) of the last plans"""
    age: Tensor | None = None
    """(B,) int64 steps since they were made; negative: of another episode"""


class PlannerPolicy:
    """A planner as a `Policy`: (B, O) observations in, (B, A) actions in [-1, 1] out.

    It has a memory per environment: `reset` says which began an episode, `observe` what reward
    the last action brought (plans that do not depend on returns can do without).
    """

    def __init__(
        self,
        planner: Planner,
        spec: Spec,
        *,
        name: str,
        history: int,
        replan_every: int,
        open_loop: bool,
        wanted: float,
        stride: int,
        device: torch.device,
        seed: int,
        pinning: Pinning | None = None,
    ) -> None:
        """wanted: return of an episode to begin with. seed: of everything random in plans."""
        self.planner, self.spec, self.name = planner, spec, name
        self.history, self.replan_every, self.wanted = history, replan_every, wanted
        self.open_loop = open_loop or not isinstance(planner, Follower)
        self.stride, self.device, self.seed, self.pinning = stride, device, seed, pinning
        self.last_plan: Plan | None = None
        """Of the environments that were planned for in the last step, for those who look at it"""
        self.decisions, self.seconds, self.calls = 0, 0.0, 0
        self._memory: _Memory | None = None
        self._fresh = torch.zeros(0, dtype=torch.bool, device=device)
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Forgets everything and draws from the seed: what follows depends on nothing before."""
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._memory = None
        self.decisions, self.seconds, self.calls = 0, 0.0, 0

    def reset(self, which: Tensor, /) -> None:
        """which: (B,) bool, the environments that began a new episode."""
        if self._memory is None or len(self._memory.time) != len(which):
            self._memory = self._empty(len(which))
        m = self._memory
        # Made anew, not overwritten: a planner may have kept what it was told.
        for name in ("history", "actions", "remembered", "time", "action", "reward", "left"):
            value = getattr(m, name)
            blank = which.view(-1, *[1] * (value.ndim - 1))
            setattr(m, name, torch.where(blank, torch.zeros_like(value), value))
        m.wanted = torch.where(which[:, None], self.wanted, m.wanted)
        if m.age is not None:
            m.age[which] = -1

    def observe(self, reward: Tensor, /) -> None:
        """reward: (B,) of the last actions."""
        assert self._memory is not None
        self._memory.reward = reward

    @torch.no_grad()
    def act(self, obs: Tensor, /) -> Tensor:
        """(B, O) -> (B, A) in [-1, 1]; plans where the last plan is used up."""
        if self._memory is None or len(self._memory.time) != len(obs):
            self.reset(torch.ones(len(obs), dtype=torch.bool, device=self.device))
        assert self._memory is not None
        m = self._memory
        self._remember(m, obs)
        due = m.left == 0
        if due.any():
            self._plan(m, obs, due)
        action = m.queue[:, 0]
        if not (self.open_loop or due.all()):
            action = torch.where(due[:, None], action, self._follow(m, obs))
        action = action.clamp(-1, 1)
        m.action = action
        m.queue = torch.roll(m.queue, -1, dims=1)
        m.left = m.left - 1
        m.time = m.time + 1
        if m.age is not None:
            m.age += m.age >= 0
        return action

    def _remember(self, m: _Memory, obs: Tensor) -> None:
        """Moves the past one step back and puts the present behind it."""
        began = (m.time == 0)[:, None]
        wanted = m.wanted[:, -1:] - m.reward[:, None]
        m.history = torch.cat((m.history[:, 1:], obs[:, None]), dim=1)
        # The action after the present is not known yet: one row of zeros at the end.
        taken = torch.cat((m.actions[:, :-1], m.action[:, None], m.actions[:, -1:]), dim=1)
        m.actions = taken[:, 1:]
        m.wanted = torch.cat((m.wanted[:, 1:] * ~began, wanted), dim=1)
        m.remembered = torch.cat((m.remembered[:, 1:], torch.ones_like(began)), dim=1)

    def _plan(self, m: _Memory, obs: Tensor, due: Tensor) -> None:
        situation = self.situation(m, obs)
        every = bool(due.all())
        if not every:
            situation = situation.rows(due)
        started = time.perf_counter()
        plan = self.planner.plan(situation, generator=self._generator)
        check_plan(plan, situation, self.spec, self.name)  # waits for the device
        self.seconds += time.perf_counter() - started
        self.decisions += len(situation)
        self.calls += plan.calls * len(situation)
        self.last_plan = plan
        count = min(self.replan_every, plan.action.shape[1])
        follows = not self.open_loop and plan.obs is not None
        if m.queue.shape[1] < count:
            m.queue = torch.nn.functional.pad(m.queue, (0, 0, 0, count - m.queue.shape[1]))
        m.queue[due, :count] = plan.action[:, :count]
        m.left[due] = self.replan_every if follows else count
        if plan.obs is not None:
            if m.imagined is None or m.age is None:
                m.imagined = plan.obs.new_zeros(len(obs), *plan.obs.shape[1:])
                m.age = torch.full_like(m.time, -1)
            m.imagined[due] = plan.obs
            m.age[due] = 0

    def situation(self, m: _Memory, obs: Tensor) -> Situation:
        """All environments, as the planner is told of them."""
        now = Situation(
            obs=obs,
            history=m.history,
            actions=m.actions,
            wanted=m.wanted,
            remembered=m.remembered,
            time=m.time,
            pins=self.pinning(obs) if self.pinning else None,
        )
        if m.imagined is None or m.age is None:
            return now
        return replace(now, previous=self._ahead(m.imagined, m.age), follows=m.age >= 0)

    def _ahead(self, imagined: Tensor, age: Tensor) -> Tensor:
        """(B, H, O) the plans from now on: between two rows on a line, past the end the last."""
        last = imagined.shape[1] - 1
        rows = torch.arange(last + 1, device=age.device) + (age.clamp(min=0) / self.stride)[:, None]
        rows = rows.clamp(max=last)
        low = rows.floor().long()
        before, after = (
            torch.take_along_dim(imagined, row[..., None], dim=1)
            for row in (low, (low + 1).clamp(max=last))
        )
        return torch.lerp(before, after, (rows - low)[..., None])

    def _follow(self, m: _Memory, obs: Tensor) -> Tensor:
        assert isinstance(self.planner, Follower)
        assert m.imagined is not None
        assert m.age is not None
        return self.planner.follow(obs, self._ahead(m.imagined, m.age))

    def _empty(self, n: int) -> _Memory:
        steps, spec, device = self.history, self.spec, self.device
        whole = torch.zeros(n, dtype=torch.int64, device=device)
        return _Memory(
            history=torch.zeros(n, steps, spec.obs_dim, device=device),
            actions=torch.zeros(n, steps, spec.action_dim, device=device),
            wanted=torch.zeros(n, steps, device=device),
            remembered=torch.zeros(n, steps, dtype=torch.bool, device=device),
            time=whole,
            action=torch.zeros(n, spec.action_dim, device=device),
            reward=torch.zeros(n, device=device),
            queue=torch.zeros(n, 1, spec.action_dim, device=device),
            left=whole.clone(),
        )
