"""Matrix products, convolutions and an LSTM, checked against PyTorch's own float64."""
import torch
import torch.nn.functional as F

from protocol import attempt, check_close, inputs, measure

BATCH = 64


def run_products(job, mode):
    """Measures what the job asks for."""
    for matmul in job["matmuls"]:
        attempt(matmul["case"], lambda: multiply(job, mode, matmul))
    for convolution in job["convolutions"]:
        attempt(convolution["forward"], lambda: convolve(job, mode, convolution))
    if "lstm" in job:
        attempt(job["lstm"]["backward"], lambda: recur(job, mode, job["lstm"]))


def multiply(job, mode, matmul):
    """y = a b"""
    size = matmul["size"]
    a, b = (torch.from_numpy(inputs(size * size, seed)).view(size, size) for seed in (4, 5))
    left, right = mode.put(a), mode.put(b)
    # Kept by name: a captured graph writes to the same tensor every time.
    results = {}
    product = mode.compiled(torch.mm)

    def multiply_once():
        results["y"] = product(left, right)

    run = mode.recorded(multiply_once)
    run()
    check_close("product", results["y"].cpu(), a.double() @ b.double(), mode.tolerance)
    measure(matmul["case"], job["samples"], run, mode.finish, matmul["operations"])


def convolve(job, mode, convolution):
    """3x3, one pixel of padding: forward alone, and forward with both gradients."""
    channels, size = convolution["channels"], convolution["size"]
    shape = (BATCH, channels, size, size)
    pixels = BATCH * channels * size * size
    x = torch.from_numpy(inputs(pixels, 1)).view(shape)
    w = torch.from_numpy(inputs(9 * channels**2, 2)).view(channels, channels, 3, 3)
    dy = torch.from_numpy(inputs(pixels, 3)).view(shape)
    expected = both_ways(F.conv2d, x.double(), w.double(), dy.double())
    results = {}
    on_device = [mode.put(tensor) for tensor in (x, w, dy)]
    conv2d = mode.compiled(F.conv2d)

    def forward():
        with torch.no_grad():
            results["y"] = conv2d(on_device[0], on_device[1], padding=1)

    def both():
        results["all"] = both_ways(conv2d, *on_device)

    run_forward, run_both = mode.recorded(forward), mode.recorded(both)
    run_forward()
    run_both()
    check_close("y", results["y"].cpu(), expected[0], mode.tolerance)
    for name, found, wanted in zip(("y", "dx", "dw"), results["all"], expected):
        check_close(name, found.cpu(), wanted, mode.tolerance)
    operations = convolution["operations"]
    measure(convolution["forward"], job["samples"], run_forward, mode.finish, operations)
    measure(convolution["backward"], job["samples"], run_both, mode.finish, 3 * operations)


def both_ways(conv2d, x, w, dy):
    """y, dL/dx and dL/dw."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = conv2d(x, w, padding=1)
    return (y.detach(), *torch.autograd.grad(y, (x, w), dy))


def recur(job, mode, case):
    """An LSTM over a batch of sequences: forward alone, and forward with all gradients."""
    features, hidden, steps = case["inputs"], case["hidden"], case["steps"]
    x = torch.from_numpy(inputs(BATCH * steps * features, 15)).view(BATCH, steps, features)
    w = torch.from_numpy(inputs(4 * hidden * (features + hidden), 16, 0.15)).view(4 * hidden, -1)
    b = torch.from_numpy(inputs(4 * hidden, 17))
    dy = torch.from_numpy(inputs(BATCH * steps * hidden, 18)).view(BATCH, steps, hidden)
    mask = torch.zeros(BATCH, 1, 1)
    mask[list(case["checked"])] = 1
    dy = dy * mask

    def network(dtype):
        lstm = torch.nn.LSTM(features, hidden, batch_first=True).to(dtype)
        # Rows of the gates i, o, f, g; PyTorch has i, f, g, o.
        order = torch.cat([torch.arange(g * hidden, (g + 1) * hidden) for g in (0, 2, 3, 1)])
        with torch.no_grad():
            lstm.weight_ih_l0.copy_(w[order, :features])
            lstm.weight_hh_l0.copy_(w[order, features:])
            lstm.bias_ih_l0.copy_(b[order])
            lstm.bias_hh_l0.zero_()
        return lstm

    def all_ways(lstm, x, dy):
        x = x.detach().requires_grad_()
        y = lstm(x)[0]
        return (y.detach(), *torch.autograd.grad(y, (x, *lstm.parameters()), dy))

    expected = all_ways(network(torch.float64), x.double(), dy.double())
    lstm = network(torch.float32).to(mode.device)
    on_device = mode.put(x), mode.put(dy)
    results = {}

    def forward():
        with torch.no_grad():
            results["y"] = lstm(on_device[0])[0]

    def both():
        results["all"] = all_ways(lstm, *on_device)

    run_forward, run_both = mode.recorded(forward), mode.recorded(both)
    run_forward()
    run_both()
    names = ("y", "dx", "dw of inputs", "dw of states", "db", "db of states")
    for name, found, wanted in zip(names, results["all"], expected):
        check_close(name, found.cpu(), wanted, mode.tolerance)
    operations = case["operations"]
    measure(case["forward"], job["samples"], run_forward, mode.finish, operations)
    measure(case["backward"], job["samples"], run_both, mode.finish, 3 * operations)
