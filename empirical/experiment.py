"""`Experiment`: one training, fully described. Flags, TOML and keywords are read from these fields; no torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from empirical.data import DATASETS
from empirical.models import HEADS, TIMM, check_name
from ufm.errors import RequestError
from ufm.spec import option
from ufm.tables import find

if TYPE_CHECKING:
    from empirical.data.source import Request

VERSION = 1  # of the definition: raised when the same setting would give other numbers
# Options that came after the first runs: at these values they stay out of the setting, so that those runs keep their folders.
ADDED = {
    "init_scale": None,
    "ood": None,
    "imbalance_shape": "step",
    "head_activation": "linear",
    "augment": "none",
    "ranks": "ends",
}
LOSSES = ("ce", "mse", "mse-mean", "smoothing", "focal")
OPTIMIZERS = ("sgd", "adam", "adamw", "lbfgs")
AUGMENTS = ("none", "crop-flip")
SCHEDULES = ("thirds", "step", "cosine", "none")
STEP_SIZES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "lbfgs": 1.0}
SIZES = {"mlp": (128, 4), "convnet": (16, 3)}  # (width, depth) when not given


@dataclass(frozen=True)
class Experiment:
    """Data, model, loss, optimiser, budget and what is measured. Every field is an option of `empirical run`."""

    dataset: str = option("digits", "data set (see 'empirical list'), or folder:PATH")
    train_per_class: int | None = option(None, "train samples kept per class (all)", kind="int", low=1, grid=True)
    imbalance: float = option(1.0, "the minority classes keep 1/IMBALANCE of the samples", low=1.0, grid=True)
    minority: int = option(0, "number of minority classes (the last ones)", low=0, grid=True)
    imbalance_shape: str = option(
        "step", "step: the last --minority classes; long-tail: class k keeps IMBALANCE^(-k/(K-1))", choices=("step", "long-tail")
    )
    label_noise: float = option(0.0, "share of wrong train labels", low=0.0, high=1.0, grid=True)
    coarse: tuple[int, ...] | None = option(
        None, "sizes of class groups trained as one class: 5,5", kind="ints", low=1, grid=True
    )
    classes: int | None = option(None, "K of a generated data set", kind="int", low=2, high=10000, grid=True)
    input_dim: int | None = option(None, "input dimension of a generated data set", kind="int", low=1, high=10**6, grid=True)
    signal: float | None = option(None, "size of the class means of a generated data set", kind="float", low=0.0, grid=True)
    noise: float | None = option(None, "noise deviation of a generated data set", kind="float", low=0.0, grid=True)
    test_per_class: int | None = option(None, "test samples per class of a generated data set", kind="int", low=1, grid=True)
    model: str = option("mlp", "architecture (see 'empirical list')")
    width: int | None = option(
        None, "units per hidden layer (mlp 128; convnet: first channels, 16)", kind="int", low=1, grid=True
    )
    depth: int | None = option(None, "hidden layers (mlp 4; convnet: blocks, 3)", kind="int", low=0, high=1000, grid=True)
    norm: str = option("batch", "normalisation", choices=("batch", "none"))
    head: str = option("linear", "classifier: linear, fixed at a simplex ETF or a polygon, or several maps", choices=HEADS)
    head_depth: int = option(1, "linear maps of a deep head, the classifier included", low=1, high=100, grid=True)
    head_activation: str = option("linear", "between the maps of a deep head: nothing, or relu", choices=("linear", "relu"))
    bias: bool = option(True, "a bias in the classifier")
    loss: str = option("ce", "training loss (mse: sum over classes / 2)", choices=LOSSES)
    smoothing: float = option(0.1, "label smoothing of --loss smoothing", low=0.0, high=1.0, grid=True)
    focal_gamma: float = option(2.0, "gamma of --loss focal", low=0.0, high=100.0, grid=True)
    optimizer: str = option("sgd", "optimiser", choices=OPTIMIZERS)
    lr: float | None = option(
        None, "step size (sgd .1, adam and adamw .001, lbfgs 1)", kind="float", low=0.0, strict=True, grid=True
    )
    momentum: float = option(0.9, "momentum of sgd", low=0.0, high=0.9999, grid=True)
    weight_decay: float = option(5e-4, "weight decay", low=0.0, grid=True)
    decay: str = option("all", "what the weight decay acts on: all parameters, or weights only", choices=("all", "weights"))
    schedule: str = option("thirds", "step size over time (thirds: /10 at 1/3 and 2/3)", choices=SCHEDULES)
    step_epochs: int = option(40, "epochs between reductions of --schedule step", low=1, grid=True)
    step_factor: float = option(0.1, "factor of each reduction of --schedule step", low=0.0, high=1.0, strict=True, grid=True)
    epochs: int | None = option(None, "passes over the train data (200 if --steps is not given)", kind="int", low=1, grid=True)
    steps: int | None = option(None, "steps, instead of --epochs", kind="int", low=1, grid=True)
    batch_size: int | None = option(None, "samples per step (128; lbfgs: all)", kind="int", low=1, grid=True)
    augment: str = option("none", "augmentation of the training batches (never of what is measured)", choices=AUGMENTS)
    measure_at: str = option("log", "epochs measured: log, papyan, every, or a list such as 1,10,100")
    layers: str = option("last", "layers measured: last, all, or names with commas")
    ranks: str = option(
        "ends", "when VCI and the ranks of features are measured: at both ends, or every time", choices=("ends", "every")
    )
    match_counts: bool = option(False, "measure train on as many samples per class as test")
    ood: str | None = option(None, "out-of-distribution set for NC5: a data set, folder:PATH or noise", kind="str")
    precision: str = option("float32", "arithmetic of the training", choices=("float32", "bf16"))
    compile: bool = option(False, "compile the network with torch.compile")
    deterministic: bool = option(False, "only deterministic algorithms (GPU: slower)")
    init_scale: float | None = option(
        None, "factor on the initial weights (1)", kind="float", low=0.0, high=1000.0, strict=True, grid=True
    )

    def resolved(self) -> Experiment:
        """Return the experiment with every default that depends on another field filled in; RequestError if they clash."""
        check_name(self.model)
        if not self.dataset.startswith("folder:"):
            find(DATASETS, self.dataset, "data set")
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"--epochs {self.epochs} and --steps {self.steps} exclude each other; give one")
        if self.optimizer == "lbfgs" and self.batch_size is not None:
            raise RequestError(f"--batch-size {self.batch_size}: lbfgs takes all samples at every step; leave it out")
        if self.optimizer == "lbfgs" and self.precision != "float32":
            raise RequestError(f"--precision {self.precision}: the line search of lbfgs needs float32; use --precision float32")
        width, depth = SIZES.get(self.model, (None, None))
        if width is None and (self.width is not None or self.depth is not None):
            raise RequestError(f"--model {self.model} has a fixed --width and --depth; leave them out")
        return dataclasses.replace(
            self,
            lr=STEP_SIZES[self.optimizer] if self.lr is None else self.lr,
            width=width if self.width is None else self.width,
            depth=depth if self.depth is None else self.depth,
            epochs=200 if self.epochs is None and self.steps is None else self.epochs,
            batch_size=128 if self.batch_size is None and self.optimizer != "lbfgs" else self.batch_size,
        )

    @property
    def moments(self) -> dict[str, str]:
        """Flag -> when the network is looked at, each as `empirical.schedule.measuring_steps` reads it."""
        return {"--measure-at": self.measure_at}

    def samples_of(self, inputs: int) -> int:
        """Return the number of samples of the loss that `inputs` train inputs make: one each, unless a study groups them."""
        return inputs

    @property
    def sizes(self) -> tuple[str, ...]:
        """Flags of what makes a training large, for the message that it does not fit."""
        return "--width", "--depth", "--batch-size"

    def stages(self, per_epoch: int) -> tuple[int, ...]:
        """Return the steps where the stages of the training begin, and its last step; the schedule starts anew with each."""
        return 0, self.steps or per_epoch * int(self.epochs or 1)

    def data_request(self) -> Request:
        """Return what the data set is asked for; a study whose data has further options adds them."""
        from empirical.data.source import Request

        return Request(
            test_per_class=self.test_per_class,
            classes=self.classes,
            input_dim=self.input_dim,
            signal=self.signal,
            noise=self.noise,
        )

    @property
    def recipe(self) -> str:
        """Name, "module:object", of the `empirical.training.Recipe` of a study that trains in a way of its own; else ""."""
        return ""

    @property
    def references(self) -> tuple[str, ...]:
        """Keys of `ufm.references` for the method of a study, which the result names for `ufm cite`."""
        return ()

    def setting(self) -> dict[str, Any]:
        """Return what identifies the training, for the run folder's hash."""
        fields = dataclasses.asdict(self)
        for name, default in ADDED.items():
            if fields[name] == default:
                del fields[name]
        return {"version": VERSION, **fields}

    @property
    def name(self) -> str:
        """Name of the run folder: data set and model."""
        return f"{self.dataset.partition(':')[0]}-{self.model.removeprefix(TIMM)}"


def from_setting(spec: type, setting: dict[str, Any]) -> Any:
    """Return the experiment that `setting()` described; RequestError when a newer version wrote it."""
    names = {f.name for f in dataclasses.fields(spec)}
    unknown = sorted(set(setting) - names - {"version"})
    if unknown or setting.get("version", VERSION) > VERSION:
        raise RequestError(f"the run's setting has {unknown or 'version'} this version does not know; install a newer ufm")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in setting.items() if k in names}
    return spec(**values)
