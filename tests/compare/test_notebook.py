"""The notebook runs in a fresh kernel, and is stored with its outputs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "cost_versus_quality.ipynb"
_TIMEOUT_S = 270


@pytest.fixture
def jupyter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Nothing of the user's: a kernel of the same name may be another Python.

    Sockets are files (107 bytes of path: short): Jupyter chooses ports long before the kernel binds them, and another
    test may take one.
    """
    with tempfile.TemporaryDirectory(prefix="tuner-nb-", dir="/tmp") as folder:
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            monkeypatch.setenv(name, f"{folder}/{name.lower()}")
        yield Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}})


def test_outputs_are_kept_and_hold_no_error() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Jupyter is migrating", "ignore:unclosed:ResourceWarning")
def test_it_runs(tmp_path: Path, jupyter: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("TUNER_STORE", raising=False)
    book = nbformat.read(NOTEBOOK, 4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    limits = {"timeout": _TIMEOUT_S, "startup_timeout": _TIMEOUT_S}  # a kernel's own is a minute
    NotebookClient(book, kernel_name="python3", resources=where, config=jupyter, **limits).execute()
    interruptions = book.cells[3].outputs[0]["data"]["text/plain"]
    assert "resumed_from_step" in interruptions
    assert len(interruptions.splitlines()) > 1  # capacity was taken away while it ran
