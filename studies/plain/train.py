"""A kernel machine on scikit-learn's handwritten digits: a classic SageMaker script, nothing of the tuner imported.

SageMaker copies /opt/ml/checkpoints to S3 as it changes, and back at each start. The rest is ours: save often, load
what is there, print the metric before saving.
"""

import argparse
import importlib.util
import os
from pathlib import Path

import numpy as np

FEATURES, BATCH = 2000, 4
# The variable stands for the fixed path where a job cannot have an /opt/ml of its own.
CHECKPOINT = Path(os.environ.get("TUNER_CHECKPOINT_DIR", "/opt/ml/checkpoints")) / "state.npz"


def load_digits():
    """Training images and labels, then 500 of each for validation. (Importing sklearn takes seconds.)"""
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    table = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    table = np.random.default_rng(0).permutation(table)
    images, labels = table[:, :64] / 16, table[:, 64].astype(int)
    return images[500:], labels[500:], images[:500], labels[:500]


def random_features(images, gamma):
    """Random Fourier features: a linear model on them is nearly a machine with the kernel exp(-gamma |x - y|^2)."""
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((64, FEATURES)) * np.sqrt(2 * gamma)
    return np.cos(images @ directions + rng.uniform(0, 2 * np.pi, FEATURES)) * np.sqrt(2 / FEATURES)


def load_checkpoint():
    if not CHECKPOINT.exists():
        return {"epoch": 0, "accuracy": 0.0, "weights": np.zeros((FEATURES, 10)), "velocity": np.zeros((FEATURES, 10))}
    with np.load(CHECKPOINT) as saved:
        return dict(saved)


def save_checkpoint(state):
    """All of it or nothing: SageMaker does not upload names that end in .sagemaker-ignore."""
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    unfinished = CHECKPOINT.with_name("state.npz.sagemaker-ignore")
    with unfinished.open("wb") as file:
        np.savez(file, **state)
    unfinished.replace(CHECKPOINT)


def train_epoch(state, images, labels, args):
    order = np.random.default_rng(int(state["epoch"])).permutation(len(images))
    for batch in np.array_split(order, len(order) // BATCH):
        scores = images[batch] @ state["weights"]
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = e / e.sum(axis=1, keepdims=True)
        error[np.arange(len(batch)), labels[batch]] -= 1
        state["velocity"] = args.momentum * state["velocity"] - args.lr * images[batch].T @ error / len(batch)
        state["weights"] = state["weights"] + state["velocity"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--gamma", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()

    images, labels, val_images, val_labels = load_digits()
    images, val_images = random_features(images, args.gamma), random_features(val_images, args.gamma)
    state = load_checkpoint()
    print(f"starting after epoch {state['epoch']}", flush=True)
    while state["epoch"] < args.epochs:
        state["epoch"] = state["epoch"] + 1
        train_epoch(state, images, labels, args)
        state["accuracy"] = np.mean((val_images @ state["weights"]).argmax(axis=1) == val_labels)
        print(f"epoch={state['epoch']} val_accuracy={state['accuracy']}", flush=True)
        save_checkpoint(state)
    # Once more: the last run may have been interrupted after its last checkpoint and before its metric was safe.
    print(f"done: epoch={state['epoch']} val_accuracy={state['accuracy']}", flush=True)


if __name__ == "__main__":
    main()
