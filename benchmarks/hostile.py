"""Hostile files: recipes, JSON, journals, tensors, plans, bundles, mutated: each read, or refused in words.

    python benchmarks/hostile.py                 # 5,000 of each kind; writes reports/hostile.md
    python benchmarks/hostile.py --items 200     # fewer, printed only
    python benchmarks/hostile.py --kind plan --seed 1234 --items 1   # one item again

An item is a fault where anything but one of the package's own errors comes out, a command ends with another
code than 0 or 2, a terminal's escape is shown, or 20 seconds go by. Item n of a kind is made from the seed
``first + n`` alone. Each kind has a process of its own, which may take one GB.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import re
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from click.testing import CliRunner

import tpsprune
from tpsprune import pipeline, recipe
from tpsprune.cli import main as command_line
from tpsprune.errors import TpspruneError
from tpsprune.models import build
from tpsprune.pruning import Plan, replay
from tpsprune.recipe.read import shipped_recipes
from tpsprune.records import TaskFacts
from tpsprune.report.assessment import assess_journal
from tpsprune.report.live import OurConsole
from tpsprune.report.savings.json_report import report_json
from tpsprune.report.savings.pages import render_page, write_report
from tpsprune.report.tables import savings_summary
from tpsprune.runs import ComparisonFolder, energy_report_text, read_json, to_json_text
from tpsprune.runs.tensors import match_state, read_state

ROOT: Final = Path(__file__).parents[1]
REPORT: Final = ROOT / "reports" / "hostile.md"
JOURNAL: Final = ROOT / "reports" / "savings" / "digits" / "journal.jsonl"
SECONDS: Final = 20
MOST_BYTES: Final = 10**9
FIRST_SEED: Final = 20_000_000
RARELY: Final = 50
"""One in so many items goes the whole way, where that takes seconds."""
TINY: Final = """
name = "tiny"
[task.data]
kind = "digits"
[task.model]
kind = "cnn"
widths = [6, 8]
[train]
epochs = 1
batch_size = 256
threads = 1
[watch]
calibration_items = 64
h1_points = 16
edge_window = 4
every_steps = 2
[stop.draw]
rule = "epoch"
epoch = 0.5
[prune]
calibration_items = 128
[energy]
meter = "fake"
"""

VALUES: Final[tuple[Any, ...]] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.5,
        1e-300,
        1e15,
        1e149,
        1e200,
        -1e200,
        2**31,
        2**53,
        2**63 - 1,
        2**63,
    ),
    *(
        2**64,
        -(2**63),
        10**30,
        "",
        "0",
        "3",
        "nan",
        "[/]",
        "[bold red]",
        "\x1b[2J\x1b]0;x\x07",
        "\u202e",
        "\x9b7m",
    ),
    *(
        "$\\frac$",
        "_hidden",
        "../../../etc/passwd",
        "/dev/zero",
        "a" * 5000,
        "\ud800",
        "ψ",
        "x\ny",
        "classes",
    ),
    *([], {}, [[]], [None], {"": None}, {"a": {}}, [1e308], ["dense", "dense"]),
)
ESCAPES: Final = re.compile("[\x1b\x9b\x07\u202e]")


def mutate_value(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one to three changes at random places."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        level = [value]
        while level:
            inner = level.pop()
            keys = (
                list(inner)
                if isinstance(inner, dict)
                else range(len(inner))
                if isinstance(inner, list)
                else ()
            )
            places += [(inner, key) for key in keys]
            level += [inner[key] for key in keys if isinstance(inner[key], dict | list)]
        if not places:
            return chance.choice(VALUES)
        holder, key = chance.choice(places)
        match chance.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("", "schema", "kind", "[/]", "\x1b[2J", str(key) + "_"))] = holder.pop(
                    key
                )
            case 1 | 2 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] *= chance.choice((-1, 0, 1e6, 1e-6, 10**9, 2))
            case 4:
                other, name = chance.choice(places)
                if name in other if isinstance(other, dict) else name < len(other):
                    holder[key] = _copy(other[name])
            case 5:
                for _ in range(chance.choice((30, 100, 2000))):
                    holder[key] = [holder[key]]
            case _:
                holder[key] = chance.choice(VALUES)
    return value


def _copy(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except RecursionError:
        return None


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to four changes: turned, cut, doubled, put in, or cut short."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice((1, 2, 8, 64, 1024)))
        match chance.randrange(6):
            case 0:
                changed[at:end] = bytes(each ^ 1 << chance.randrange(8) for each in changed[at:end])
            case 1:
                del changed[at:end]
            case 2:
                changed[at:at] = changed[at:end]
            case 3:
                changed[at:at] = chance.choice(
                    (
                        b"\0",
                        b"\n",
                        b'"',
                        b"[" * 5000,
                        b"9" * 5000,
                        b"\xff\xfe",
                        b"-1",
                        b"1e999",
                        b"NaN",
                        b"\\ud800",
                    )
                )
            case 4:
                del changed[at:]
            case _:
                changed[at:end] = chance.randbytes(end - at)
    return bytes(changed)


def to_json(value: Any) -> bytes:
    """Return JSON as anybody may write it: half characters and numbers without bound among it."""
    try:
        return json.dumps(value, indent=2).encode()
    except RecursionError:
        return b"[" * 10**6


def mutate_json(content: bytes, chance: random.Random) -> bytes:
    """Return a JSON text with other values or other bytes."""
    if chance.random() < 0.2:
        return mutate_bytes(content, chance)
    return to_json(mutate_value(json.loads(content), chance))


def mutate_lines(content: bytes, chance: random.Random) -> bytes:
    """Return a journal in which a line is another, twice there, missing, elsewhere, or torn."""
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    match chance.randrange(10):
        case 0:
            lines.insert(chance.randrange(len(lines) + 1), lines[at])
        case 1:
            del lines[at]
        case 2:
            lines[at], lines[-1] = lines[-1], lines[at]
        case 3:
            return mutate_bytes(content, chance)
        case _:
            changed = mutate_value(json.loads(lines[at]), chance)
            lines[at] = b"".join(line.strip() for line in to_json(changed).splitlines())
    return b"\n".join(lines) + b"\n"


def mutate_toml(text: str, chance: random.Random) -> bytes:
    """Return a recipe with other values, other keys, lines twice or elsewhere, or other bytes."""
    if chance.random() < 0.2:
        return mutate_bytes(text.encode(), chance)
    lines = text.splitlines()
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(lines))
        key, equals, _ = lines[at].partition("=")
        match chance.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(chance.randrange(len(lines)), lines[at])
            case 2 if equals:
                lines[at] = f"{json.dumps(chance.choice(('[/]', chr(27) + '[2J', 'a' * 3000, '')))} = 1"
            case _ if equals:
                value = chance.choice(VALUES)
                found = "1979-05-27" if value is None else "inf" if value == 1e200 else json.dumps(value)
                lines[at] = f"{key}= {'[' * 2000 if value == [[]] else found}"
        lines = lines or [""]
    return "\n".join(lines).encode()


def mutate_tensors(content: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with another header, or with other bytes."""
    if chance.random() < 0.4:
        return mutate_bytes(content, chance)
    size = int.from_bytes(content[:8], "little")
    header = mutate_json(content[8 : 8 + size], chance)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


@dataclass(frozen=True)
class Material:
    """What is mutated: the folders of a run and of its bundle, made once."""

    run: Path
    bundle: Path

    @classmethod
    def make(cls, folder: Path) -> Material:
        """Train, prune and export the tiny recipe."""
        list(pipeline.train(recipe.parse(TINY, "tiny"), folder / "runs", device="cpu"))
        (run,) = (folder / "runs").iterdir()
        pipeline.export(run, folder / "bundle")
        return cls(run, folder / "bundle")


def invoke(*words: str) -> str:
    """Run a command in this process; return its exit code, which is 0 or 2."""
    done = CliRunner().invoke(command_line, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in {0, 2}, f"exit code {done.exit_code}"
    assert not ESCAPES.search(done.output), f"an escape is shown: {done.output!r}"
    return "read" if done.exit_code == 0 else "refused"


def run_recipe(_: Material, folder: Path, chance: random.Random) -> str:
    """Print a recipe as read; rarely check it against its data and its model, where it runs nobody's code."""
    names = [*shipped_recipes().values()]
    text = TINY if chance.random() < 0.3 else chance.choice(names).read_text(encoding="utf-8")
    path = folder / "recipe.toml"
    path.write_bytes(mutate_toml(text, chance))
    printed = invoke("check", str(path), "--print")
    if printed == "read" and chance.randrange(RARELY) == 0:
        task = recipe.read(path).task
        if task.data.kind in {"digits", "modular"} and task.model.kind in {"cnn", "mlp", "transformer"}:
            return invoke("check", str(path), "--no-widths") if ":" not in task.loss else printed
    return printed


def run_json(material: Material, folder: Path, chance: random.Random) -> str:
    """Show a run whose result is another, rarely as a picture."""
    shutil.copytree(
        material.run, folder / "run", ignore=shutil.ignore_patterns("*.safetensors", "*.png", "*.svg")
    )
    path = folder / "run" / "result.json"
    path.write_bytes(mutate_json(path.read_bytes(), chance))
    if chance.randrange(RARELY) == 0:
        return invoke("show", str(folder / "run"), "--picture")
    return invoke("show", str(folder / "run"), *chance.choice(([], ["--json"])))


def run_jsonl(material: Material, folder: Path, chance: random.Random) -> str:
    """Show a run with other readings, or assess another journal of a comparison; rarely with its plots."""
    if chance.random() < 0.3:
        shutil.copytree(material.run, folder / "run", ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
        path = folder / "run" / "readings.jsonl"
        path.write_bytes(mutate_lines(path.read_bytes(), chance))
        return invoke("show", str(folder / "run"))
    comparison = ComparisonFolder(folder)
    comparison.journal.path.write_bytes(mutate_lines(JOURNAL.read_bytes(), chance))
    savings = assess_journal(comparison)
    OurConsole(file=io.StringIO()).print(savings_summary(savings))
    energy_report_text(report_json(savings, {}, (), ""))
    if chance.randrange(RARELY) == 0:
        write_report(savings, folder)
    page = render_page("md", savings)
    assert not ESCAPES.search(page), "an escape is in the page"
    return "read"


def run_tensors(material: Material, folder: Path, chance: random.Random) -> str:
    """Fill a model with weights, safetensors or what torch saved."""
    model = build(recipe.parse(TINY, "tiny").task.model, FACTS)
    if chance.random() < 0.3:
        path = folder / "weights.pt"
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=chance.random() < 0.5)
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    else:
        path = folder / "weights.safetensors"
        path.write_bytes(mutate_tensors((material.run / "dense.safetensors").read_bytes(), chance))
    model.load_state_dict(match_state(read_state(path, "--weights"), model.state_dict(), str(path)))
    return "read"


def run_plan(material: Material, folder: Path, chance: random.Random) -> str:
    """Replay a plan on its model."""
    path = folder / "plan.json"
    raw = mutate_json((material.run / "plan.json").read_bytes(), chance)
    if chance.random() < 0.7:
        raw = _with_digest(raw)
    path.write_bytes(raw)
    replay(build(recipe.parse(TINY, "tiny").task.model, FACTS), Plan.from_json(read_json(path)))
    return "read"


def _with_digest(raw: bytes) -> bytes:
    """Return the plan with the digest that goes with its tensors, as one would who means harm."""
    try:
        plan = json.loads(raw)
        lines = [f"{each['name']} {list(each['shape'])} {each['dtype']}" for each in plan["model"]]
        return to_json({**plan, "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest()})
    except (ValueError, TypeError, LookupError, RecursionError):
        return raw


def run_bundle(material: Material, folder: Path, chance: random.Random) -> str:
    """Load a bundle of which one file is another, most of them sealed anew."""
    bundle = folder / "bundle"
    shutil.copytree(material.bundle, bundle)
    name = chance.choice(("manifest.json", "manifest.json", "plan.json", "recipe.toml", "ticket.safetensors"))
    path = bundle / name
    content = path.read_bytes()
    if name == "recipe.toml":
        path.write_bytes(_with_library(content.decode(), chance))
    elif name == "ticket.safetensors":
        path.write_bytes(mutate_tensors(content, chance))
    elif name == "plan.json":
        path.write_bytes(_with_digest(mutate_json(content, chance)))
    else:
        path.write_bytes(mutate_json(content, chance))
    if chance.random() < 0.8:
        _seal_again(bundle, name)
    tpsprune.load(bundle)
    return "read"


def _with_library(text: str, chance: random.Random) -> bytes:
    """Return the recipe mutated, or with a model of a library that asks for much."""
    if chance.random() < 0.8:
        return mutate_toml(text, chance)
    width, layers = chance.choice((64, 4096, 10**6)), chance.choice((1, 50, 10**5))
    config = f"{{ n_embd = {width}, n_head = 2, n_layer = {layers}, bos_token_id = 1, eos_token_id = 1 }}"
    head, _, rest = text.partition("[task.model]")
    tail = rest[rest.index("\n[") :]
    model = f'kind = "transformers"\narchitecture = "GPT2LMHeadModel"\nconfig = {config}\n'
    return f"{head}[task.model]\n{model}{tail}".encode()


def _seal_again(bundle: Path, name: str) -> None:
    """Write hash and size of a changed file, and the seal, as somebody would who means harm."""
    path = bundle / "manifest.json"
    try:
        raw = json.loads(path.read_bytes())
        raw.pop("seal", None)
        if name != path.name:
            content = (bundle / name).read_bytes()
            raw["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        body = to_json_text(raw).removesuffix("\n}\n") + ',\n  "seal": "'
        path.write_bytes(f'{body}{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'.encode())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return


FACTS: Final = TaskFacts(input_kind="image", input_shape=(1, 8, 8), classes=10)
KINDS: Final[Mapping[str, Callable[[Material, Path, random.Random], str]]] = {
    "recipe": run_recipe,
    "json": run_json,
    "jsonl": run_jsonl,
    "tensors": run_tensors,
    "plan": run_plan,
    "bundle": run_bundle,
}


def run_item(kind: str, seed: int, material: Material) -> str:
    """Make one item and read it; return ``read``, ``refused``, or what was at fault."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"{SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return KINDS[kind](material, Path(folder), random.Random(seed))
    except TpspruneError as error:
        words = str(error)
        return f"fault: an escape in {words!r}" if ESCAPES.search(words) else "refused"
    except Exception as error:  # noqa: BLE001 -- whatever else comes out is what is looked for
        return f"fault: {type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_kind(kind: str, first: int, items: int, material: Material, ends: Any) -> None:
    """Run so many items in this process, which may take one GB, and send what became of them."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    held = int(pages) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES, held + MOST_BYTES))
    found = [(seed, run_item(kind, seed, material)) for seed in range(first, first + items)]
    ends.send((found, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def main() -> None:
    """Run what is asked for, print a row for each kind and the faults, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--kind", choices=KINDS, action="append")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    context, rows, faults = get_context("fork"), [], []
    with tempfile.TemporaryDirectory() as folder:
        material = Material.make(Path(folder))
        for kind in asked.kind or KINDS:
            begun = time.monotonic()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=run_kind, args=(kind, asked.seed, asked.items, material, theirs))
            process.start()
            theirs.close()
            try:
                found, peak_bytes = ours.recv()
            except EOFError:
                found, peak_bytes = [(asked.seed, "fault: the process ended")], 0
            process.join()
            ends = Counter(end.partition(":")[0] for _, end in found)
            faults += [f"{kind}, seed {seed}: {end}" for seed, end in found if end.startswith("fault")]
            rows.append(
                f"| {kind} | {asked.items:,} | {ends['read']:,} | {ends['refused']:,} | {ends['fault']:,} "
                f"| {peak_bytes / 1e6:.0f} MB | {time.monotonic() - begun:.0f} s |"
            )
            print(rows[-1], flush=True)
    print(*faults[:50], sep="\n")
    text = f"""# Hostile files

`python benchmarks/hostile.py`: {asked.items:,} files of each kind, mutated with the seeds from {asked.seed:,}
on. A file is read, or refused with one message and exit code 2. A fault is anything else: a traceback,
another code, an escape on the terminal, {SECONDS} seconds. Memory is the most that the process of a kind
held, libraries included.

| kind | files | read | refused | faults | memory | time |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}
"""
    if asked.items >= 5000 and not asked.kind:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
