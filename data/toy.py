"""Generated tasks whose truth is known in closed form, for tests and demonstrations."""

import numpy as np

from offdiff.data.episodes import Episodes

TOY_NOISE = 0.03
"""Standard deviation of the dynamics' noise of `linear_gaussian`."""


def linear_gaussian(
    episodes: int = 200, steps: int = 20, *, terminal_share: float = 0.0, seed: int = 0
) -> Episodes:
    """Episodes of s' = 0.9 s + 0.5 a + 0.03 noise under a = clip(0.4 noise - 0.3 s), r = s + a.

    Observation and action are one number each. terminal_share: of the episodes, those that end
    with a terminal instead of running out of time.
    """
    rng = np.random.default_rng(seed)
    s = 0.3 * rng.normal(size=(episodes, 1))
    rows = []
    for _ in range(steps):
        a = np.clip(0.4 * rng.normal(size=s.shape) - 0.3 * s, -1, 1)
        following = 0.9 * s + 0.5 * a + TOY_NOISE * rng.normal(size=s.shape)
        rows.append((s, a, following))
        s = following
    obs, action, next_obs = (
        np.stack(part, 1).reshape(-1, 1).astype(np.float32) for part in zip(*rows, strict=True)
    )
    ends = np.zeros((episodes, steps), bool)
    ends[:, -1] = True
    terminates = np.arange(episodes) < terminal_share * episodes
    terminal = ends & terminates[:, None]
    return Episodes(
        obs=obs,
        action=action,
        reward=(obs + action)[:, 0],
        next_obs=next_obs,
        terminal=terminal.reshape(-1),
        truncated=(ends & ~terminal).reshape(-1),
        successor_known=np.ones(episodes * steps, bool),
    )
