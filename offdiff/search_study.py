"""Trials kept by Optuna: a journal of finished ones, and the next one to try.

The only importer of optuna. A journal holds finished trials alone, so that a search that was killed
at any moment goes on as if it had not been.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.search_space import Parameter, Value

JOURNAL = "journal.log"
"""Optuna's storage of the finished trials: `optuna-dashboard` reads it."""


class Trials:
    """The finished trials of one search, on disk."""

    def __init__(self, folder: Path, protocol: Mapping[str, Any]) -> None:
        """protocol: what decides which trials there are.

        Raises InputError if the folder holds trials of another one, MissingExtraError without the
        extra `search`.
        """
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("offdiff search", "search") from error
        # It would say of every trial what the progress bar shows.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        backend = self._optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        self._study: Any = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=folder.name,
            direction="maximize",
            load_if_exists=True,
        )
        kept = self._study.user_attrs.get("protocol")
        if kept is None:
            self._study.set_user_attr("protocol", dict(protocol))
        elif kept != json.loads(json.dumps(protocol)):
            old, new = _flat(kept), _flat(protocol)
            differing = [name for name, value in new.items() if old.get(name) != value]
            raise InputError(
                f"{folder} holds a search with other {', '.join(differing) or 'settings'}; "
                "repeat its options, or give another --name"
            )

    def finished(self) -> list[dict[str, Any]]:
        """What was kept of every trial, in order."""
        return [one.user_attrs["trial"] for one in self._study.get_trials(deepcopy=False)]

    def propose(self, space: Sequence[Parameter], seed: int, number: int) -> dict[str, Value]:
        """The values of the next trial: they depend on its number and the finished ones alone."""
        digest = hashlib.sha256(f"{seed} trial {number}".encode()).digest()
        sampler = self._optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"))
        # Asked in memory: a trial asked for and killed would stay in the journal as running.
        apart = self._optuna.create_study(direction="maximize", sampler=sampler)
        apart.add_trials(self._study.get_trials(deepcopy=False))
        asked = apart.ask(self._distributions(space))
        return {parameter.name: asked.params[parameter.name] for parameter in space}

    def keep(
        self,
        space: Sequence[Parameter],
        values: Mapping[str, Value],
        score: float | None,
        trial: Mapping[str, Any],
    ) -> None:
        """Stores a finished trial: one line of the journal. score: None if it diverged."""
        states = self._optuna.trial.TrialState
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=states.FAIL if score is None else states.COMPLETE,
                value=score,
                params=dict(values),
                distributions=self._distributions(space),
                user_attrs={"trial": dict(trial)},
            )
        )

    def _distributions(self, space: Sequence[Parameter]) -> dict[str, Any]:
        kinds = self._optuna.distributions
        found: dict[str, Any] = {}
        for parameter in space:
            if parameter.choices:
                found[parameter.name] = kinds.CategoricalDistribution(parameter.choices)
            else:
                kind = kinds.IntDistribution if parameter.whole else kinds.FloatDistribution
                found[parameter.name] = kind(parameter.low, parameter.high, log=parameter.log)
        return found


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    inner = values["identity"]
    flat = {**values, **inner, **inner["hyperparameters"], "identity": 0, "hyperparameters": 0}
    return dict(json.loads(json.dumps(flat)))
