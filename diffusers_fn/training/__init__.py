"""Training with optax: state and step, optimizers, averages of the parameters (`averages`), sharding."""

from diffusers_fn.training import averages
from diffusers_fn.training.norms import clip_by_global_norm, global_norm
from diffusers_fn.training.optimizers import make_learning_rate, make_optimizer
from diffusers_fn.training.rules import RULES
from diffusers_fn.training.sharding import make_mesh, place, replicate, shardings, split_batch
from diffusers_fn.training.state import TrainState, make_train_state, make_train_step

__all__ = [
    "RULES",
    "TrainState",
    "averages",
    "clip_by_global_norm",
    "global_norm",
    "make_learning_rate",
    "make_mesh",
    "make_optimizer",
    "make_train_state",
    "make_train_step",
    "place",
    "replicate",
    "shardings",
    "split_batch",
]


def __dir__() -> list[str]:
    return __all__
