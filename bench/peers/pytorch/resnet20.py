"""ResNet-20 for CIFAR (He et al. 2016) with parameter-free shortcuts, and what is measured on it."""
import os

import numpy
import torch
import torch.ao.quantization as quantization
import torch.nn as nn
import torch.nn.functional as F

FloatFunctional = torch.ao.nn.quantized.FloatFunctional


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.add = FloatFunctional()
        self.relu2 = nn.ReLU()

    def forward(self, x):
        """[N, C, H, W]"""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(self.add.add(y, shortcut(x, y.shape[1])))

    def fuse(self, fuse_modules):
        """Joins each convolution with what follows it."""
        fuse_modules(self, [["conv1", "bn1", "relu1"], ["conv2", "bn2"]], inplace=True)


def shortcut(x, channels):
    """x, or every second pixel of it between channels of zeros."""
    if x.shape[1] == channels:
        return x
    border = (channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, border, border))


class ResNet20(nn.Module):
    """Parameters have the names of the ONNX file's initializers."""

    def __init__(self):
        super().__init__()
        self.quantize, self.dequantize = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(*(Block(32 if i else 16, 32, 1 if i else 2) for i in range(3)))
        self.layer3 = nn.Sequential(*(Block(64 if i else 32, 64, 1 if i else 2) for i in range(3)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        """[N, 3, 32, 32] to logits"""
        x = self.stem(self.quantize(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.dequantize(self.linear(x.mean((2, 3))))

    def stem(self, x):
        """What precedes the blocks."""
        return self.relu(self.bn1(self.conv1(x)))

    @property
    def blocks(self):
        """The nine residual blocks."""
        return [*self.layer1, *self.layer2, *self.layer3]

    def fuse(self, fuse_modules):
        """Joins each convolution with what follows it."""
        fuse_modules(self, [["conv1", "bn1", "relu"]], inplace=True)
        for block in self.blocks:
            block.fuse(fuse_modules)


def trained_network(job, mode):
    """The user's network."""
    folder = os.path.join(job["folder"], "weights")
    arrays = {name[: -len(".npy")]: numpy.load(os.path.join(folder, name)) for name in os.listdir(folder)}
    network = ResNet20()
    wanted = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"the ONNX file has no initializer named {missing[0]}")
    network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in wanted}, strict=False)
    return network.to(mode.device, memory_format=mode.layout)


def folded_network(job, mode):
    """The user's network for inference, batch norm folded into the convolutions."""
    network = trained_network(job, mode).eval()
    network.fuse(quantization.fuse_modules)
    return network


def images_of(job, mode, name):
    """[N, 3, 32, 32]: a file of images, which are stored channels last."""
    rows = numpy.load(os.path.join(job["folder"], f"{name}.npy"))
    return mode.put(torch.from_numpy(rows).permute(0, 3, 1, 2))


def labels_of(job, mode, name):
    """[N]: class numbers of a file of images."""
    labels = numpy.load(os.path.join(job["folder"], f"{name}_labels.npy"))
    return torch.from_numpy(labels.astype(numpy.int64)).to(mode.device)
