"""How a search proposes settings, and when it ends a trial early; Optuna is imported when one is made.

A sampler is made anew for each trial from (seed, trial number): what it proposes follows from these and from
the trials that are finished, not from the process that asks or from how often it was started.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from striate.core.errors import StriateError
from striate.core.registry import Registry
from striate.train.space import Space

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Asked:
    """What a sampler is made for: `seed` is that of the trial, `study_seed` that of the study.

    taken: the coded values of every trial so far that need not be made again.
    """

    seed: int
    study_seed: int
    space: Space
    taken: Collection[Mapping[str, Any]] = ()


SAMPLERS: Registry[Callable[[Asked], BaseSampler | None]] = Registry("sampler", "striate.train")
PRUNERS: Registry[Callable[[int], BasePruner]] = Registry("pruner", "striate.train")


def optuna() -> Any:
    """The package, quiet.

    Raises:
        StriateError: it is not installed.
    """
    try:
        import optuna as package
    except ImportError as error:
        raise StriateError(
            "a search needs Optuna, which is not installed", hint="pip install 'striate[search]'"
        ) from error
    package.logging.set_verbosity(package.logging.ERROR)
    warnings.filterwarnings("ignore", category=package.exceptions.ExperimentalWarning)
    return package


@SAMPLERS.register("random")
def random(asked: Asked) -> BaseSampler | None:
    """Independent draws (Bergstra and Bengio 2012, JMLR 13): the same whatever the other trials gave."""
    return optuna().samplers.RandomSampler(seed=asked.seed)  # type: ignore[no-any-return]


@SAMPLERS.register("tpe")
def tpe(asked: Asked) -> BaseSampler | None:
    """Tree-structured Parzen estimators (Bergstra et al. 2011, NeurIPS), all settings together.

    The first ten trials are random. Trials that run at the same time count as poor ones, so that workers do
    not all go to the same place (Watanabe 2023, arXiv:2304.11127, section 3).
    """
    return optuna().samplers.TPESampler(  # type: ignore[no-any-return]
        seed=asked.seed, multivariate=True, constant_liar=True
    )


@SAMPLERS.register("gp")
def gp(asked: Asked) -> BaseSampler | None:
    """A Gaussian process (Matern 5/2) with log expected improvement (Ament et al. 2023, arXiv:2310.20708).

    The first ten trials are random. For a few dozen trials and few settings. Trials that failed or were
    ended early tell it nothing.
    """
    return optuna().samplers.GPSampler(seed=asked.seed)  # type: ignore[no-any-return]


@SAMPLERS.register("grid", finite=True)
def grid(asked: Asked) -> BaseSampler | None:
    """Every combination once, in an order drawn from the study's seed; None when all are taken."""
    import numpy as np

    samplers = optuna().samplers
    names, count = asked.space.names, asked.space.combinations()
    taken = {tuple(values[name] for name in names) for values in asked.taken}
    for number in np.random.default_rng(asked.study_seed).permutation(count):
        values = asked.space.combination(int(number))
        if tuple(values.values()) not in taken:
            return samplers.PartialFixedSampler(  # type: ignore[no-any-return]
                values, samplers.RandomSampler(seed=asked.seed)
            )
    return None


@PRUNERS.register("none")
def none(epochs: int) -> BasePruner:
    """Every trial runs to its end."""
    return optuna().pruners.NopPruner()  # type: ignore[no-any-return]


@PRUNERS.register("median")
def median(epochs: int) -> BasePruner:
    """Ends a trial whose best score so far is below the median of finished trials at the same epoch.

    (Golovin et al. 2017, "Google Vizier", section 3.1.) Not among the first five trials, nor in the first
    quarter of the epochs.
    """
    return optuna().pruners.MedianPruner(  # type: ignore[no-any-return]
        n_startup_trials=5, n_warmup_steps=max(1, epochs // 4)
    )


@PRUNERS.register("hyperband")
def hyperband(epochs: int) -> BasePruner:
    """Successive halving by thirds, from several smallest numbers of epochs (Li et al. 2018, JMLR 18)."""
    return optuna().pruners.HyperbandPruner(  # type: ignore[no-any-return]
        min_resource=1, max_resource=max(1, epochs), reduction_factor=3
    )
