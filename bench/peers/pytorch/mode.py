"""The ways PyTorch can do the same work: on the processor, and on a GPU launched one by one, compiled or as a graph."""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mode:
    """Where and how."""

    device: str
    """cpu or cuda"""
    strategy: str
    """eager: every kernel launched from Python; compile: torch.compile; graph: a step captured as one CUDA graph"""
    tf32: bool
    """Whether products of float32 may round their factors to 10 bits."""

    @property
    def name(self):
        """As it stands on the command line."""
        return "cpu" if self.device == "cpu" else f"cuda {self.strategy}{' tf32' if self.tf32 else ''}"

    @property
    def compiles(self):
        """Whether the first steps take long because they compile."""
        return self.strategy == "compile"

    @property
    def layout(self):
        """Memory layout of activations and filters: what is faster where."""
        # cuDNN's float32 kernels without tensor cores want channels first.
        return torch.channels_last if self.device == "cpu" or self.tf32 else torch.contiguous_format

    @property
    def tolerance(self):
        """Largest error of float32 sums of up to 65,536 products below 1; with TF32 every product is rounded."""
        return 0.5 if self.tf32 else 2e-2

    def prepare(self, threads):
        """Sets up this process."""
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = True
        if self.compiles:
            from torch._dynamo import config  # PyTorch 1 has none

            # Every kind of block is compiled, for batch norm of both kinds.
            config.cache_size_limit = 64

    def put(self, tensor):
        """A tensor where the work is done, in the layout of the mode."""
        tensor = tensor.to(self.device)
        return tensor.contiguous(memory_format=self.layout) if tensor.dim() == 4 else tensor

    def compiled(self, function):
        """A function or module, compiled if the mode is to compile."""
        return torch.compile(function) if self.compiles else function

    def adam(self, groups):
        """Adam with beta2 = 0.99; what a captured step reads lies on the GPU, the learning rates too."""
        if self.strategy != "graph":
            return torch.optim.Adam(groups, betas=(0.9, 0.99), foreach=True)
        groups = [{**group, "lr": torch.tensor(group["lr"], device=self.device)} for group in groups]
        return torch.optim.Adam(groups, betas=(0.9, 0.99), foreach=True, capturable=True)

    def recorded(self, step, *examples):
        """A step, captured if the mode is to capture.

        The result takes tensors like the examples; what the step leaves in tensors made beforehand is renewed by every
        call. Capturing runs the step a few times.
        """
        if self.strategy != "graph":
            return step
        arguments = [example.clone() for example in examples]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                step(*arguments)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(*arguments)

        def replay(*values):
            for argument, value in zip(arguments, values):
                argument.copy_(value)
            graph.replay()

        return replay

    def finish(self):
        """Waits for all work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def modes():
    """All that this machine and this version of PyTorch can do."""
    found = [Mode("cpu", "eager", False)]
    if torch.cuda.is_available():
        strategies = ["eager"] + (["compile"] if hasattr(torch, "compile") else []) + ["graph"]
        found += [Mode("cuda", strategy, tf32) for tf32 in (False, True) for strategy in strategies]
    return found
