"""GPT-2 and LLaMA of transformers, as a recipe builds them: heads and units go, answers stay near."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tpsprune.models import build
from tpsprune.numerics.forward import logits_of
from tpsprune.recipe.task import TransformersModel
from tpsprune.records import TaskFacts

pytest.importorskip("transformers", reason="the models are of transformers")

LENGTH, VOCABULARY = 12, 40
FACTS = TaskFacts(input_kind="tokens", input_shape=(LENGTH,), classes=VOCABULARY, vocabulary=VOCABULARY)
MODELS: dict[str, TransformersModel] = {
    "gpt2": TransformersModel(
        architecture="GPT2LMHeadModel",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH},
    ),
    "gpt2, head of its own": TransformersModel(
        architecture="GPT2LMHeadModel",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "tie_word_embeddings": False},
    ),
    "llama": TransformersModel(
        architecture="LlamaForCausalLM",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": LENGTH,
        },
    ),
}
TIED = {"gpt2"}


def tokens(items: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (items, LENGTH), generator=torch.Generator().manual_seed(1))


def learnt(name: str) -> nn.Module:
    """Build a model and teach it for a moment that the next token is twice the last."""
    torch.manual_seed(0)
    model = build(MODELS[name], FACTS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        tokens_nl = torch.randint(0, VOCABULARY, (32, 1)).repeat(1, LENGTH)
        tokens_nl = (tokens_nl * 2 ** torch.arange(LENGTH)) % VOCABULARY
        logits_nlv = logits_of(model(tokens_nl))
        loss = nn.functional.cross_entropy(logits_nlv[:, :-1].flatten(0, 1), tokens_nl[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def answers(model: nn.Module, tokens_nl: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(model(tokens_nl))


def sequences(items: int) -> Tensor:
    first_n1 = torch.arange(items)[:, None] % VOCABULARY
    return (first_n1 * 2 ** torch.arange(LENGTH)) % VOCABULARY


@pytest.mark.parametrize("name", MODELS)
def test_heads_and_units_of_a_language_model_are_cut(name: str) -> None:
    model = learnt(name)
    before = copy.deepcopy(model.state_dict())
    found = tpsprune.extract(model, sequences(64), target=tpsprune.Macs(0.7))
    kinds = {change.kind for change in found.changes}
    assert {"heads", "units"} <= kinds, found.left_alone
    lost = {change.kind for change in found.changes if change.width_after < change.width_before}
    assert lost
    assert found.macs_share <= 0.7
    logits = answers(found.ticket, sequences(8))
    assert logits.shape == (8, LENGTH, VOCABULARY)
    assert bool(logits.isfinite().all())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_a_light_cut_answers_nearly_as_before(name: str) -> None:
    model = learnt(name)
    found = tpsprune.extract(model, sequences(64), target=tpsprune.Macs(0.85))
    dense, ticket = answers(model, sequences(40)), answers(found.ticket, sequences(40))
    same = (dense.argmax(-1) == ticket.argmax(-1)).float().mean().item()
    assert same > 0.8, same


@pytest.mark.parametrize("name", sorted(TIED))
def test_a_head_tied_to_the_embedding_stays_tied(name: str) -> None:
    model = learnt(name)
    assert model.get_parameter("lm_head.weight") is model.get_parameter("transformer.wte.weight")
    found = tpsprune.extract(model, sequences(64), target=tpsprune.Macs(0.7))
    ticket: Any = found.ticket
    assert ticket.lm_head.weight is ticket.transformer.wte.weight
    assert ticket.lm_head.weight.shape == (VOCABULARY, 32)
    replayed: Any = tpsprune.replay(model, found.plan)
    assert replayed.lm_head.weight is replayed.transformer.wte.weight
