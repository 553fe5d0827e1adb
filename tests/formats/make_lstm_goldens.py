# Makes lstm_goldens.json: LSTM networks as PyTorch exports them, with inputs and outputs.
# Made with PyTorch 1.13.1; run: python3 make_lstm_goldens.py > lstm_goldens.json
import base64, io, json, warnings
import torch
from torch import nn

warnings.filterwarnings("ignore")
torch.manual_seed(0)


class Network(nn.Module):
    def __init__(self, hidden, layers, bidirectional, batch_first, end):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.lstm = nn.LSTM(6, hidden, layers, batch_first=batch_first, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), 4)
        self.batch_first, self.end = batch_first, end

    def forward(self, x):
        x = self.embed(x)
        y, (h, _) = self.lstm(x if self.batch_first else x.transpose(0, 1))
        if self.end == "states":
            return self.head(torch.cat([h[-2], h[-1]], 1))
        if self.end == "state":
            return self.head(h[-1])
        if self.end == "mean":
            return self.head(y.mean(1 if self.batch_first else 0))
        if self.end == "last":
            return self.head(y[:, -1] if self.batch_first else y[-1])
        return self.head(y if self.batch_first else y.transpose(0, 1))


def entry(hidden, layers, bidirectional, batch_first, end, dynamic, opset):
    network = Network(hidden, layers, bidirectional, batch_first, end).eval()
    x = torch.randn(3, 5, 3)
    stream = io.BytesIO()
    axes = {"x": {0: "N"}} if dynamic else None
    torch.onnx.export(network, x, stream, opset_version=opset, input_names=["x"],
                      output_names=["y"], dynamic_axes=axes)
    return {
        "file": base64.b64encode(stream.getvalue()).decode(),
        "x": [round(v, 9) for v in x.flatten().tolist()],
        "y": [round(v, 9) for v in network(x).flatten().tolist()],
    }


goldens = {
    "two layers, samples first, last step": entry(8, 2, False, True, "last", True, 13),
    "both directions, samples first, all steps": entry(5, 1, True, True, "all", True, 17),
    "steps first, fixed batch, final state": entry(8, 2, False, False, "state", False, 11),
    "both directions twice, both final states": entry(4, 2, True, False, "states", True, 13),
    "both directions, steps first, mean": entry(8, 1, True, False, "mean", True, 9),
}
print(json.dumps(goldens, indent=1))
