"""The callback in Lightning: the numbers of a loop by hand, and a fit that ends when a rule acts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.adapters.conftest import (
    BATCH,
    PLATEAU,
    accumulations,
    assert_trained_as_by_hand,
    settings_of,
    variants,
)
from tests.loop.conftest import assert_equal_weights, small_data, small_net

lightning = pytest.importorskip("pytorch_lightning")

from pytorch_lightning.plugins.precision import MixedPrecision  # noqa: E402 -- needs the library

from tpsprune.adapters.lightning import TpspruneCallback  # noqa: E402 -- needs the library

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(x)
        return scores

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        x, y = batch
        loss = cross_entropy(self(x), y)
        self.log("accuracy", float((self(x).argmax(1) == y).float().mean()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


QUIET = dict.fromkeys(
    ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
)


def fitted(
    folder: Path, callback: Any, *, resumed: Path | None = None, **settings: Any
) -> tuple[Any, nn.Module]:
    module = Module()
    settings = {"max_epochs": 3, "accelerator": "cpu", **QUIET, **settings}
    trainer = lightning.Trainer(default_root_dir=folder, callbacks=[callback], **settings)
    trainer.fit(module, DataLoader(TensorDataset(*small_data()), batch_size=BATCH), ckpt_path=resumed)
    return trainer, module.net


def watch(**settings: Any) -> dict[str, Any]:
    return {"calibration_data": small_data()[0], "signals": ["norm"], "every_steps": 3} | settings


@accumulations
@variants
def test_a_fit_has_the_numbers_of_a_loop_by_hand(variant: str, accumulated: int, tmp_path: Path) -> None:
    settings = settings_of(variant)
    found = fitted(tmp_path, TpspruneCallback(tps=settings), accumulate_grad_batches=accumulated)[1]
    assert_trained_as_by_hand(found, settings, accumulated)


def test_a_rule_that_acts_ends_the_fit_with_its_reason(tmp_path: Path) -> None:
    callback = TpspruneCallback(watch=watch(draw=PLATEAU), values={"validation_accuracy": "accuracy"})
    trainer, _ = fitted(tmp_path, callback)
    assert trainer.global_step == 6
    assert callback.parts.acted is not None
    assert (callback.parts.acted.kind, callback.parts.acted.step) == ("draw", 6)
    assert callback.parts.watch is not None
    assert 0.0 <= (callback.parts.watch["validation_accuracy"] or 0.0) <= 1.0


def test_a_checkpoint_of_the_trainer_brings_both_back(tmp_path: Path) -> None:
    def made() -> Any:
        return TpspruneCallback(tps={"variant": "neurons", "refresh_steps": 5}, watch=watch(every_steps=2))

    straight = fitted(tmp_path / "straight", made())[1]
    trainer, _ = fitted(tmp_path / "first", made(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    callback = made()
    resumed = fitted(tmp_path / "resumed", callback, resumed=tmp_path / "state.ckpt")[1]
    readings = [each for each in callback.parts.watch.readings if (each.signal, each.group) == ("norm", "")]
    assert [each.step for each in readings] == [2, 4, 6, 8, 10, 12]
    assert_equal_weights(resumed, straight)


class Scaled(MixedPrecision):  # type: ignore[misc]
    """A gradient scaler alone: in full precision its numbers are those of a loop without one."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))

    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()


@accumulations
@pytest.mark.parametrize("variant", ["moments", "in the loss"])
def test_under_a_gradient_scaler_a_fit_has_the_same_numbers(
    variant: str, accumulated: int, tmp_path: Path
) -> None:
    # Strong enough for a wrong share to show in every weight.
    settings, plugin = settings_of(variant, coupling=3.0), Scaled()
    more = {"accumulate_grad_batches": accumulated, "plugins": [plugin]}
    found = fitted(tmp_path, TpspruneCallback(tps=settings), **more)[1]
    assert plugin.scaler.get_scale() == 1024.0
    assert_trained_as_by_hand(found, settings, accumulated)


def test_parts_of_a_step_are_read_once_and_none_before_the_first_step(tmp_path: Path) -> None:
    callback = TpspruneCallback(tps={"variant": "weights"}, watch=watch(every_steps=2))
    fitted(tmp_path, callback, accumulate_grad_batches=2)
    norms = [each for each in callback.parts.watch.readings if each.signal == "norm"]
    assert [each.step for each in norms] == [2, 4, 6]
    energies = [each for each in callback.parts.watch.readings if each.signal == "tps_energy"]
    assert {(each.step, each.epoch) for each in energies} == {(each.step, each.epoch) for each in norms}


def test_a_second_fit_with_one_callback_is_as_the_first(tmp_path: Path) -> None:
    callback = TpspruneCallback(tps={"variant": "weights"}, watch=watch(draw=PLATEAU))
    for _ in range(2):
        trainer, _ = fitted(tmp_path, callback)
        assert trainer.global_step == 6
        assert callback.parts.acted.step == 6
        assert callback.parts.tps.steps == 6


def test_a_start_after_a_fit_that_broke_off_leaves_one_hook() -> None:
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    callback = TpspruneCallback(tps={"variant": "weights"})
    for _ in range(2):
        callback.parts.start(net, optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
