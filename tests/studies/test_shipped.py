"""The pages in reports/studies are what their journals give, by the code as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tpsprune import recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.conduct import study_of
from tpsprune.studies.notebook import Notebook
from tpsprune.studies.page import page

SHIPPED = Path(__file__).parents[2] / "reports" / "studies"


@pytest.mark.parametrize("name", STUDIES)
def test_a_journal_is_of_todays_settings_and_gives_its_page(name: str) -> None:
    prediction = STUDIES[name]
    study = study_of(prediction)
    setup = study.setup(recipe.read(prediction.recipe), None, None)
    path = SHIPPED / f"{name}.jsonl"
    machine = json.loads(path.read_text(encoding="utf-8").splitlines()[0])["machine"]
    head = {"study": name, "settings": setup.decisive(), "machine": machine}
    done = Notebook(path, head, study.record).read()
    trials = {trained.trial for trained in done}
    assert set(study.plan(setup, done).trials) <= trials, "nothing is left to be trained"
    finding = study.finding(setup, done, machine)
    assert page(finding) == path.with_suffix(".md").read_text(encoding="utf-8")
