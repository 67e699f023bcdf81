"""What torch says when the machine fails a training, as one sentence with the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from empirical.experiment import Experiment
from ufm.errors import RunError

# How torch says it of a CPU, of CUDA's libraries and, outside its own allocator, of CUDA itself.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")
_COMPILERS = ("torch._dynamo", "torch._inductor")


@contextlib.contextmanager
def device_errors(experiment: Experiment) -> Iterator[None]:
    """Turn what a device, its memory or its compiler cannot do into a RunError of one sentence; everything else passes."""
    try:
        yield
    except RunError:
        raise
    except MemoryError:
        raise RunError(f"out of memory; {_smaller(experiment)}") from None
    except RuntimeError as error:
        sentence = _sentence(error, experiment)
        if sentence is None:
            raise
        raise RunError(sentence) from None


def _sentence(error: RuntimeError, experiment: Experiment) -> str | None:
    text = str(error)
    first = text.strip().partition("\n")[0][:300]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory on the GPU; {_smaller(experiment)}"
    if any(sign in text for sign in _NO_MEMORY):
        return f"out of memory; {_smaller(experiment)}"
    if type(error).__module__.startswith(_COMPILERS):
        return f"--compile: torch.compile failed ({first}); leave --compile out, or install the compiler it asks for"
    if "does not have a deterministic implementation" in text:
        operation = text.partition(" does not have")[0][-80:]
        return f"--deterministic: {operation} has no deterministic algorithm on this device; leave --deterministic out"
    if "no kernel image is available" in text:
        return "this build of torch has no code for this GPU; install one that has, or use --device cpu"
    if "CUDA error" in text or "CUDNN_STATUS" in text:
        return f"the GPU failed ({first}); give the same command again to go on from the last checkpoint"
    return None


def _smaller(experiment: Experiment) -> str:
    return f"use a smaller --batch-size (now {experiment.batch_size or 'all'}), --width or data set"
