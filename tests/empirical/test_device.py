"""What holds on a GPU, tried without one: no step waits for the device, nothing is left on the CPU, precision is full."""

import pytest
import torch
from torch import nn

from empirical import optimise, stacked, store, training
from empirical.data.split import Split
from empirical.experiment import Experiment
from empirical.stacked import Stack
from empirical.step import GPU_LOSSES, LossTrace, order_of, set_step_size, take_step
from empirical.store import full_float32
from empirical.training import set_up

# The meta device computes shapes alone: reading a number from it raises, as does mixing it with a tensor of the CPU.
META = torch.device("meta")
SMALL = {"dataset": "digits", "train_per_class": 8, "model": "convnet", "width": 16, "depth": 1, "batch_size": 30, "epochs": 3}
VARIANTS = [
    {},
    {"model": "mlp"},
    {"augment": "crop-flip"},
    {"optimizer": "adam"},
    {"optimizer": "adamw", "decay": "weights"},
    {"loss": "mse"},
    {"loss": "mse-mean"},
    {"loss": "smoothing"},
    {"loss": "focal"},
    {"head": "etf"},
    {"head": "deep", "head_depth": 2, "head_activation": "relu"},
    {"norm": "none"},
]


@pytest.fixture(autouse=True)
def plain_optimisers(monkeypatch):
    """The fused kernels have no meta form; what surrounds them is the same."""
    for name in ("SGD", "Adam", "AdamW"):
        kind = getattr(torch.optim, name)
        monkeypatch.setattr(optimise, name, lambda groups, kind=kind, fused=True, **named: kind(groups, foreach=False, **named))


def setting(**changed):
    return Experiment(**(SMALL | changed)).resolved()


@pytest.mark.parametrize("changed", VARIANTS, ids=str)
def test_a_step_reads_nothing_from_the_device_and_leaves_nothing_on_the_cpu(changed):
    trained = set_up(setting(**changed), 0, META)
    trace, order = LossTrace(META), order_of(trained, 0)
    assert trace.length == GPU_LOSSES and order.device == META
    for position in range(trained.clock.per_epoch):
        set_step_size(trained)
        first, last = trained.clock.bounds(position)
        loss = take_step(trained, order[first:last])
        assert loss.dtype == torch.float32 and not trace.add(loss)
        trained.step += 1
    kept = [value for state in trained.optimizer.state.values() for key, value in state.items() if key != "step"]
    assert kept and {t.device for t in [*trained.network.parameters(), *trained.network.buffers(), *kept]} == {META}


@pytest.mark.parametrize("changed", VARIANTS, ids=str)
def test_a_stacked_step_reads_nothing_from_the_device_either(changed, monkeypatch):
    monkeypatch.setattr(stacked, "_shared", torch.stack)  # whether inputs are equal is read once, when a stack is made
    stack = Stack([set_up(setting(**changed), seed, META) for seed in range(3)])
    losses, order = stacked._Losses(stack), stack.order(0)
    assert order.device == META and losses.length == GPU_LOSSES
    for _ in range(2):
        losses.add(stack.take_step(order))
    stack.unload()
    assert {t.device for one in stack.trainings for t in one.network.parameters()} == {META}


# --- torch.compile -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the compiler's own making
def test_looks_and_seeds_share_what_was_compiled_and_many_settings_are_all_compiled(monkeypatch):
    """Torch gives up, in silence, after eight versions of one function in a process: two batch sizes of five settings."""
    counted = []

    def backend(graph, inputs):
        counted.append(graph)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **named: original(forward, backend=backend, **named))
    for number, width in enumerate(range(5, 11), start=1):
        for seed in (0, 1):
            trained = set_up(setting(model="mlp", width=width, depth=width - 4, compile=True), seed, torch.device("cpu"))
            order = order_of(trained, 0)
            for first, last in (trained.clock.bounds(0), trained.clock.bounds(trained.clock.per_epoch - 1)):
                take_step(trained, order[first:last])
                with torch.no_grad():  # what a look does
                    trained.network.eval()
                    trained.network(trained.test.batch(slice(0, 4))[0])
                    trained.network.train()
        assert len(counted) == 2 * number
    training._COMPILED.clear()
    torch.compiler.reset()


# --- random states -------------------------------------------------------------------------------------------------


def test_dropout_of_a_seed_does_not_depend_on_what_was_trained_before():
    drawn = []
    for noise in (0, 17):
        torch.rand(noise)
        set_up(setting(), 3, torch.device("cpu"))
        drawn.append(torch.rand(5))
    set_up(setting(), 4, torch.device("cpu"))
    assert torch.equal(*drawn) and not torch.equal(drawn[0], torch.rand(5))


# --- precision -----------------------------------------------------------------------------------------------------

SWITCHES = {
    "products": torch.get_float32_matmul_precision,
    "products (old)": lambda: torch.backends.cuda.matmul.allow_tf32,
    "products (new)": lambda: torch.backends.cuda.matmul.fp32_precision,
    "convolutions (old)": lambda: torch.backends.cudnn.allow_tf32,
    "convolutions (new)": lambda: torch.backends.cudnn.conv.fp32_precision,
    "products on a CPU": lambda: torch.backends.mkldnn.matmul.fp32_precision,
    "convolutions on a CPU": lambda: torch.backends.mkldnn.conv.fp32_precision,
}


def switches():
    return {name: read() for name, read in SWITCHES.items()}


@pytest.fixture
def restored_switches(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for place in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.cuda.matmul):
        place.fp32_precision = "none"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has the old names only")
@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
@pytest.mark.parametrize("rounded", [True, False])
def test_old_and_new_names_of_the_precision_agree_in_a_look_and_come_back(restored_switches, asked, rounded):
    """Reading an old name raises while it disagrees with the new one, so a network with a compiled part could not be measured."""
    torch.set_float32_matmul_precision(asked)
    torch.backends.cudnn.allow_tf32 = rounded
    before = switches()
    with full_float32():
        assert switches() == dict(zip(SWITCHES, ["highest", False, "ieee", False, "ieee", "ieee", "ieee"], strict=True))
    assert switches() == before


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no such switch")
def test_a_cpu_that_may_round_products_measures_in_full_float32():
    """`set_float32_matmul_precision("medium")`, usual with trainers, lets a CPU with bfloat16 units use them."""
    torch.manual_seed(0)
    a, b = torch.randn(300, 300), torch.randn(300, 300)
    exact = a @ b
    try:
        torch.set_float32_matmul_precision("medium")
        with full_float32():
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert torch.equal(a @ b, exact)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = "none"


# --- memory --------------------------------------------------------------------------------------------------------


def test_what_torch_holds_of_a_gpus_memory_counts_as_free(monkeypatch):
    sizes = {"mem_get_info": (3, 80), "memory_reserved": 70, "memory_allocated": 20}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert store.free_memory(torch.device("cuda")) == 3 + 70 - 20


def test_large_images_are_measured_in_smaller_batches_on_a_gpu():
    """The same number of pixels at once; a CPU's batches, and so its sums, stay as they were."""
    network = nn.Conv2d(3, 4, 3)
    sides = {32: 1000, 96: 606, 224: 111, 5000: 1}
    for side, batch in sides.items():
        images = Split(torch.zeros(1, 1, 1, 1).expand(2, 3, side, side), torch.zeros(2, dtype=torch.int64), 2)
        assert store._batch_size(network, torch.device("cuda"), 1000, images) == batch
        assert store._batch_size(network, torch.device("cpu"), 1000, images) == store.CPU_CONV_BATCH
    assert store._batch_size(nn.Linear(2, 2), torch.device("cpu"), 1000, images) == 1000
