"""Networks and their training.

Everything here is a pytree of arrays and independent of codes and actions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

Schedule = Literal["constant", "cosine"]
Precision = Literal["float32", "bfloat16"]
Metrics = dict[str, Float[Array, ""]]
Model = TypeVar("Model")
Extra = TypeVar("Extra")
Batch = TypeVar("Batch", contravariant=True)


# The smallest normal number of float32.
LEAST = 2.0**-126


class MLP(eqx.Module):
    """A ReLU network: linear layers, optionally normalised before each activation.

    Only arrays are leaves (no activation function), so states can be mapped, donated and saved.
    Works on any leading axes.
    """

    weights: tuple[Float[Array, "inputs outputs"], ...]
    biases: tuple[Float[Array, " outputs"], ...]
    norm_scales: tuple[Float[Array, " hidden"], ...]
    norm_offsets: tuple[Float[Array, " hidden"], ...]

    def __init__(
        self,
        key: Key[Array, ""],
        inputs: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        layer_norm: bool = False,
    ):
        """Weights uniform in +-1/sqrt(inputs) times sqrt(3) (variance 1/inputs), biases zero."""
        widths = (inputs, *hidden, outputs)
        keys = jax.random.split(key, len(widths) - 1)
        initializer = jax.nn.initializers.lecun_uniform()
        self.weights = tuple(
            initializer(layer_key, (fan_in, fan_out))
            for layer_key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
        )
        self.biases = tuple(jnp.zeros(width) for width in widths[1:])
        self.norm_scales = tuple(jnp.ones(width) for width in hidden) if layer_norm else ()
        self.norm_offsets = tuple(jnp.zeros(width) for width in hidden) if layer_norm else ()

    def __call__(self, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        signal = inputs
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            signal = multiply(signal, weight) + bias
            if layer < last:
                if self.norm_scales:
                    signal = normalize(signal)
                    signal = signal * self.norm_scales[layer] + self.norm_offsets[layer]
                signal = jax.nn.relu(signal)
        return signal


class Ensemble(eqx.Module):
    """Independent networks of one shape, such as critics."""

    heads: tuple[Any, ...]
    deviations: float | None = eqx.field(static=True, default=None)
    """Standard deviations that `pessimistic` subtracts from the mean; None: it is the minimum."""

    def __call__(
        self, inputs: Float[Array, "*batch inputs"]
    ) -> Float[Array, "heads *batch outputs"]:
        return jnp.stack([head(inputs) for head in self.heads])

    def pessimistic(self, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The heads' minimum, or their mean minus `deviations` standard deviations."""
        return self.believed(self(inputs))

    def believed(self, values: Float[Array, "heads *rest"]) -> Float[Array, "*rest"]:
        """Min over the heads (clipped double Q: Fujimoto et al. 2018, arXiv 1802.09477).

        With `deviations` c the mean minus c standard deviations over the heads (of the population;
        An et al. 2021, arXiv 2110.01548, section 3, for the two views of pessimism).
        """
        if self.deviations is None:
            return values.min(0)
        return values.mean(0) - self.deviations * values.std(0)


def log_mixture(logits: Float[Array, "members choices"]) -> Float[Array, " choices"]:
    """Log of the mean of softmax over the members, at least log(LEAST)."""
    mean = jax.nn.softmax(logits).mean(0)
    return jnp.log(jnp.maximum(mean, LEAST))


def multiply(
    inputs: Float[Array, "*batch inputs"], weight: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """Inputs @ weight; within `jax.default_matmul_precision("bfloat16")` in that precision.

    XLA's CPU backend ignores the setting, so the operands are rounded here.
    """
    if jax.config.jax_default_matmul_precision == "bfloat16":  # type: ignore[attr-defined]
        return _rounded_product(inputs, weight)
    return inputs @ weight


@jax.custom_vjp
def _rounded_product(
    inputs: Float[Array, "*batch inputs"], weight: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """Inputs @ weight of operands rounded to bfloat16, summed in float32."""
    return _forward_product(inputs, weight)[0]


def _forward_product(inputs: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    rounded = inputs.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    return jnp.matmul(*rounded, preferred_element_type=jnp.float32), rounded


def _backward_product(rounded: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Both products of the chain rule: rounded operands, results not rounded."""
    inputs, weight = rounded
    gradient = gradient.astype(jnp.bfloat16)
    leading = tuple(range(inputs.ndim - 1))
    of_inputs = jax.lax.dot_general(
        gradient, weight, (((inputs.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    of_weight = jax.lax.dot_general(
        inputs, gradient, ((leading, leading), ((), ())), preferred_element_type=jnp.float32
    )
    return of_inputs, of_weight


_rounded_product.defvjp(_forward_product, _backward_product)


def normalize(signal: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Zero mean and unit variance over the last axis (Ba et al. 2016, arXiv 1607.06450, eq. 4)."""
    centred = signal - signal.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5)


class Algorithm(Protocol[Batch]):
    """Hashable hyperparameters with pure methods, which the engine can train."""

    steps: int
    batch_size: int
    precision: Precision

    def init(self, key: Key[Array, ""], example: Batch) -> Any:
        """State before the first step; `example` is a sample of the data."""
        ...

    def update(self, state: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Any, Metrics]:
        """One gradient step: (state, metrics)."""
        ...


@dataclass(frozen=True)
class Training:
    """Training settings that every algorithm inherits."""

    steps: int = 20_000
    """Gradient steps; a cosine schedule reaches 0 at the last one."""
    batch_size: int = 256
    """Transitions in a batch."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    layer_norm: bool = False
    """Normalise before each activation."""
    learning_rate: float = 1e-3
    """Learning rate of Adam at the first step."""
    schedule: Schedule = "cosine"
    """How the learning rate changes: constant, or cosine to 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    precision: Precision = "float32"
    """Precision of the matrix products in a training step; parameters and policy stay float32."""

    def network(self, key: Key[Array, ""], inputs: int, outputs: int) -> MLP:
        """A network of these widths."""
        return MLP(key, inputs, self.hidden, outputs, layer_norm=self.layer_norm)

    def ensemble(self, key: Key[Array, ""], inputs: int, outputs: int, *, count: int) -> Ensemble:
        """`count` networks of these widths, of which the lowest value is used."""
        keys = jax.random.split(key, count)
        return Ensemble(tuple(self.network(head_key, inputs, outputs) for head_key in keys))

    def optimiser(self) -> optax.GradientTransformation:
        """Adam, with decoupled weight decay if `weight_decay` is not 0."""
        rate: float | optax.Schedule = self.learning_rate
        if self.schedule == "cosine":
            rate = optax.cosine_decay_schedule(self.learning_rate, max(self.steps, 1))
        if self.weight_decay:
            return optax.adamw(rate, weight_decay=self.weight_decay)
        return optax.adam(rate)


@dataclass(frozen=True)
class CriticTraining(Training):
    """Additional settings of every algorithm that learns values."""

    learning_rate: float = 3e-4
    schedule: Schedule = "constant"
    layer_norm: bool = True
    """Normalise before each activation of Q and V, and of a policy on codes."""
    critics: int = 2
    """Number of Q networks; targets, values and policies use their minimum."""
    discount: float = 0.99
    """Discount per environment step."""
    chunk_discount: float | None = None
    """Discount per decision; default: discount to the power of its steps."""
    target_rate: float = 0.005
    """Polyak rate of each target update: target += rate (online - target); 1 copies."""


def require_positive(**values: float) -> None:
    """ValueError for the first of the agent's fields that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"agent.{name.replace('_', '-')} is {value}; it must be above 0")


def expectile_loss(
    advantage: Float[Array, "*batch"], *, expectile: float
) -> Float[Array, "*batch"]:
    """|tau - 1(u < 0)| u^2, tau the expectile: least squares at 0.5, towards 1 the maximum.

    Source: Kostrikov et al. 2021 (arXiv 2110.06169), eq. 5.
    """
    return jnp.abs(expectile - (advantage < 0)) * jnp.square(advantage)


def bellman_error(
    q: Float[Array, "heads batch"], targets: Float[Array, "*heads batch"]
) -> Float[Array, ""]:
    """Mean squared error of each head against its own or common targets, summed over heads."""
    return jnp.square(q - targets).mean(-1).sum()


class TrainState(eqx.Module, Generic[Model]):
    """A model with its optimiser's moments."""

    model: Model
    moments: optax.OptState


def init_state(model: Model, optimiser: optax.GradientTransformation) -> TrainState[Model]:
    """The state before the first gradient step."""
    return TrainState(model, optimiser.init(model))


def gradient_step(
    state: TrainState[Model],
    optimiser: optax.GradientTransformation,
    loss: Callable[[Model], tuple[Float[Array, ""], Extra]],
) -> tuple[TrainState[Model], Extra]:
    """One step down the gradient of `loss(model) -> (value, what else to return)`."""
    gradient, extra = jax.grad(loss, has_aux=True)(state.model)
    updates, moments = optimiser.update(gradient, state.moments, state.model)
    return TrainState(optax.apply_updates(state.model, updates), moments), extra


def polyak_update(target: Model, online: Model, *, rate: float | Float[Array, ""]) -> Model:
    """(1 - rate) target + rate online, leaf by leaf; rate 1 copies."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)
