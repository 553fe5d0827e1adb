"""Block-wise distillation as torch.ao lets one write it: each residual block, batch norm folded, with 8-bit fake
quantizers, learns the float32 block's outputs from the teacher's cached inputs."""
import copy
import time

import torch
import torch.ao.quantization as quantization
import torch.nn as nn
import torch.nn.functional as F

from protocol import say_row
from resnet20 import images_of, trained_network
from training import QAT_BACKEND

BATCH = 64
# Steps between two looks at the clock, as in stilla.
STEPS_PER_LOOK = 10
# A student's error, relative to the variance of its target, that shows that something is wrong.
LARGEST_ERROR = 0.05


def distill_blocks(job, mode):
    """All blocks, front to back."""
    case = job["resnet20"]["layerwise"]
    if mode.compiles:
        train_all(job, mode, steps=3)
    times, seconds = train_all(job, mode, case["steps"])
    for i, stage in enumerate(case["stages"]):
        say_row(stage, "time", "ms", [ms for block in times[3 * i : 3 * i + 3] for ms in block])
    say_row(case["case"], "time", "s", [seconds], "teacher's activations included")


def train_all(job, mode, steps):
    """Milliseconds a step of each block, and the seconds of all."""
    teacher = trained_network(job, mode).eval()
    images = images_of(job, mode, "train")[: job["resnet20"]["layerwise"]["images"]]
    x = outputs(teacher.stem, images)
    times = []
    mode.finish()
    start = time.perf_counter()
    for i, block in enumerate(teacher.blocks):
        y = outputs(block, x)
        block_times, error = train_block(mode, student_of(block, mode), x, y, steps)
        if not error < LARGEST_ERROR:
            raise ValueError(f"block {i} ends with a relative error of {error}")
        times.append(block_times)
        x = y
    mode.finish()
    return times, time.perf_counter() - start


def outputs(function, x):
    """Results for many images, a batch at a time."""
    with torch.no_grad():
        return torch.cat([function(part) for part in x.split(BATCH)])


def student_of(block, mode):
    """A fake-quantized copy of a block."""
    student = copy.deepcopy(block)
    student.fuse(quantization.fuse_modules)
    student = nn.Sequential(quantization.QuantStub(), student.train())
    student.qconfig = quantization.get_default_qat_qconfig(QAT_BACKEND)
    for module in student:
        module.qconfig = student.qconfig
    return quantization.prepare_qat(student).to(mode.device)


def train_block(mode, student, x, y, steps):
    """Milliseconds a step, one for every look but the first, and the last error relative to the target's variance."""
    optimizer = mode.adam([{"params": list(student.parameters()), "lr": 1e-3}])
    forward = mode.compiled(student)
    loss = torch.zeros((), device=mode.device)

    def step(inputs, targets):
        optimizer.zero_grad(set_to_none=True)
        value = F.mse_loss(forward(inputs), targets)
        value.backward()
        loss.copy_(value.detach())
        optimizer.step()

    batches = list(zip(x.split(BATCH), y.split(BATCH)))
    run = mode.recorded(step, *batches[0])
    times = []
    start = None
    for done in range(steps):
        if done % STEPS_PER_LOOK == 0:
            mode.finish()
            now = time.perf_counter()
            if done > STEPS_PER_LOOK:
                times.append(1e3 * (now - start) / STEPS_PER_LOOK)
            start = now
        run(*batches[done % len(batches)])
    return times, float(loss) / float(y.var())
