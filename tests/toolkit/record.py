"""Runs SageMaker's training toolkit on the scripts and writes down what it did, for the test to compare with.

    python -m venv toolkit && toolkit/bin/pip install sagemaker-training
    toolkit/bin/python tests/toolkit/record.py > tests/toolkit/toolkit.json

The toolkit needs 300 MB and a compiler, so it is no dependency of the tests: its outcomes are kept, with its version.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

from scripts import SCRIPTS, Script, condensed, lay_out, outcome


def run(script: Script) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ml"
        code = root / "code"
        lay_out(
            script,
            root,
            code,
            {
                "sagemaker_program": json.dumps(script.entry_point),
                "sagemaker_submit_directory": json.dumps(str(code)),
                "sagemaker_region": json.dumps("us-east-1"),
            },
        )
        # the toolkit waits for hosts to be found by name, except here
        environment = {"SAGEMAKER_BASE_DIR": str(root), "SM_STUDIO_LOCAL_MODE": "true"}
        return outcome([sys.executable, "-m", "sagemaker_training.cli.train"], root, environment)


def main() -> None:
    version = importlib.metadata.version("sagemaker-training")
    outcomes = condensed({script.name: run(script) for script in SCRIPTS})
    print(json.dumps({"version": version, "outcomes": outcomes}, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
