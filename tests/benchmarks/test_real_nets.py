"""The pure parts of the benchmark of published nets, and that a net written anew is the published one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import real_nets
from benchmarks.zoo import silero
from benchmarks.zoo.places import Missing
from benchmarks.zoo.silero import WINDOW, Silero
from benchmarks.zoo.speech import NOISES, clips, noise, sentences


def net(dense: float, *cells: tuple[str, float]) -> dict[str, Any]:
    of = [{"method": method, "share": 0.5, "seed": 0, "score": score} for method, score in cells]
    return {"title": "a net", "measure": "accuracy", "dense": dense, "cells": of}


def test_what_is_measured_again_takes_the_place_of_what_was_and_the_rest_stays() -> None:
    found = real_nets.merged(net(0.9, ("as cut", 0.8), ("lamp", 0.5)), net(0.9, ("as cut", 0.85)))
    assert [(cell["method"], cell["score"]) for cell in found["cells"]] == [("lamp", 0.5), ("as cut", 0.85)]


def test_nothing_is_kept_of_another_dense_model() -> None:
    new = net(0.91, ("as cut", 0.85))
    assert real_nets.merged(net(0.9, ("lamp", 0.5)), new) == new
    assert real_nets.merged(None, new) == new


def test_the_best_importance_is_none_of_ours_and_nothing_where_none_was_measured() -> None:
    assert real_nets.best_importance(net(0.9, ("as cut", 0.8), ("lamp", 0.5), ("fpgm", 0.6)), 0.5) == "fpgm"
    assert not real_nets.best_importance(net(0.9, ("as cut", 0.8)), 0.5)


def test_a_package_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> None:
        raise Missing("the weights are not here")

    monkeypatch.setitem(real_nets.NETS, "lite0", absent)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.argv", ["real_nets", "--nets", "lite0"])
    real_nets.main()
    assert capsys.readouterr().out == "left out, lite0: the weights are not here\n"


def test_the_detector_of_speech_answers_once_a_window() -> None:
    with torch.inference_mode():
        found_nw = Silero()(torch.randn(2, 3 * WINDOW))
    assert found_nw.shape == (2, 3)


def test_the_detector_of_speech_gives_the_probabilities_of_its_package() -> None:
    try:
        clips_nt, _ = clips(4, 0, "test")
        published, ours = silero.script(), silero.silero()
    except Missing as missing:
        pytest.skip(str(missing))
    with torch.inference_mode():
        theirs_nw = torch.cat([published(part, 16_000) for part in clips_nt.split(WINDOW, 1)], 1)
        torch.testing.assert_close(ours(clips_nt), theirs_nw, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_a_mean_square_of_one(kind: str) -> None:
    streams = [torch.randn(20_000, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found_t = noise(kind, 8192, streams, torch.Generator().manual_seed(0))
    assert found_t.square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_sentences_are_words_alone() -> None:
    whole = "This is a sentence of words and nothing else."
    assert sentences([f"{whole} f(x) is code and not a sentence to read aloud. Too short."]) == [whole]
