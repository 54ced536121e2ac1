"""The notebook runs from a fresh kernel, and was kept with its outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "cost_versus_quality.ipynb"
_CELL_TIMEOUT_S = 270


def test_outputs_are_kept_and_hold_no_error() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Jupyter is migrating", "ignore:unclosed:ResourceWarning")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("TUNER_STORE", raising=False)
    book = nbformat.read(NOTEBOOK, 4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(book, timeout=_CELL_TIMEOUT_S, kernel_name="python3", resources=where).execute()
    interruptions = book.cells[3].outputs[0]["data"]["text/plain"]
    assert "resumed_from_step" in interruptions
    assert len(interruptions.splitlines()) > 1  # capacity was taken away while it ran
