"""Windows as the rows that a denoiser sees: standardised columns in named groups.

Dimension letters: N windows, L transitions of a window, O observation, A action, D columns.
Row t holds [state_t, action_t, reward_t, terminal_t]; row L holds the last state alone.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from offdiff.core.types import Spec, Trajectories

ActionMap = Literal["linear", "tanh"]
GROUPS = ("state", "action", "reward", "terminal")
ATANH_LIMIT = 0.999
"""Largest action that is mapped by atanh (PGD's code); 3.8 beyond it."""
MIN_STD = 1e-6
"""Columns that vary less are constants."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Trajectories <-> rows of zero mean and unit variance; nobody else counts columns."""

    spec: Spec
    horizon: int
    """Transitions L of a window; a window has L + 1 rows."""
    action_map: ActionMap
    """linear: actions as they are; tanh: atanh(action), so that no decoded action leaves its box
    (but saturated actions become far outliers)."""
    mean: Tensor
    """(D,)"""
    std: Tensor
    """(D,), 0 for columns that never change: they decode to their mean, whatever is sampled"""

    @classmethod
    def fit(cls, windows: Trajectories, action_map: ActionMap) -> "Codec":
        """Statistics over the real rows of the given windows."""
        device, horizon, spec = windows.obs.device, windows.horizon, windows.spec
        width = spec.obs_dim + spec.action_dim + 2
        raw = cls(
            spec=spec,
            horizon=horizon,
            action_map=action_map,
            mean=torch.zeros(width, device=device),
            std=torch.ones(width, device=device),
        )
        rows = raw.encode(windows)[:, :-1][windows.mask].double()
        mean, std = rows.mean(0), rows.std(0, correction=0)
        std = torch.where(std < MIN_STD, 0.0, std)
        # The terminal column is a bit, -1 or 1: standardised it would be an outlier of 30 or more.
        mean[raw.group("terminal")], std[raw.group("terminal")] = 0.0, 1.0
        return replace(raw, mean=mean.float(), std=std.float())

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Columns of each of GROUPS."""
        return (self.spec.obs_dim, self.spec.action_dim, 1, 1)

    @property
    def columns(self) -> int:
        """Columns D of a row."""
        return sum(self.widths)

    @property
    def slots(self) -> Tensor:
        """(L + 1, D) bool: which entries mean something. The last row has a state alone."""
        slots = torch.ones(
            self.horizon + 1, self.columns, dtype=torch.bool, device=self.mean.device
        )
        slots[-1, self.spec.obs_dim :] = False
        return slots

    def group(self, name: str) -> slice:
        """The columns of a group."""
        i = GROUPS.index(name)
        start = sum(self.widths[:i])
        return slice(start, start + self.widths[i])

    def to(self, device: torch.device | str) -> "Codec":
        """The same codec with its statistics on another device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def encode(self, windows: Trajectories) -> Tensor:
        """(N, L + 1, D) rows; entries outside the slots are 0."""
        action = windows.action
        if self.action_map == "tanh":
            action = action.clamp(-ATANH_LIMIT, ATANH_LIMIT).atanh()
        scalars = torch.stack((windows.reward, 2 * windows.terminal - 1), dim=-1)
        rows = torch.cat((windows.obs[:, :-1], action, scalars), dim=-1)
        final = torch.nn.functional.pad(windows.obs[:, -1:], (0, self.columns - self.spec.obs_dim))
        scale = torch.where(self.std > 0, self.std, 1.0)
        scaled = (torch.cat((rows, final), dim=1) - self.mean) / scale
        return scaled * self.slots

    def decode(self, rows: Tensor) -> Trajectories:
        """(N, L + 1, D) rows -> windows; the mask ends with the first terminal transition."""
        terminal = (rows[:, :-1, self.group("terminal")].squeeze(-1) > 0).float()
        return Trajectories(
            obs=self.states(rows),
            action=self.actions(rows)[0].clamp(-1, 1),
            reward=self._physical(rows, "reward")[:, :-1, 0],
            terminal=terminal,
            mask=terminal.cumsum(1) - terminal == 0,
        )

    def states(self, rows: Tensor) -> Tensor:
        """(N, L + 1, O) observations in the environment's units."""
        return self._physical(rows, "state")

    def actions(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, A) actions, not clipped, and their derivative with respect to the action columns.

        The derivative broadcasts: (A,) for the linear map, (N, L, A) for tanh.
        """
        raw = self._physical(rows, "action")[:, :-1]
        std = self.std[self.group("action")]
        if self.action_map == "linear":
            return raw, std
        action = raw.tanh()
        return action, std * (1 - action.square())

    def alive(self, rows: Tensor) -> Tensor:
        """(N, L) probability that a transition begins before the task has ended.

        Read off the clean estimate of the terminal column, whose value is 2 P(terminal) - 1. The
        terminal state absorbs, so transition t is alive iff t - 1 is not terminal.
        """
        ended = ((rows[:, :-1, self.group("terminal")].squeeze(-1) + 1) / 2).clamp(0, 1)
        return 1 - torch.nn.functional.pad(ended[:, :-1], (1, 0))

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics."""
        return {"mean": self.mean, "std": self.std}

    def _physical(self, rows: Tensor, name: str) -> Tensor:
        columns = self.group(name)
        return rows[..., columns] * self.std[columns] + self.mean[columns]
