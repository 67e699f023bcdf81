"""One step in its variants: augmented, in bfloat16, channels last, compiled; and what running out of memory says."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from empirical import augment
from empirical import train as loop
from empirical.augment import PADDING, Draws, crop_flip
from empirical.experiment import Experiment
from empirical.runner import Job, attempt
from empirical.step import batch_of, draws_of, order_of, take_step
from empirical.training import set_up
from ufm.errors import RequestError
from ufm.interrupt import Interrupted, Stop
from ufm.record import Run

CPU = torch.device("cpu")
IMAGES = {"dataset": "digits", "train_per_class": 8, "model": "convnet", "width": 4, "depth": 2, "batch_size": 30, "epochs": 3}
VECTORS = {
    "dataset": "gaussian",
    "train_per_class": 12,
    "test_per_class": 5,
    "width": 6,
    "depth": 1,
    "batch_size": 16,
    "epochs": 3,
}


def setting(base, **changed):
    return Experiment(**(base | changed)).resolved()


# --- augmentation --------------------------------------------------------------------------------------------------


def test_crop_flip_is_the_image_by_image_crop():
    """Against numpy, one image at a time: pad, cut, mirror."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(9, 3, 6, 5), dtype=np.uint8)
    draws = Draws.of(3, 0, 9, CPU)
    for number, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
        top, left = draws.corner[number].tolist()
        cut = padded[:, top : top + 6, left : left + 5]
        cut = cut[:, :, ::-1] if draws.flipped[number] else cut
        np.testing.assert_array_equal(crop_flip(torch.from_numpy(images), draws)[number].numpy(), cut)
    assert bool(draws.flipped.any()) and not bool(draws.flipped.all())


def test_the_draws_cover_their_range_evenly_and_are_an_epochs_own():
    draws = Draws.of(0, 1, 20_000, CPU)
    for axis in (0, 1):
        counts = torch.bincount(draws.corner[:, axis], minlength=2 * PADDING + 1)
        assert len(counts) == 2 * PADDING + 1
        assert counts.double().std(correction=0) < 3 * (20_000 / 9) ** 0.5  # three Poisson deviations
    assert abs(float(draws.flipped.double().mean()) - 0.5) < 0.02
    assert not torch.equal(draws.corner, Draws.of(0, 2, 20_000, CPU).corner)


def test_a_batch_is_augmented_by_its_place_in_the_epoch():
    training = set_up(setting(IMAGES, augment="crop-flip"), 0, CPU)
    order = order_of(training, 0)
    whole, _ = batch_of(training, order, 0, len(order))
    training.step = 1
    first, last = training.clock.bounds(1)
    second, labels = batch_of(training, order[first:last], 0, last - first)
    assert torch.equal(second, whole[first:last]) and torch.equal(labels, training.train.labels[order[first:last]])
    half, _ = batch_of(training, order[first:last], 10, last - first)  # as the second of several processes
    assert torch.equal(half, second[10:])
    assert not torch.equal(second, training.train.batch(order[first:last])[0])
    training.step = training.clock.per_epoch
    assert not torch.equal(draws_of(training).corner, Draws.of(0, 0, len(order), CPU).corner)


def rows_of(root, experiment, stop=None):
    with Run.create(root, "collapse", "step", experiment.setting(), seed=0, environment={}) as run:

        def seen(training):
            inputs = training.test.batch(slice(None))[0].double().sum() + training.train.batch(slice(None))[0].double().sum()
            size = sum(p.detach().double().abs().sum() for p in training.network.parameters())
            place = {"split": "train", "layer": "network", "centres": "self"}
            return [place | {"metric": "inputs", "value": float(inputs)}, place | {"metric": "size", "value": float(size)}]

        loop.run_training(experiment, run, observe=seen, device=CPU, stop=stop)
        return run.rows("metrics.jsonl")


def test_an_augmented_training_resumes_bit_for_bit_and_measures_plain_images(tmp_path, monkeypatch):
    experiment = setting(IMAGES, augment="crop-flip", measure_at="every")
    whole, plain = rows_of(tmp_path / "whole", experiment), rows_of(tmp_path / "plain", setting(IMAGES, measure_at="every"))
    stop, real = Stop(), loop.take_step

    def signalled(training, indices):
        stop.signum = 15 if training.step == 4 else 0  # inside the second epoch
        return real(training, indices)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "take_step", signalled)
        rows_of(tmp_path / "cut", experiment, stop)
    assert rows_of(tmp_path / "cut", experiment) == whole
    inputs = {row["value"] for row in whole if row["metric"] == "inputs"}
    assert len(inputs) == 1 and inputs.pop() == pytest.approx(plain[0]["value"], rel=1e-6)
    assert whole[-3]["value"] != plain[-3]["value"]


def test_vectors_are_not_augmented():
    with pytest.raises(RequestError, match="--augment crop-flip needs images"):
        set_up(setting(VECTORS, augment="crop-flip"), 0, CPU)
    augment.check("none", (5,))


def test_an_augmented_setting_is_another_setting():
    assert "augment" not in setting(IMAGES).setting()
    assert setting(IMAGES, augment="crop-flip").setting()["augment"] == "crop-flip"


# --- arithmetic ----------------------------------------------------------------------------------------------------


def step(training):
    first, last = training.clock.bounds(0)
    return float(take_step(training, order_of(training, 0)[first:last]))


def test_convolutions_are_trained_channels_last():
    training = set_up(setting(IMAGES), 0, CPU)
    seen = []
    (conv, *_) = [m for m in training.network.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
    conv.register_forward_pre_hook(lambda module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last)))
    step(training)
    state = training.optimizer.state[conv.weight]["momentum_buffer"]
    assert seen == [True]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (conv.weight, state))


def test_bfloat16_steps_like_float32_within_its_rounding():
    """The same step in both: bfloat16 keeps 8 bits, weights and their updates stay float32."""
    one, other = (set_up(setting(IMAGES, precision=p), 0, CPU) for p in ("float32", "bf16"))
    assert step(one) == pytest.approx(step(other), rel=0.02)
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert b.dtype == torch.float32 and (a - b).norm() < 0.1 * a.norm()
    assert any(not torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own making
def test_a_compiled_network_steps_like_the_plain_one():
    one, other = (set_up(setting(VECTORS, compile=c), 0, CPU) for c in (False, True))
    for _ in range(2):
        assert step(one) == pytest.approx(step(other), rel=1e-5)
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert other.network.state_dict().keys() == one.network.state_dict().keys()  # checkpoints of either fit the other


# --- out of memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_sentence_with_the_remedy(tmp_path, monkeypatch, error):
    def full(training, indices):
        raise error

    monkeypatch.setattr(loop, "take_step", full)
    outcome = attempt(Job("collapse", setting(VECTORS), 0, str(tmp_path), "cpu"))
    assert outcome.exit == 1 and "out of memory" in outcome.status and "--batch-size (now 16)" in outcome.status
    assert "\n" not in outcome.status and json.dumps(outcome.status)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set"),
            "--deterministic: adaptive_max_pool2d_backward_cuda has no deterministic algorithm on this device; leave",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel"),
            "this build of torch has no code for this GPU; install one that has, or use --device cpu",
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging consider"),
            "the GPU failed (CUDA error: an illegal memory access was encountered); give the same command again",
        ),
    ],
)
def test_what_a_device_cannot_do_is_one_sentence(tmp_path, monkeypatch, error, sentence):
    def fail(training, indices):
        raise error

    monkeypatch.setattr(loop, "take_step", fail)
    outcome = attempt(Job("collapse", setting(VECTORS), 0, str(tmp_path), "cpu"))
    assert outcome.exit == 1 and outcome.status.startswith(f"failed: {sentence}") and "\n" not in outcome.status


@pytest.mark.filterwarnings("ignore")  # of the compiler's own making
def test_a_compiler_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr(config, "force_disable_caches", True)
    outcome = attempt(Job("collapse", setting(VECTORS, compile=True, width=7), 0, str(tmp_path), "cpu"))
    assert outcome.exit == 1 and "--compile: torch.compile failed" in outcome.status and "/nowhere/g++" in outcome.status
    assert "leave --compile out" in outcome.status and "\n" not in outcome.status


def test_another_error_of_torch_is_not_called_a_lack_of_memory(tmp_path, monkeypatch):
    def wrong(training, indices):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "take_step", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        attempt(Job("collapse", setting(VECTORS), 0, str(tmp_path), "cpu"))
