"""stilla's default recipe in plain PyTorch: unit after unit learns the teacher's outputs from its own front's.

Latent weights and logarithms of scales learn through straight-through rounding (LSQ, Esser 2020); the error is measured
behind the unit's output quantizer and divided by the variance of the target; Adam with a cosine schedule. The job says
what the bits decide: learning rates, and whether batch norm is folded before training or live in the first steps.
"""
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

from protocol import say_row
from resnet20 import folded_network, images_of, labels_of, shortcut, trained_network

FIRST_LAST_BITS = 8
WARMUP = 0.05
MOMENTUM = 0.05
# Exponent of the error by which scales are searched (BRECQ, QDrop).
POWER = 2.4
# Activations that are looked at to choose a range.
RANGE_SAMPLES = 256


class QuantizedWeight(torch.autograd.Function):
    """clamp(round(w / scale), low, high) * scale, one scale an output channel."""

    @staticmethod
    def forward(context, w, log_scale, low, high):
        scale = log_scale.exp()
        ratio = w / scale
        code = ratio.round().clamp(low, high)
        inside = (ratio > low - 0.5) & (ratio < high + 0.5)
        context.save_for_backward((code - ratio * inside) * scale, inside)
        return code * scale

    @staticmethod
    def backward(context, gradient):
        term, inside = context.saved_tensors
        rows = (gradient * term).flatten(1).sum(1)
        return gradient * inside, rows.view(-1, *[1] * (term.dim() - 1)), None, None


class QuantizedActivation(torch.autograd.Function):
    """ReLU and clamp(round(x / scale), 0, top) * scale in one.

    With v = x / scale, dx = dy where 0 < v < top, and dL/dlog_scale = sum(dy * y) - scale * sum(dx * v): one pass over
    memory and two dot products.
    """

    @staticmethod
    def forward(context, x, log_scale, top):
        scale = log_scale.exp()
        ratio = x / scale
        y = ratio.clamp(0, top).round_().mul_(scale)
        context.save_for_backward(ratio, y, scale)
        context.top = top
        return y

    @staticmethod
    def backward(context, dy):
        ratio, y, scale = context.saved_tensors
        dx = torch.ops.aten.hardtanh_backward(dy, ratio, 0, context.top)
        return dx, dot(dy, y) - scale * dot(dx, ratio), None


def dot(a, b):
    """Sum of the products of two tensors of one shape."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class Layer(nn.Module):
    """A convolution or linear layer with quantized weights, and its batch norm if that is live."""

    def __init__(self, source, batch_norm, bits):
        super().__init__()
        weight = source.weight.detach().clone()
        log_scale, self.low, self.high = search_grid(weight, bits)
        self.latent = nn.Parameter(weight)
        self.log_scale = nn.Parameter(log_scale)
        self.stride = getattr(source, "stride", None)
        self.live = False
        self.gamma = None
        if batch_norm is None:
            self.bias = nn.Parameter(source.bias.detach().clone())
            return
        self.gamma = nn.Parameter(batch_norm.weight.detach().clone())
        self.bias = nn.Parameter(batch_norm.bias.detach().clone())
        self.register_buffer("mean", batch_norm.running_mean.clone())
        self.register_buffer("variance", batch_norm.running_var.clone())

    def forward(self, x):
        """Before any activation."""
        w = QuantizedWeight.apply(self.latent, self.log_scale, self.low, self.high)
        if self.stride is None:
            return F.linear(x, w, self.bias)
        if self.gamma is None:
            return F.conv2d(x, w, self.bias, self.stride, 1)
        y = F.conv2d(x, w, None, self.stride, 1)
        return F.batch_norm(
            y, self.mean, self.variance, self.gamma, self.bias, self.live and self.training, MOMENTUM
        )


class Activation(nn.Module):
    """ReLU with an unsigned quantizer behind it."""

    def __init__(self, values, bits):
        super().__init__()
        self.top = 2**bits - 1
        self.log_scale = nn.Parameter(search_scale(values, self.top).log())

    def forward(self, x):
        """Any shape."""
        return QuantizedActivation.apply(x, self.log_scale, self.top)


class Stem(nn.Module):
    """The first layer."""

    def __init__(self, layer, activation):
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x):
        """The quantized image to the first block's input."""
        return self.activation(self.layer(x))


class ResidualBlock(nn.Module):
    """Two layers and a shortcut."""

    def __init__(self, layers, activations):
        super().__init__()
        self.layers, self.activations = nn.ModuleList(layers), nn.ModuleList(activations)

    def forward(self, x):
        """One block's input to the next's."""
        y = self.layers[1](self.activations[0](self.layers[0](x)))
        return self.activations[1](y + shortcut(x, y.shape[1]))


class Head(nn.Module):
    """The mean over the pixels and the linear layer."""

    def __init__(self, layer, activation):
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x):
        """The last block's output to logits."""
        return self.layer(self.activation(x.mean((2, 3))))


def run_recipe(job, mode, recipe):
    """Trains every unit, from a calibrated start; the clock runs while it trains."""
    if mode.compiles:
        distill(job, mode, {**recipe, "steps": 4, "liveSteps": min(2, recipe["liveSteps"])})
    student, quantize, seconds = distill(job, mode, recipe)
    say_row(recipe["case"], "time", "s", [seconds], "training with its held-out checks, from a calibrated start")
    x = quantize(images_of(job, mode, "test"))
    for unit in student:
        x = outputs(unit, x)
    top1 = 100 * float((x.argmax(1) == labels_of(job, mode, "test")).float().mean())
    if not top1 > 50:
        raise ValueError(f"the student gets only {top1:.1f} % of the test images right")
    say_row(recipe["case"], "top-1", "%", [top1])


def distill(job, mode, recipe):
    """The student's units, the quantizer of its input, and the seconds of training."""
    units = teacher_units(folded_network(job, mode))
    train, held_out = images_of(job, mode, "train"), images_of(job, mode, "held_out")
    student = make_student(job, mode, recipe, train[:RANGE_SAMPLES])
    quantize = image_quantizer(train)
    mode.finish()
    start = time.perf_counter()
    rows = {"teacher": train, "student": quantize(train)}
    judged = {"teacher": held_out, "student": quantize(held_out)}
    for teacher_unit, unit in zip(units, student):
        targets, judged_targets = (outputs(teacher_unit, part["teacher"]) for part in (rows, judged))
        before = error_of(unit, judged["student"], judged_targets)
        state = {name: value.clone() for name, value in unit.state_dict().items()}
        train_unit(mode, unit, rows["student"], targets, recipe)
        if not error_of(unit, judged["student"], judged_targets) < before:
            unit.load_state_dict(state)
        rows = {"teacher": targets, "student": outputs(unit, rows["student"])}
        judged = {"teacher": judged_targets, "student": outputs(unit, judged["student"])}
    mode.finish()
    return student, quantize, time.perf_counter() - start


def teacher_units(teacher):
    """The float32 network, cut where the student is."""
    return [teacher.stem, *teacher.blocks, lambda x: teacher.linear(x.mean((2, 3)))]


def make_student(job, mode, recipe, images):
    """The units with the weights of the teacher, the best grid for each channel and calibrated activations."""
    bits, activation_bits = recipe["weightBits"], recipe["activationBits"]
    folded = recipe["batchNorm"] == "folded"
    teacher = folded_network(job, mode)
    source = teacher if folded else trained_network(job, mode).eval()

    def layer(holder, number, layer_bits):
        convolution, batch_norm = getattr(holder, f"conv{number}"), getattr(holder, f"bn{number}")
        if folded:
            # A fused convolution is followed by its ReLU, or stands alone.
            return Layer(convolution[0] if isinstance(convolution, nn.Sequential) else convolution, None, layer_bits)
        return Layer(convolution, batch_norm, layer_bits)

    with torch.no_grad():
        x = teacher.stem(images)
        units = [Stem(layer(source, 1, FIRST_LAST_BITS), Activation(x, activation_bits))]
        for i, (block, original) in enumerate(zip(teacher.blocks, source.blocks)):
            inner = block.relu1(block.bn1(block.conv1(x)))
            x = block(x)
            # The last block's output is read by the mean and the last layer only.
            output_bits = FIRST_LAST_BITS if i == len(teacher.blocks) - 1 else activation_bits
            activations = [Activation(inner, activation_bits), Activation(x, output_bits)]
            units.append(ResidualBlock([layer(original, 1, bits), layer(original, 2, bits)], activations))
        pooled = Activation(x.mean((2, 3)), FIRST_LAST_BITS)
        units.append(Head(Layer(source.linear, None, FIRST_LAST_BITS), pooled))
    return [unit.to(mode.device) for unit in units]


def train_unit(mode, unit, x, y, recipe):
    """Adam towards the targets."""
    steps = recipe["steps"]
    layers = [module for module in unit.modules() if isinstance(module, Layer)]
    optimizer = mode.adam(parameter_groups(unit, layers, recipe["rates"]))
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    weight = 1 / (y.var() + 1e-8)
    forward = mode.compiled(unit)

    def step(inputs, targets):
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(forward(inputs), targets) * weight
        loss.backward()
        optimizer.step()

    # Rows of pixels first: a gathered batch then has the layout of its source.
    rows = [t.permute(0, 2, 3, 1) if t.dim() == 4 else t for t in (x, y)]
    batch = lambda indices: [t[indices].permute(0, 3, 1, 2) if t.dim() == 4 else t[indices] for t in rows]
    table = batch_table(len(x), steps, recipe["batch"]).to(mode.device)
    unit.train()
    run, running_live = None, None
    for t in range(steps):
        live_now = t < recipe["liveSteps"]
        if live_now != running_live:
            for layer in layers:
                layer.live = live_now
            # Where capturing takes steps of its own, they are steps of length 0.
            set_rates(optimizer, [0.0] * len(rates))
            run, running_live = mode.recorded(step, *batch(table[t])), live_now
        factor = min(1, (t + 1) / max(1, int(WARMUP * steps))) * (1 + math.cos(math.pi * t / steps)) / 2
        set_rates(optimizer, [rate * factor for rate in rates])
        run(*batch(table[t]))
    unit.eval()


def parameter_groups(unit, layers, rates):
    """Everything that learns; weights in units of their root mean square."""
    scales = [module.log_scale for module in unit.modules() if isinstance(module, Activation)]
    shifts = [p for layer in layers for p in (layer.gamma, layer.bias) if p is not None]
    return [
        *({"params": [layer.latent], "lr": rates["weights"] * rms(layer.latent)} for layer in layers),
        {"params": [layer.log_scale for layer in layers], "lr": rates["weightScales"]},
        {"params": scales, "lr": rates["activationScales"]},
        {"params": shifts, "lr": rates["biases"]},
    ]


def rms(tensor):
    """Root mean square."""
    return float(tensor.detach().square().mean().sqrt())


def set_rates(optimizer, rates):
    """Learning rates of the groups; a captured step reads them from the GPU."""
    for group, rate in zip(optimizer.param_groups, rates):
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def batch_table(count, steps, batch):
    """[steps, batch]: epoch after epoch in a new random order."""
    epochs = math.ceil(steps * batch / count)
    return torch.cat([torch.randperm(count) for _ in range(epochs)])[: steps * batch].view(steps, batch)


def outputs(function, x):
    """Results for many rows, some at a time."""
    with torch.no_grad():
        return torch.cat([function(part) for part in x.split(256)])


def error_of(unit, x, y):
    """Mean squared error of the deployed unit."""
    return float((outputs(unit.eval(), x) - y).square().mean())


def image_quantizer(images):
    """8 bits over the whole range of the images."""
    low = min(float(images.min()), 0)
    scale = (max(float(images.max()), 0) - low) / 255
    zero_point = round(-low / scale)
    return lambda x: ((x / scale).round() + zero_point).clamp(0, 255).sub(zero_point) * scale


def search_grid(weight, bits):
    """Logarithm of the scale, smallest and largest code of each output channel: the least error of 80 scales, below 8
    bits on the symmetric grid or its mirror image."""
    rows = weight.flatten(1)
    levels = 2**bits
    widest = rows.abs().amax(1).clamp(min=1e-8) / (levels / 2 - 0.5)
    best = torch.full_like(widest, math.inf)
    scale, offset = widest.clone(), torch.full_like(widest, levels / 2)
    for below in [levels / 2] + ([levels / 2 - 1] if bits < 8 else []):
        for candidate in range(1, 81):
            tried = widest * 1.1 * candidate / 80
            codes = (rows / tried[:, None]).round().clamp(-below, levels - 1 - below)
            error = (codes * tried[:, None] - rows).abs().pow(POWER).sum(1)
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, tried, scale)
            offset = torch.where(better, torch.full_like(offset, below), offset)
    shape = (-1, *[1] * (weight.dim() - 1))
    return scale.log().view(shape), (-offset).view(shape), (levels - 1 - offset).view(shape)


def search_scale(values, top):
    """The scale of an unsigned grid with the least error of 100."""
    values = values.flatten()[:: max(1, values.numel() // 100_000)]
    widest = values.max().clamp(min=1e-8) / top
    tried = [widest * k / 100 for k in range(1, 101)]
    errors = [((values / s).round().clamp(0, top) * s - values).abs().pow(POWER).sum() for s in tried]
    return tried[int(torch.stack(errors).argmin())]
