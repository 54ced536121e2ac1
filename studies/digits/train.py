"""A multi-layer perceptron on scikit-learn's handwritten digits, in plain numpy: it may be killed at any moment.

Everything that the next epoch depends on is either in the checkpoint (weights, Adam's moments) or drawn again from
(seed, epoch): so a resumed training goes on bit for bit as if nothing had happened.
"""

import argparse
import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np

from tuner.training import Checkpoints, report, until_step

BATCH = 16
COPIES = 5  # of each image in an epoch, each shifted by its own chance


def load_digits():
    """1297 images for training, 500 for validation: 8 x 8 pixels between 0 and 1. (Importing sklearn takes seconds.)"""
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    table = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.float32)
    table = np.random.default_rng(0).permutation(table)
    images, labels = table[:, :64].reshape(-1, 8, 8) / 16, table[:, 64].astype(int)
    return images[500:], labels[500:], images[:500].reshape(-1, 64), labels[:500]


def shifted(images, rng):
    """Move each image by up to one pixel, to learn more from the few there are; as rows of 64."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))
    down, right = rng.integers(0, 3, size=(2, len(images)))
    return windows[np.arange(len(images)), down, right].reshape(-1, 64)


def fresh_state(hidden, layers, seed):
    rng = np.random.default_rng(seed)
    sizes = [64, *[hidden] * layers, 10]
    state = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        state[f"w{i}"] = (rng.standard_normal((n_in, n_out)) * np.sqrt(2 / n_in)).astype(np.float32)
        state[f"b{i}"] = np.zeros(n_out, np.float32)
    state |= {f"{moment}_{name}": np.zeros_like(value) for name, value in state.items() for moment in ("m", "v")}
    return state | {"updates": np.array(0)}


def forward(state, x, layers, activation):
    """The inputs of each layer, and the class probabilities."""
    inputs = [x]
    for i in range(layers):
        z = inputs[-1] @ state[f"w{i}"] + state[f"b{i}"]
        inputs.append(np.tanh(z) if activation == "tanh" else np.maximum(z, 0))
    z = inputs[-1] @ state[f"w{layers}"] + state[f"b{layers}"]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return inputs, e / e.sum(axis=1, keepdims=True)


def gradients(state, inputs, probabilities, labels, activation):
    delta = probabilities
    delta[np.arange(len(labels)), labels] -= 1
    delta /= len(labels)
    for i in reversed(range(len(inputs))):
        yield f"w{i}", inputs[i].T @ delta
        yield f"b{i}", delta.sum(axis=0)
        slope = 1 - inputs[i] ** 2 if activation == "tanh" else inputs[i] > 0
        delta = (delta @ state[f"w{i}"].T) * slope


def adam(state, name, gradient, lr, weight_decay):
    t = int(state["updates"])
    m, v = state[f"m_{name}"], state[f"v_{name}"]
    m += 0.1 * (gradient - m)
    v += 0.001 * (gradient**2 - v)
    step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    state[name] -= lr * (step + weight_decay * state[name])


def train_epoch(state, images, labels, epoch, args):
    """One pass over shifted copies of the images in a new order; the mean loss."""
    rng = np.random.default_rng([args.seed, epoch])
    order = rng.permutation(np.tile(np.arange(len(images)), COPIES))
    x, y = shifted(images[order], rng), labels[order]
    losses = []
    for start in range(0, len(x), BATCH):
        batch, wanted = x[start : start + BATCH], y[start : start + BATCH]
        inputs, probabilities = forward(state, batch, args.layers, args.activation)
        losses.append(-np.log(probabilities[np.arange(len(wanted)), wanted] + 1e-9).mean())
        state["updates"] += 1
        for name, gradient in list(gradients(state, inputs, probabilities, wanted, args.activation)):
            adam(state, name, gradient, args.lr, args.weight_decay)
    return np.mean(losses)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--activation", choices=["relu", "tanh"], default="relu")
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    images, labels, val_images, val_labels = load_digits()
    checkpoints = Checkpoints()
    latest = checkpoints.latest()
    if latest:
        with np.load(latest.path / "state.npz") as saved:
            state, done = dict(saved), latest.step
        print(f"resuming after epoch {done}")
    else:
        state, done = fresh_state(args.hidden, args.layers, args.seed), 0

    for epoch in range(done + 1, until_step(args.epochs) + 1):
        loss = train_epoch(state, images, labels, epoch, args)
        _, probabilities = forward(state, val_images, args.layers, args.activation)
        accuracy = np.mean(probabilities.argmax(axis=1) == val_labels)
        report(epoch, val_accuracy=accuracy, train_loss=loss)
        with checkpoints.save(epoch) as folder:
            np.savez(folder / "state.npz", **state)


if __name__ == "__main__":
    main()
