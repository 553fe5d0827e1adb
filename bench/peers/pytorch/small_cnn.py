"""The small CNN of cases.ts: a training step with plain SGD, checked by the losses of its first steps."""
import torch
import torch.nn.functional as F

from protocol import attempt, check_close, inputs, measure

BATCH = 64


def run_small_cnn(job, mode):
    """Measures it if the job asks for it."""
    if "smallCnn" in job:
        attempt(job["smallCnn"]["case"], lambda: train(job, mode))


class SmallCnn(torch.nn.Module):
    """3x3 convolutions with ReLU, the mean over the pixels, a linear layer; no biases."""

    def __init__(self, network):
        super().__init__()
        self.strides = [layer["stride"] for layer in network["layers"]]
        filters = [filter_of(layer, seed) for seed, layer in enumerate(network["layers"], 11)]
        self.filters = torch.nn.ParameterList([torch.nn.Parameter(w) for w in filters])
        classes, features = network["classes"], network["layers"][-1]["outChannels"]
        linear = torch.from_numpy(inputs(classes * features, 14, (6 / features) ** 0.5))
        self.linear = torch.nn.Parameter(linear.view(classes, features))

    def forward(self, x):
        """[N, 3, H, W] to logits"""
        for w, stride in zip(self.filters, self.strides):
            x = F.relu(F.conv2d(x, w, stride=stride, padding=1))
        return F.linear(x.mean((2, 3)), self.linear)


def filter_of(layer, seed):
    """[out, in, 3, 3]"""
    inside, outside = layer["inChannels"], layer["outChannels"]
    values = inputs(9 * inside * outside, seed, (6 / (9 * inside)) ** 0.5)
    return torch.from_numpy(values).view(outside, inside, 3, 3)


def train(job, mode):
    """One step of SGD on the same images again and again."""
    case = job["smallCnn"]
    network = case["network"]
    size = network["size"]
    images = torch.from_numpy(inputs(BATCH * 3 * size * size, 10)).view(BATCH, 3, size, size)
    x, labels = mode.put(images), (torch.arange(BATCH) % network["classes"]).to(mode.device)
    model = SmallCnn(network).to(mode.device, memory_format=mode.layout)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    forward = mode.compiled(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=network["learningRate"], foreach=True)
    loss = torch.zeros((), device=mode.device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        value = F.cross_entropy(forward(x), labels)
        value.backward()
        loss.copy_(value.detach())
        optimizer.step()

    run = mode.recorded(step)
    # Capturing a graph takes steps of its own.
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start):
            parameter.copy_(value)
    found = []
    for _ in range(network["checkedSteps"]):
        run()
        found.append(float(loss))
    check_close("loss", found, case["losses"], 1e-2 if mode.tf32 else 1e-5)
    measure(case["case"], job["samples"], run, mode.finish)
