"""What a fidelity of UNICORN fills in."""

from collections.abc import Callable
from typing import NamedTuple

from gentle_jax.compose import Encoder, Term
from gentle_jax.config import TrainConfig


class Form(NamedTuple):
    """Encoder and decoder, and how contexts are drawn."""

    encoder: Encoder
    prediction: Term  # its parameters are the decoder
    reward: Callable  # (the decoder's parameters, z [Z], rows [N, ...]) -> dense reward [N]
    train: TrainConfig  # of which contexts are drawn
    ordered_context: bool
