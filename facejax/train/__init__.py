"""One trainer for every paper: state and steps, devices, the loop, checkpoints, logs, reports and claims.

The trainer does not depend on any paper. An experiment is a `facejax.train.Experiment`; `app.main` runs it from the
command line and `app.run` from Python.
"""

from facejax._lazy import lazy
from facejax.train import warm_start
from facejax.train.loop import Options, train
from facejax.train.parallel import map_batches
from facejax.train.report import Report, image_grid, new_figure
from facejax.train.state import (
    AXIS,
    Experiment,
    Mean,
    RunError,
    TrainState,
    ema_update,
    reduce_gradients,
    share,
    supervised_step,
    value_and_grad,
)

__all__ = [
    "AXIS",
    "Experiment",
    "Mean",
    "Options",
    "Report",
    "RunError",
    "TrainState",
    "ema_update",
    "image_grid",
    "map_batches",
    "new_figure",
    "reduce_gradients",
    "share",
    "supervised_step",
    "train",
    "value_and_grad",
    "warm_start",
]
__getattr__, __dir__, __all__ = lazy(__name__, __path__, *__all__)
