"""Training steps of the whole ResNet-20 in float32 and quantization-aware, and its inference."""
import time

import torch
import torch.ao.quantization as quantization
import torch.nn.functional as F

from protocol import check_close, measure, say_row
from resnet20 import folded_network, images_of, labels_of, trained_network

# Quantizers that training simulates: 8 bits, weights by channel, activations by moving averages.
QAT_BACKEND = "fbgemm"
# Images whose class may differ between float32 and int8.
MOST_DIFFERENT = 2


def train(job, mode):
    """All weights, Adam, the same 64 images in every step."""
    case = job["resnet20"]["training"]
    model = trained_network(job, mode).train()
    x, labels = images_of(job, mode, "batch"), labels_of(job, mode, "batch")
    expected = job["expected"].get("loss before training")
    if expected is not None:
        loss = F.cross_entropy(model(x), labels)
        check_close("loss before training", [float(loss)], expected, 2e-2 * expected[0] + 1e-4)
    step = mode.recorded(training_step(mode, model, x, labels, case["learningRate"]))
    measure(case["case"], job["samples"], step, mode.finish)


def train_qat(job, mode):
    """The same through torch.ao's fake quantizers, with batch norm joined to the convolutions."""
    case = job["resnet20"]["qat"]
    model = trained_network(job, mode).train()
    model.qconfig = quantization.get_default_qat_qconfig(QAT_BACKEND)
    model.fuse(quantization.fuse_modules_qat)
    quantization.prepare_qat(model, inplace=True)
    model.to(mode.device)
    x, labels = images_of(job, mode, "batch"), labels_of(job, mode, "batch")
    step = training_step(mode, model, x, labels, case["learningRate"])
    for _ in range(20):
        step()
    expected = job["expected"].get("loss before training")
    if expected is not None:
        loss = float(F.cross_entropy(model(x), labels))
        if not loss < 2 * expected[0] + 0.1:
            raise ValueError(f"the loss is {loss} after 20 steps that started from {expected[0]}")
    measure(case["case"], job["samples"], mode.recorded(step), mode.finish)


def training_step(mode, model, x, labels, learning_rate):
    """Forward, cross-entropy, backward, Adam."""
    optimizer = mode.adam([{"params": list(model.parameters()), "lr": learning_rate}])
    forward = mode.compiled(model)

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(x), labels).backward()
        optimizer.step()

    return step


def infer(job, mode):
    """From images on the host to logits on the host."""
    forward = mode.compiled(folded_network(job, mode))
    host = images_of(job, mode, "batch").cpu()
    x = mode.put(host)
    results = {}

    def compute():
        with torch.no_grad():
            results["logits"] = forward(x)

    run = mode.recorded(compute)

    def run_from_host():
        if mode.device != "cpu":
            x.copy_(host)
        run()
        return results["logits"].cpu()

    logits = run_from_host()
    # float32 sums in another order, through 20 layers
    check_close("logits", logits, job["expected"].get("logits", logits), 0.2 if mode.tf32 else 1e-2)
    say_times(job["resnet20"]["inference"]["float"], job["samples"], run_from_host)


def infer_int8(job, mode):
    """The network after post-training quantization, on PyTorch's int8 kernels."""
    if mode.device != "cpu":
        raise NotImplementedError("PyTorch's int8 kernels run on the processor")
    x = images_of(job, mode, "batch")
    model = folded_network(job, mode)
    expected = model(x).argmax(1)
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(model, inplace=True)
    with torch.no_grad():
        for images in images_of(job, mode, "train")[:256].split(64):
            model(images)
        quantization.convert(model, inplace=True)
        different = int((model(x).argmax(1) != expected).sum())
        if different > MOST_DIFFERENT:
            raise ValueError(f"{different} of {len(x)} images get another class than in float32")
        say_times(job["resnet20"]["inference"]["int8"], job["samples"], lambda: model(x))


def say_times(case, samples, run):
    """Times calls that wait for their result."""
    times = []
    for sample in range(samples + 2):
        start = time.perf_counter()
        run()
        # The first two calls warm up.
        if sample >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    say_row(case, "time", "ms", times)
