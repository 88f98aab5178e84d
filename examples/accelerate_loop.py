"""A plain loop under Accelerate: TPS in it, a watch that says when to draw, and the ticket at the end.

    pip install 'tpsprune[accelerate]'
    python examples/accelerate_loop.py               # handwritten digits, some seconds on a CPU
    accelerate launch examples/accelerate_loop.py    # the same on as many processes as were configured

Nothing here is special to Accelerate but the calls of ``accelerator``: models and optimisers that it has
wrapped are taken as they are. Every process makes every call of tpsprune; the first one reads, decides and
cuts, and all get the same verdicts and the same ticket.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tpsprune


def main(epochs: int = 20) -> None:
    """Train until the watch says that the ticket may be drawn, and draw it."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    train, held = slice(0, 1400), slice(1400, None)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = nn.Sequential(
        nn.Linear(64, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(x[train], y[train]), batch_size=64, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def accuracy(net: nn.Module) -> float:
        net.eval()
        with torch.no_grad():
            found = net(x[held].to(accelerator.device)).argmax(1).cpu()
        net.train()
        return float((found == y[held]).float().mean())

    tps = tpsprune.TPS(
        model, optimizer, variant="moments", data=(x[train][:512], y[train][:512]), coupling=0.1
    )
    rule = tpsprune.Plateau(monitor="d_eff", tolerance=0.05, patience=3)
    with tpsprune.Watch(model, x[train][:256], signals=["d_eff", "norm"], every_steps=20, draw=rule) as watch:
        drawn = train_until(watch, tps, accelerator, model, optimizer, loader, accuracy, epochs)
    tps.close()
    found = tpsprune.extract(model, x[train][:512], target=tpsprune.Macs(0.5))
    after = accuracy(found.ticket)
    accelerator.print(
        f"drawn after {drawn} steps: d_eff {watch['d_eff']:.3f}, accuracy {accuracy(model):.3f}\n"
        f"ticket: {found.macs_share:.2f} of the MACs, accuracy {after:.3f}, not retrained"
    )


def train_until(watch, tps, accelerator, model, optimizer, loader, accuracy, epochs):
    """Train until a verdict acts or the epochs are over; return the steps."""
    for epoch in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                with tps.listening():
                    loss = cross_entropy(model(x), y)
                accelerator.backward(loss + tps(y, loss))
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            for verdict in watch.step(tps.steps, epoch=epoch, validation_accuracy=lambda: accuracy(model)):
                if verdict.act:
                    accelerator.print(verdict.reason)
                    return tps.steps
    return tps.steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    main(parser.parse_args().epochs)
