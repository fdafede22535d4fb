"""Recurrent networks that read an image row by row."""

from collections.abc import Sequence

import torch
from torch import nn

from .arguments import image, one_of, whole
from .layers import linear

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class RecurrentLayer(nn.Module):
    """One layer of recurrent units: `[b, t, n_in]` to the hidden states of all steps, `[b, t, hidden]`.

    With `a = W x + w` from the input and `u = U h` from the hidden state, both split into the cell's gates:

    - rnn: `h <- tanh(a + u)`
    - gru, gates r, z, n (arXiv:1406.1078, in PyTorch's form): `h <- (1 - z) n + z h` with
      `r = sigmoid(a_r + u_r)`, `z = sigmoid(a_z + u_z)`, `n = tanh(a_n + r u_n)`
    - lstm, gates i, f, g, o: `c <- sigmoid(a_f + u_f) c + sigmoid(a_i + u_i) tanh(a_g + u_g)`,
      `h <- sigmoid(a_o + u_o) tanh(c)`

    It is written out because `nn.GRU` and its like have no rule for `torch.func.vmap` and no second
    derivative under cuDNN. There is one bias per gate: a second one would add exactly flat directions.
    """

    def __init__(self, n_in: int, hidden: int, cell: str) -> None:
        super().__init__()
        self.cell, self.hidden = cell, hidden
        self.from_input = nn.Linear(n_in, GATES[cell] * hidden)
        self.from_hidden = nn.Linear(hidden, GATES[cell] * hidden, bias=False)
        for gate in self.from_input.weight.chunk(GATES[cell]):
            nn.init.xavier_uniform_(gate)
        for gate in self.from_hidden.weight.chunk(GATES[cell]):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.from_input.bias)
        if cell == "lstm":
            nn.init.ones_(self.from_input.bias[hidden : 2 * hidden])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden states `[b, t, hidden]` of inputs `[b, t, n_in]`, from h = c = 0."""
        h = c = x.new_zeros(len(x), self.hidden)
        states = []
        for a in self.from_input(x).unbind(1):
            u = self.from_hidden(h)
            if self.cell == "rnn":
                h = torch.tanh(a + u)
            elif self.cell == "gru":
                (a_r, a_z, a_n), (u_r, u_z, u_n) = a.chunk(3, dim=-1), u.chunk(3, dim=-1)
                z = torch.sigmoid(a_z + u_z)
                n = torch.tanh(a_n + torch.sigmoid(a_r + u_r) * u_n)
                h = (1 - z) * n + z * h
            else:
                i, f, g, o = (a + u).chunk(4, dim=-1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1)


class Recurrent(nn.Module):
    """Recurrent layers over the rows of an image and a Linear layer on the last hidden state."""

    def __init__(self, layers: Sequence[RecurrentLayer], readout: nn.Linear) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.readout = readout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[b, classes]` of images `[b, c, h, w]`."""
        rows = x.transpose(1, 2).flatten(2)  # [b, c, h, w] -> [b, h, c * w]
        return self.readout(self.layers(rows)[:, -1])


def recurrent(
    input_shape: Sequence[int], classes: int, cell: str = "gru", hidden: int = 32, layers: int = 1
) -> Recurrent:
    """Return a recurrent network that reads an image as the sequence of its rows, from the top.

    One step of the sequence is one row with its channels side by side, `c * w` numbers; the logits are linear
    in the last layer's hidden state after the last row (`RecurrentLayer` has the equations). Weights from the
    input and of the readout are initialized by Glorot's rule, those from the hidden state are orthogonal,
    each gate by itself; biases are 0, but 1 for the forget gate of the lstm.

    Args:
        input_shape: `(channels, height, width)` of one image.
        classes: number of logits.
        cell: rnn, gru or lstm.
        hidden: units per layer.
        layers: number of recurrent layers.

    Returns:
        A module from `[b, *input_shape]` to logits `[b, classes]`.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    channels, _, width = image(input_shape)
    classes, hidden, layers = whole("classes", classes), whole("hidden", hidden), whole("layers", layers)
    one_of("cell", cell, tuple(GATES))
    sizes = [channels * width] + [hidden] * (layers - 1)
    return Recurrent([RecurrentLayer(n_in, hidden, cell) for n_in in sizes], linear(hidden, classes, "identity"))
