"""Words drawn one after the other: from models whose answer is known, with a cache and without."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.models.libraries import help_torchvision
from tpsprune.numerics.decoding import Reader, draw_words, is_language_model

WORDS = 7


class Next(nn.Module):
    """Surely goes on with the sum of the last two words, modulo seven."""

    def forward(self, words_nl: Tensor) -> Tensor:
        before_nl = torch.nn.functional.pad(words_nl, (1, 0))[:, :-1]
        return 50.0 * torch.nn.functional.one_hot((words_nl + before_nl) % WORDS, WORDS).float()


def library() -> Any:
    help_torchvision()
    return importlib.import_module("transformers")


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = library().LlamaConfig(
        vocab_size=WORDS, num_key_value_heads=2, max_position_embeddings=32, **sizes
    )
    return library().LlamaForCausalLM(config).eval()


def test_a_sure_model_goes_on_as_it_must() -> None:
    first_n1 = torch.tensor([[1], [3]])
    found = draw_words(Reader(Next()).read, first_n1, 6, torch.Generator().manual_seed(0))
    assert found.tolist() == [[1, 1, 2, 3, 5, 1], [3, 3, 6, 2, 1, 3]]


def test_words_are_drawn_as_often_as_they_are_likely() -> None:
    scores = torch.tensor([0.5, 0.3, 0.2]).log()
    found = draw_words(
        lambda words: scores.expand(len(words), 3),
        torch.zeros(4000, 1, dtype=torch.int64),
        3,
        torch.Generator().manual_seed(0),
    )
    shares = found[:, 1:].flatten().bincount(minlength=3).double() / 8000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]).double(), atol=0.02)


def test_what_is_kept_and_what_is_read_again_score_alike() -> None:
    model, words_nl = llama(), torch.randint(WORDS, (3, 9), generator=torch.Generator().manual_seed(1))

    class Bare(nn.Module):
        def forward(self, words: Tensor) -> Tensor:
            return model(words).logits

    kept, again = Reader(model), Reader(Bare())
    with torch.no_grad():
        for part_nl in torch.split(words_nl, [3, 1, 1, 4], dim=1):
            assert torch.allclose(kept.read(part_nl), again.read(part_nl), atol=1e-5)
        assert torch.allclose(
            kept.read(words_nl[:, :1]),
            model(torch.cat([words_nl, words_nl[:, :1]], 1)).logits[:, -1],
            atol=1e-5,
        )


def test_a_word_costs_a_model_that_keeps_what_it_read_one_place() -> None:
    model = llama()
    seen: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    with torch.no_grad():
        draw_words(Reader(model).read, torch.zeros(2, 1, dtype=torch.int64), 5, torch.Generator())
    assert seen == [1, 1, 1, 1]


@pytest.mark.parametrize("what", ["bidirectional", "classes", "other words", "wants more", "one place"])
def test_what_is_no_language_model(what: str) -> None:
    words_nl = torch.randint(WORDS, (2, 6), generator=torch.Generator().manual_seed(0))
    assert is_language_model(llama(), words_nl, WORDS)
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {
        "bidirectional": library()
        .BertLMHeadModel(
            library().BertConfig(
                vocab_size=WORDS,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
            )
        )
        .eval(),
        "classes": nn.Sequential(nn.Embedding(WORDS, 4), nn.Flatten(), nn.Linear(24, WORDS)),
        "other words": nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, WORDS + 1)),
        "wants more": nn.Bilinear(1, 1, 1),
        "one place": nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, WORDS)),
    }
    given = words_nl[:, :1] if what == "one place" else words_nl
    assert not is_language_model(models[what], given, WORDS)
