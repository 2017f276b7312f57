"""Representations composed of terms: what `optax.chain` is to optimisers.

    encoder   turns a context into z, and a belief into z at test time
    term      one published loss, with what it owns
    representation(encoder, terms)   joins them into what an algorithm needs

One update of a representation, on one meta batch:

    own of each term      = term.before(own)            networks of its own take their steps
    loss                  = sum of term.loss            all with the parameters before the step
    parameters            = one Adam step on the loss   encoder and terms alike
    parameters, own       = term.after(...)             moves without a gradient

Axes: T tasks, C context transitions, Z latent. Names of terms are the names of their parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from gentle_jax import data as data_lib
from gentle_jax.config import TrainConfig
from gentle_jax.learner import Trained
from gentle_jax.types import (
    Belief,
    Dataset,
    Index,
    MetaBatch,
    Metrics,
    RandomKey,
    Representation,
    Section,
    Traits,
    Transition,
    pytree,
)

Params = dict[str, PyTree]
EncodeSet = Callable[
    [Params, Transition, Int[Array, " T"], RandomKey],
    tuple[Float[Array, "T C Z"] | None, Float[Array, "T Z"]],
]
Extend = Callable[[Params, Belief, Transition, Float[Array, " C"]], Belief]


class Encoder(NamedTuple):
    """A context encoder. `params` is {name: parameters} of everything that is trained."""

    init: Callable[[RandomKey], Params]  # {part: parameters}
    encode: EncodeSet  # (params, context, task_id, key) -> (row_codes, None where single
    #                     transitions have no codes; z)
    prior: Callable[[Params], Belief]
    extend: Extend  # (params, belief, leaves [C, ...], mask)
    sample: Callable[[Params, Belief, RandomKey], Float[Array, " Z"]]


class Seen(NamedTuple):
    """What a term may look at."""

    row_codes: Float[Array, "T C Z"] | None  # of each context transition
    z: Float[Array, "T Z"]
    batch: MetaBatch
    dz: Float[Array, "G Z"]  # gradient of the critics' loss in z
    encode: Callable  # (Transition [T, C, ...], task_id [T], key) -> (row_codes, z), with `params`
    params: Params  # name -> parameters; inside of `loss` those that it is differentiated in
    own: dict  # name -> what each term owns
    aux: dict  # name -> what a term's loss returned beside its value: of the terms before one in
    #            its loss, of all terms in `after`
    data: Dataset  # training tasks first
    index: Index  # step within the stage


Own = PyTree
Loss = Callable[[PyTree, Own, Section, Seen, RandomKey], Any]
InitTerm = Callable[[RandomKey, Dataset], tuple[PyTree, Own]]
Before = Callable[[Own, Section, Seen, RandomKey], tuple[Own, Metrics]]
After = Callable[[PyTree, Own, Section, Seen, RandomKey], tuple[PyTree, Own]]


class Term(NamedTuple):
    """One term of a representation's loss, and what belongs to it.

    `params` are trained with the encoder; `own` is any other state, which gradients never reach.
    """

    loss: Loss | None  # (params, own, hp, seen, key) -> scalar, or (scalar, aux); None: no loss
    init: InitTerm = lambda key, data: ({}, {})  # -> (params, own)
    before: Before | None = None  # (own, hp, seen, key) -> (own, metrics)
    after: After | None = None  # (params, own, hp, seen, key) -> (params, own); `seen` is that
    #                             before the step, `params` are those after it


@pytree
class RepState:
    """Leaves of one run's representation."""

    trained: dict  # name of an encoder's part, or of a term with parameters -> Trained
    own: dict  # name of a term -> what is not trained with the encoder

    @property
    def params(self) -> dict[str, PyTree]:
        """Returns {name: parameters}."""
        return {name: trained.params for name, trained in self.trained.items()}


def representation(
    encoder: Encoder,
    terms: dict[str, Term],
    train: TrainConfig,
    active: Iterable[str] | None = None,
    frozen: Iterable[str] = (),
    rates: dict[str, str] | None = None,
    **fields: Any,
) -> Representation:
    """Returns the Representation whose encoder descends the sum of terms, {name: Term}.

    Args: active, names of the terms in use (default: all), so that stages can
    share one state; frozen, parts of the encoder that do not learn; rates, {name of a part or
    term: name of the setting that multiplies its learning rate}; fields, those of a Representation
    to replace.
    """
    used = dict(terms) if active is None else {name: terms[name] for name in active}
    bundle = Representation(
        init=_init(encoder, terms, rates or {}),
        context=lambda state, data, task_id, key: data_lib.context_of(data, task_id, train, key),
        update=_update(encoder, used, {*terms, *frozen} - {*used}, rates or {}),
        prior=lambda state: encoder.prior(state.params),
        extend=lambda state, *args: encoder.extend(state.params, *args),
        sample=lambda state, *args: encoder.sample(state.params, *args),
        describe=lambda state, z: {},
        encode=lambda state, *args: encoder.encode(state.params, *args)[1],
        traits=Traits(),
    )
    return bundle._replace(**fields)


def _init(encoder, terms, rates):
    """Returns `init` of a Representation."""

    def init(hp, key, data):
        del hp
        k_encoder, *keys = jax.random.split(key, 1 + len(terms))
        parts = encoder.init(k_encoder)
        if both := parts.keys() & terms.keys():
            raise ValueError(f"an encoder's part and a term share a name: {sorted(both)}")
        begun = {name: t.init(k, data) for (name, t), k in zip(terms.items(), keys, strict=True)}
        params = parts | {name: p for name, (p, _) in begun.items()}
        if lost := rates.keys() - params.keys():
            raise ValueError(f"rates of what is neither a part nor a term: {sorted(lost)}")
        trained = {name: Trained.of(p) for name, p in params.items() if jax.tree.leaves(p)}
        return RepState(trained, {name: own for name, (_, own) in begun.items()})

    return init


def _update(encoder, used, fixed, rates):
    """Returns `update` of a Representation. Args: used, {name: Term}; fixed, names not to train."""
    rate = lambda name, hp: hp["lr"] * hp[rates[name]] if name in rates else hp["lr"]

    def update(state, hp, batch, dz, data, key, index):
        keys = _keys(used, key)
        others = (batch, dz, data, index)
        seen = _see(encoder, state.params, state.own, *others)
        own, metrics = dict(state.own), {}
        for name in _with(used, "before"):
            own[name], new_metrics = used[name].before(own[name], hp, seen, keys[name][0])
            metrics |= new_metrics
        seen = seen._replace(own=dict(own))
        learning = [name for name in state.trained if name not in fixed]

        def loss(params):
            now = _see(encoder, state.params | params, seen.own, *others)
            values, aux = {}, {}
            for name in _with(used, "loss"):
                leaves = now.params.get(name, {}), now.own[name]
                result = used[name].loss(*leaves, hp, now._replace(aux=dict(aux)), keys[name][1])
                values[name], aux[name] = result if isinstance(result, tuple) else (result, None)
            return sum(values.values(), jnp.zeros(())), (values, aux)

        grads, (values, aux) = jax.grad(loss, has_aux=True)({n: state.params[n] for n in learning})
        trained = dict(state.trained)
        for name in learning:
            trained[name] = trained[name].step(grads[name], rate(name, hp))
        seen = seen._replace(aux=aux)
        for name in _with(used, "after"):
            leaves = trained[name].params if name in trained else {}, own[name]
            params, own[name] = used[name].after(*leaves, hp, seen, keys[name][2])
            if name in trained:
                trained[name] = trained[name].replace(params=params)
        return RepState(trained, own), metrics | {f"{n}_loss": v for n, v in values.items()}

    return update


def _with(terms, hook):
    """Returns the names of the terms that have a hook."""
    return [name for name, term in terms.items() if getattr(term, hook) is not None]


def _keys(terms, key):
    """Returns {name: three keys}, one for each hook of each term."""
    return dict(zip(terms, jax.random.split(key, (len(terms), 3)), strict=True))


def _see(encoder, params, own, batch, dz, data, index):
    """Returns the Seen of some parameters."""
    encode = lambda *args: encoder.encode(params, *args)
    row_codes, z = encode(batch.context, batch.task_id, batch.z_key)
    return Seen(row_codes, z, batch, dz, encode, params, own, {}, data, index)
