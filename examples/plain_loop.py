"""A plain PyTorch loop, recorded: five added lines (marked), give a run folder that `compare` draws.

python examples/plain_loop.py --out runs --epochs 60        (about 10 s on one core)
compare plot nc runs/measure/plain-* -o nc.png
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import empirical  # <-


def clusters(samples, seed, classes=10, dim=64, noise=2.3):
    """Gaussian clusters about fixed random centres: put your own data set here."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(samples) % classes
    return centres[labels] + noise * torch.randn(samples, dim, generator=torch.Generator().manual_seed(seed)), labels


def network(dim=64, classes=10, width=128):
    """Two blocks and a classifier: put your own network here."""
    return nn.Sequential(
        *(nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
        nn.Linear(width, classes),
    )


def main(out="runs", epochs=60, seed=0):
    """Train, record, and print the last measurements."""
    torch.manual_seed(seed)
    train, test = TensorDataset(*clusters(1000, seed=1)), TensorDataset(*clusters(500, seed=2))
    train_loader, test_loader = DataLoader(train, batch_size=100, shuffle=True), DataLoader(test, batch_size=500)
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "epochs": epochs}
    with empirical.Recorder(out, model, train_loader, test_loader, name="plain", seed=seed, config=settings) as recorder:  # <-
        recorder.epoch(0)  # <- the untrained network
        for epoch in range(1, epochs + 1):
            model.train()
            for inputs, labels in train_loader:
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimiser.step()
                recorder.step()  # <-
            recorder.epoch(epoch)  # <-
    rows = empirical.measure(model, train_loader, test_loader, layers="last")
    print(rows)
    print(f"written to {recorder.path}")
    return recorder.path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
