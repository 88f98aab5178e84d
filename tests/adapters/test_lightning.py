"""The callback in Lightning: the numbers of a loop by hand, and a fit that ends when a rule acts."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tpsprune
from tests.loop.conftest import Data, small_data, small_net

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


def fitted(folder: Path, callback: Any, data: Data, **settings: Any) -> tuple[Any, nn.Module]:
    module = Module()
    trainer = lightning.Trainer(
        **(
            {
                "max_epochs": 3,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "default_root_dir": folder,
                "callbacks": [callback],
            }
            | settings
        )
    )
    trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=12))
    return trainer, module.net


def by_hand(data: Data, settings: dict[str, Any], *, epochs: int = 3, accumulated: int = 1) -> nn.Module:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tps = tpsprune.TPS(model, optimizer, **settings)
    for _ in range(epochs):
        for number, (x, y) in enumerate(zip(*(part.split(12) for part in data), strict=True), 1):
            with tps.listening():
                loss = cross_entropy(model(x), y)
            ((loss + tps(y, loss)) / accumulated).backward()
            if number % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("variant", ["weights", "neurons", "moments", "in the loss"])
def test_a_fit_has_the_numbers_of_a_loop_by_hand(variant: str, accumulated: int, tmp_path: Path) -> None:
    if variant == "in the loss":
        settings: dict[str, Any] = {"variant": "weights", "apply": "loss"}
    else:
        settings = {"variant": variant, "data": small_data()}
    found = fitted(
        tmp_path, TpspruneCallback(tps=settings), small_data(), accumulate_grad_batches=accumulated
    )[1]
    expected = by_hand(small_data(), settings, accumulated=accumulated)
    for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_rule_that_acts_ends_the_fit_with_its_reason(tmp_path: Path) -> None:
    rule = tpsprune.Plateau(monitor="norm", tolerance=1.0, patience=2, min_adjusted_accuracy=0.0)
    callback = TpspruneCallback(
        watch={"calibration_data": small_data()[0], "signals": ["norm"], "every_steps": 3, "draw": rule},
        values={"validation_accuracy": "accuracy"},
    )
    trainer, _ = fitted(tmp_path, callback, small_data())
    assert trainer.global_step == 6
    assert callback.parts.acted is not None
    assert (callback.parts.acted.kind, callback.parts.acted.step) == ("draw", 6)
    assert callback.parts.watch is not None
    assert 0.0 <= (callback.parts.watch["validation_accuracy"] or 0.0) <= 1.0


def test_a_checkpoint_of_the_trainer_brings_both_back(tmp_path: Path) -> None:
    def made() -> Any:
        return TpspruneCallback(
            tps={"variant": "neurons", "refresh_steps": 5},
            watch={"calibration_data": small_data()[0], "signals": ["norm"], "every_steps": 2},
        )

    straight = fitted(tmp_path / "straight", made(), small_data())[1]
    trainer, _ = fitted(tmp_path / "first", made(), small_data(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    callback, module = made(), Module()
    resumed = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
    )
    with warnings.catch_warnings():
        loader = DataLoader(TensorDataset(*small_data()), batch_size=12)
        resumed.fit(module, loader, ckpt_path=tmp_path / "state.ckpt")
    readings = [each for each in callback.parts.watch.readings if (each.signal, each.group) == ("norm", "")]
    assert [each.step for each in readings] == [2, 4, 6, 8, 10, 12]
    for mine, theirs in zip(module.net.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


class Scaled(MixedPrecision):  # type: ignore[misc]
    """A gradient scaler alone: in full precision its numbers are those of a loop without one."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))

    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("variant", ["moments", "in the loss"])
def test_under_a_gradient_scaler_a_fit_has_the_same_numbers(
    variant: str, accumulated: int, tmp_path: Path
) -> None:
    # Strong enough for a wrong share to show in every weight.
    settings: dict[str, Any] = {"variant": variant, "data": small_data(), "coupling": 3.0}
    if variant == "in the loss":
        settings = {"variant": "weights", "apply": "loss", "coupling": 3.0}
    plugin = Scaled()
    found = fitted(
        tmp_path,
        TpspruneCallback(tps=settings),
        small_data(),
        accumulate_grad_batches=accumulated,
        plugins=[plugin],
    )[1]
    assert plugin.scaler.get_scale() == 1024.0
    expected = by_hand(small_data(), settings, accumulated=accumulated)
    for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_parts_of_a_step_are_read_once_and_none_before_the_first_step(tmp_path: Path) -> None:
    callback = TpspruneCallback(
        tps={"variant": "weights"},
        watch={"calibration_data": small_data()[0], "signals": ["norm"], "every_steps": 2},
    )
    fitted(tmp_path, callback, small_data(), accumulate_grad_batches=2)
    norms = [each for each in callback.parts.watch.readings if each.signal == "norm"]
    assert [each.step for each in norms] == [2, 4, 6]
    energies = [each for each in callback.parts.watch.readings if each.signal == "tps_energy"]
    assert {(each.step, each.epoch) for each in energies} == {(each.step, each.epoch) for each in norms}


def test_a_second_fit_with_one_callback_is_as_the_first(tmp_path: Path) -> None:
    rule = tpsprune.Plateau(monitor="norm", tolerance=1.0, patience=2, min_adjusted_accuracy=0.0)
    callback = TpspruneCallback(
        tps={"variant": "weights"},
        watch={"calibration_data": small_data()[0], "signals": ["norm"], "every_steps": 3, "draw": rule},
    )
    for _ in range(2):
        trainer, _ = fitted(tmp_path, callback, small_data())
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
