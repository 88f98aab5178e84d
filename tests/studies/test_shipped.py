"""The pages in reports/studies are what their journals give, by the code as it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tpsprune import recipe
from tpsprune_studies.catalogue import JOURNALS, STUDIES, load_study
from tpsprune_studies.conduct import StudyJournal

SHIPPED = Path(__file__).parents[2] / "reports" / "studies"


def test_every_study_has_a_page() -> None:
    assert {path.stem for path in SHIPPED.glob("*.md")} == set(STUDIES)


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_journal_is_of_todays_settings_and_gives_its_page(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The journal was written where every task's data were at hand, which need not be here.
    monkeypatch.setattr("tpsprune_studies.reach.ReachTask.is_missing", False)
    study = load_study(name)
    setup = study.make_setup(recipe.read(STUDIES[name].recipe), None, None)
    path = SHIPPED / f"{JOURNALS[name]}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    machine = lines[0]["machine"]
    head = {"study": JOURNALS[name], "settings": setup.decisive(), "machine": machine}
    done = StudyJournal(path, head, study.TRAINING).read()
    assert json.loads(json.dumps([asdict(each) for each in done])) == [line["training"] for line in lines]
    trials = {training.trial for training in done}
    assert set(study.plan(setup, done).trials) <= trials, "nothing is left to be trained"
    finding = study.conclude(setup, done, machine)
    page = SHIPPED / f"{name}.md"
    assert finding.render_page() == page.read_text(encoding="utf-8")
    assert json.loads(json.dumps(finding.to_json())) == json.loads(
        page.with_suffix(".json").read_text(encoding="utf-8")
    )
