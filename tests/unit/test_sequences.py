"""Every encoder of histories against its formula, written apart in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import Weights, mlp, weights_of

from recmtl.config import SequenceConfig
from recmtl.errors import UserError
from recmtl.models.sequences import ENCODERS, History, SequenceEncoder, check_histories, encoder_class
from recmtl.models.sequences.positions import CLASSES, distance_classes
from recmtl.schema import Feature

B, L = 5, 9
LENGTHS = (0, 1, 9, 4, 7)
HISTORY = History(
    "before",
    tuple(Feature(name, kind="sequence", history="before", target=target) for name, target in (("a", "x"), ("b", ""))),
    target_width=3,
    embedding_width=5,
    matches=1,
)
CASES = [
    ("mean", 1),
    ("target_attention", 1),
    *((name, layers) for name in ("transformer", "hstu") for layers in (1, 3)),
]


def config_of(encoder: str, layers: int = 1, **keys: Any) -> SequenceConfig:
    return SequenceConfig(encoder=encoder, layers=layers, dim=8, heads=2, hidden=(6, 4), **keys)


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Items, what follows the events of a row being no numbers of meaning; targets; lengths."""
    rng = np.random.default_rng(seed)
    items, target = rng.normal(size=(B, L, HISTORY.width)), rng.normal(size=(B, HISTORY.target_width))
    return torch.from_numpy(items), torch.from_numpy(target), torch.tensor(LENGTHS)


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normed(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    deviations = x - x.mean(-1, keepdims=True)
    variance = (deviations**2).mean(-1, keepdims=True)
    return deviations / np.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def distance_class(distance: int) -> int:
    return sum(distance >= bound for bound in [*range(1, 16), *(round(16 * 2 ** (step / 2)) for step in range(17))])


def mean(w: Weights, events: np.ndarray, q: np.ndarray, layers: int) -> np.ndarray:
    return sum(events, np.zeros(HISTORY.width)) / max(len(events), 1)


def target_attention(w: Weights, events: np.ndarray, q: np.ndarray, layers: int) -> np.ndarray:
    u = np.zeros(HISTORY.width)
    for h in events:
        g = h[:3]
        u += mlp(w, "mlps", 0, np.concatenate([h, q, g - q, g * q])[None], last_is_linear=True)[0, 0] * h
    return u


def places(w: Weights, events: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The events and, last, the target, projected."""
    target = np.concatenate([q, np.zeros(2), np.ones(1)])
    return linear(w, "project", np.concatenate([events, target[None]]))


def transformer(w: Weights, events: np.ndarray, q: np.ndarray, layers: int) -> np.ndarray:
    n = len(events)
    x = places(w, events, q) + np.stack([w["positions"][distance_class(n - i)] for i in range(n + 1)])
    for layer in range(layers):
        name = f"blocks.{layer}"
        query, both = linear(w, f"{name}.query", x), linear(w, f"{name}.key_value", x)
        key, value = both[:, :8], both[:, 8:]
        attended = np.zeros_like(x)
        for i in range(n + 1):
            for head in (slice(0, 4), slice(4, 8)):
                scores = np.exp(key[: i + 1, head] @ query[i, head] / 2)
                attended[i, head] = scores / scores.sum() @ value[: i + 1, head]
        s = normed(w, f"{name}.attention_norm", x + linear(w, f"{name}.output", attended))
        wide = linear(w, f"{name}.widen", s)
        x = normed(w, f"{name}.norm", s + linear(w, f"{name}.narrow", np.where(wide > 0, wide, 0.01 * wide)))
    return x[n]


def hstu(w: Weights, events: np.ndarray, q: np.ndarray, layers: int) -> np.ndarray:
    x = places(w, events, q)
    for layer in range(layers):
        name = f"blocks.{layer}"
        y = normed(w, f"{name}.norm", x)
        gate, query = np.split(silu(linear(w, f"{name}.gate_query", y)), 2, axis=1)
        value, key = np.split(silu(linear(w, f"{name}.value_key", y)), 2, axis=1)
        attended = np.zeros_like(x)
        for i in range(len(x)):
            for number, head in enumerate((slice(0, 4), slice(4, 8))):
                for j in range(i + 1):
                    bias = w[f"{name}.bias"][distance_class(i - j), number]
                    attended[i, head] += silu(query[i, head] @ key[j, head] + bias) / (i + 1) * value[j, head]
        x = x + linear(w, f"{name}.output", normed(w, f"{name}.attention_norm", attended) * gate)
    return x[-1]


REFERENCES = {"mean": mean, "target_attention": target_attention, "transformer": transformer, "hstu": hstu}


def make_encoder(history: History, config: SequenceConfig) -> SequenceEncoder:
    """In float64."""
    return encoder_class(history, config)(history, config).double()


def encoder_of(name: str, layers: int) -> torch.nn.Module:
    """In float64, with biases that are not 0."""
    torch.manual_seed(1)
    encoder = make_encoder(HISTORY, config_of(name, layers))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_equals_numpy(name, layers):
    encoder, (items, target, lengths) = encoder_of(name, layers), inputs()
    found = encoder(items, target, lengths).detach().numpy()
    assert found.shape == (B, ENCODERS[name].output_width(HISTORY, config_of(name)))
    for row, n in enumerate(LENGTHS):
        wanted = REFERENCES[name](weights_of(encoder), items[row, :n].numpy(), target[row].numpy(), layers)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_padding_changes_nothing(name, layers):
    encoder, (items, target, lengths) = encoder_of(name, layers), inputs()
    wanted = encoder(items, target, lengths)
    events = torch.arange(L) < lengths.unsqueeze(1)
    other = torch.where(events.unsqueeze(2), items, inputs(seed=1)[0])
    torch.testing.assert_close(encoder(other, target, lengths), wanted)
    longer = torch.cat([items, 100 * torch.ones(B, 1000, HISTORY.width)], dim=1)
    torch.testing.assert_close(encoder(longer.double(), target, lengths), wanted)


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_no_event_at_all_gives_finite_gradients(name, layers):
    """Of the parameters and of the items; every parameter is on a path to the output."""
    encoder, (items, target, _) = encoder_of(name, layers), inputs()
    items = items[:, :1].requires_grad_()
    encoder(items, target, torch.zeros(B, dtype=torch.int32)).square().sum().backward()
    assert items.grad is None or not items.grad.any()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_every_parameter_and_event_has_a_gradient(name, layers):
    encoder, (items, target, lengths) = encoder_of(name, layers), inputs()
    encoder(items.requires_grad_(), target, lengths).square().sum().backward()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad.any(), key
    events = torch.arange(L) < lengths.unsqueeze(1)
    assert torch.equal((items.grad != 0).any(2), events)


@pytest.mark.parametrize("name", ["transformer", "hstu"])
def test_dropout_is_off_in_evaluation(name):
    torch.manual_seed(0)
    encoder = make_encoder(HISTORY, config_of(name, dropout=0.5))
    assert not torch.equal(encoder(*inputs()), encoder(*inputs()))
    encoder.eval()
    assert torch.equal(encoder(*inputs()), encoder(*inputs()))


def test_a_history_without_a_target():
    history = History("before", HISTORY.sequences[1:], target_width=0, embedding_width=5, matches=0)
    items, _, lengths = inputs()
    for name in ("mean", "transformer", "hstu"):
        encoder = make_encoder(history, config_of(name))
        assert encoder(items[:, :, :5], items.new_empty(B, 0), lengths).isfinite().all()
    config = config_of("target_attention")
    assert encoder_class(history, config) is ENCODERS["mean"]
    assert encoder_class(HISTORY, config) is ENCODERS["target_attention"]
    check_histories((history, HISTORY), config)
    with pytest.raises(UserError, match="no sequence of the recipe has a target; give one a target"):
        check_histories((history,), config)


@pytest.mark.parametrize("name", ["transformer", "hstu"])
def test_heads_that_do_not_share_the_width_are_refused(name):
    config = SequenceConfig(encoder=name, dim=10, heads=4)
    with pytest.raises(UserError, match=r"sequence\.dim: 10 is no multiple of sequence\.heads 4"):
        check_histories((HISTORY,), config)


def test_distances_share_classes_that_grow():
    distances = torch.tensor([-3, 0, 1, 2, 15, 16, 22, 23, 32, 4095, 4096, 10**6])
    assert distance_classes(distances, 10**6).tolist() == [0, 0, 1, 2, 15, 16, 16, 17, 18, 31, 32, 32]
    assert CLASSES == 33
