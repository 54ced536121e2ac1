"""A small convolutional network on scikit-learn's handwritten digits, in PyTorch: it may be killed at any moment.

What the next epoch depends on is in the checkpoint (weights, optimizer, learning rate schedule) or drawn again from
(seed, epoch): order, shifts and dropout. So a resumed training goes on as if nothing had happened, on a CPU bit for
bit.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tuner.training import Checkpoints, report, until_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_digits():
    """1297 images for training, 500 for validation: 1 x 8 x 8 pixels between 0 and 1."""
    package = Path(importlib.util.find_spec("sklearn").origin).parent  # importing sklearn takes seconds
    table = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.float32)
    table = torch.from_numpy(np.random.default_rng(0).permutation(table)).to(DEVICE)
    images, labels = table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()
    return images[500:], labels[500:], images[:500], labels[:500]


def make_network(width, dropout):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width * 16, 10),
    ).to(DEVICE)


def shifted(images):
    """The whole batch moved by up to one pixel, to learn more from the few images there are."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    return nn.functional.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def train_epoch(network, optimizer, images, labels, batch):
    network.train()
    losses = []
    for chosen in torch.randperm(len(images)).split(batch):
        loss = nn.functional.cross_entropy(network(shifted(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(network, images, labels):
    network.eval()
    return (network(images).argmax(dim=1) == labels).float().mean().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    images, labels, val_images, val_labels = load_digits()
    network = make_network(args.width, args.dropout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    # over all epochs, whatever this run may be told to stop at: else a resumed schedule is another one
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}

    checkpoints = Checkpoints()
    latest, done = checkpoints.latest(), 0
    if latest:
        saved = torch.load(latest.path / "state.pt", map_location=DEVICE, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        done = latest.step
        print(f"resuming after epoch {done}")

    for epoch in range(done + 1, until_step(args.epochs) + 1):
        torch.manual_seed(args.seed * 1_000_003 + epoch)
        loss = train_epoch(network, optimizer, images, labels, args.batch)
        schedule.step()
        report(epoch, val_accuracy=accuracy(network, val_images, val_labels), train_loss=loss)
        with checkpoints.save(epoch) as folder:
            torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "state.pt")


if __name__ == "__main__":
    main()
