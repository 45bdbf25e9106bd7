"""experiments/studies/rate_study.py: a cell is measured rate by rate, and goes on where it was stopped."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parent.parent / "experiments" / "studies"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("rate_study", STUDIES / "rate_study.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["rate_study"] = module
    sys.path.insert(0, str(STUDIES))  # its neighbours are imported by their plain names
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(STUDIES))
    del sys.modules["rate_study"]


def test_the_best_rate_lies_between_the_measured_ones(study):
    errors = {0.001: 1.3, 0.002: 1.1, 0.004: 1.1, 0.008: 1.5}
    rates = {f"{rate:g}": {"steps": [0, 8], "errors": [2.0, error]} for rate, error in errors.items()}
    assert 0.002 < study.best_rate(rates, 8) < 0.004
    assert study.best_rate(rates, 100) is None  # no rate got there
    assert study.best_rate({"0.001": rates["0.001"], "0.002": rates["0.002"]}, 8) == 0.002  # an end as measured
    assert {cell.name for cell in study.CELLS} == {"dc-minilm/vae", "dc-minilm/text", "tiny-sana/vae", "tiny-sana/text"}


def test_a_cell_is_measured_once_and_goes_on_where_it_stopped(study, small_world, tmp_path, monkeypatch, capsys):
    card = json.loads((Path(small_world["base"].removeprefix("path:")) / "card.json").read_text())
    cell = study.Cell(
        name="small/vae", base=small_world["base"], kind="vae", candidate=card["vae"], image_size=32,
        data=small_world["data"]["source"], batch_size=4, held_out=16,
    )  # fmt: skip
    trained = []
    enter = study.enter

    def watched(*args, **kwargs):
        trained.append(kwargs["learning_rate"])
        if kwargs["learning_rate"] == 5e-4 and len(trained) == 2:
            raise KeyboardInterrupt
        return enter(*args, **kwargs)

    monkeypatch.setattr(study, "enter", watched)
    results, rates = tmp_path / "rates.json", (1e-3, 5e-4)
    with pytest.raises(KeyboardInterrupt):
        study.run_cell(cell, seed=0, rates=rates, steps=8, results=results)
    assert list(study.read(results)[f"small/vae--{card['vae']}--0--8"]["rates"]) == ["0.001"]
    record = study.run_cell(cell, seed=0, rates=rates, steps=8, results=results)
    assert trained == [1e-3, 5e-4, 5e-4] and list(record["rates"]) == ["0.001", "0.0005"]
    assert record["rates"]["0.001"]["steps"] == [0, 1, 2, 4, 8] and len(record["rates"]["0.001"]["errors"]) == 5
    assert record["width"] == 16 and record["parameters"] > 0 and record["best"]["8"] in (1e-3, 5e-4)
    study.run_cell(cell, seed=0, rates=rates, steps=8, results=results)
    assert len(trained) == 3
    study.summary(results)
    assert "best rate at step 4" in capsys.readouterr().out
