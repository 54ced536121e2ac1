"""Gradient boosting on tumours of the breast, written as scripts for SageMaker's XGBoost container are.

Channels, hyperparameters and folders come the way SageMaker gives them; nothing of the tuner is imported. A step is a
boosting round, and the booster itself is the checkpoint: the next round depends on its trees alone. (Not so with
`subsample` or `colsample_*`: their random numbers go on from a state that no booster saves.)
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import xgboost

# The variables stand for the fixed paths where a job cannot have an /opt/ml of its own.
CHECKPOINTS = Path(os.environ.get("TUNER_CHECKPOINT_DIR", "/opt/ml/checkpoints"))
SAVE_EVERY = 5  # rounds: a save and its upload cost time, a lost round does too


def load(channel):
    """CSV as the container wants it: the label first, no header."""
    folder = Path(os.environ.get(f"SM_CHANNEL_{channel.upper()}", f"/opt/ml/input/data/{channel}"))
    tables = [np.loadtxt(file, delimiter=",", ndmin=2) for file in sorted(folder.glob("*.csv"))]
    table = np.concatenate(tables)
    return xgboost.DMatrix(table[:, 1:], label=table[:, 0])


def latest_checkpoint():
    """The newest booster that loads: the last one may be torn."""
    for file in sorted(CHECKPOINTS.glob("round-*.json"), reverse=True):
        try:
            json.loads(file.read_bytes())
        except ValueError:
            continue
        return file
    return None


def save(booster, done):
    """All of it or nothing: SageMaker does not upload names that end in .sagemaker-ignore."""
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    unfinished = CHECKPOINTS / "round.json.sagemaker-ignore"
    unfinished.write_bytes(booster.save_raw("json"))
    unfinished.replace(CHECKPOINTS / f"round-{done:05d}.json")
    for old in sorted(CHECKPOINTS.glob("round-*.json"))[:-3]:
        old.unlink()


def show(booster, validation, done):
    """As the container does: [12]<tab>validation-logloss:0.12345."""
    print(booster.eval(validation, "validation", iteration=done), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--eta", type=float, default=0.3)
    parser.add_argument("--max_depth", type=int, default=6)
    parser.add_argument("--lambda", type=float, default=1.0)
    parser.add_argument("--min_child_weight", type=float, default=1.0)
    parser.add_argument("--num_round", type=int, default=100)
    args = parser.parse_args()
    parameters = {name: value for name, value in vars(args).items() if name != "num_round"}
    parameters |= {"objective": "binary:logistic", "eval_metric": "logloss", "nthread": 1}

    train, validation = load("train"), load("validation")
    newest, done = latest_checkpoint(), 0
    booster = xgboost.Booster(parameters, [train, validation], model_file=newest)
    if newest:
        done = booster.num_boosted_rounds()
        print(f"resuming after round {done}", flush=True)

    while done < args.num_round:
        booster.update(train, done)
        done += 1
        show(booster, validation, done)
        if done % SAVE_EVERY == 0 or done == args.num_round:
            save(booster, done)
    # Once more: the last run may have been interrupted after its last checkpoint and before its metric was safe.
    show(booster, validation, done)

    booster.save_model(Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model")) / "model.json")


if __name__ == "__main__":
    main()
