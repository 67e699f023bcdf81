"""The Recorder in a Lightning training: a callback of a dozen lines. Needs `pip install lightning`.

python examples/lightning_callback.py --out runs --epochs 20        (about 20 s)
"""

import argparse

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from plain_loop import clusters, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import empirical


class Record(Callback):
    """Measures `module.model` on train and test at log-spaced epochs."""

    def __init__(self, out, train_loader, test_loader, **options):
        self.out, self.loaders, self.options = out, (train_loader, test_loader), options
        self.recorder = None

    def on_train_start(self, trainer, module):
        """The network is on its device by now."""
        self.recorder = empirical.Recorder(self.out, module.model, *self.loaders, **self.options)
        self.recorder.steps = trainer.global_step  # not 0 when Lightning resumes from a checkpoint
        if trainer.current_epoch == 0:
            self.recorder.epoch(0)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        """One optimisation step."""
        self.recorder.step()

    def on_train_epoch_end(self, trainer, module):
        """Lightning counts epochs from 0."""
        self.recorder.epoch(trainer.current_epoch + 1)

    def on_train_end(self, trainer, module):
        """Mark the run done."""
        self.recorder.close()

    def on_exception(self, trainer, module, exception):
        """Leave the run unfinished: the same call goes on with it."""
        if self.recorder is not None:
            self.recorder.close(finished=False)


class Classifier(LightningModule):
    """A network and its loss."""

    def __init__(self):
        super().__init__()
        self.model = network()

    def training_step(self, batch, batch_idx):
        """Cross-entropy of one batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self.model(inputs), labels)

    def configure_optimizers(self):
        """SGD with momentum and weight decay."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main(out="runs", epochs=20, seed=0):
    """Train and record; returns the run's folder."""
    torch.manual_seed(seed)
    train, test = TensorDataset(*clusters(1000, seed=1)), TensorDataset(*clusters(500, seed=2))
    train_loader, test_loader = DataLoader(train, batch_size=100, shuffle=True), DataLoader(test, batch_size=500)
    record = Record(out, train_loader, test_loader, name="lightning", seed=seed)
    Trainer(max_epochs=epochs, callbacks=[record], logger=False, enable_checkpointing=False, accelerator="cpu").fit(
        Classifier(), train_loader
    )
    return record.recorder.path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
