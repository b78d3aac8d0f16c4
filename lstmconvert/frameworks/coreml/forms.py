"""What Core ML's reader and writer share."""

from __future__ import annotations

from types import MappingProxyType

NAME = "coreml"
FORMS = MappingProxyType({"coreml": "network", "coreml_package": "program"})
"""What each container holds."""
LAYOUTS = MappingProxyType(
    {
        ("network", "uniDirectionalLSTM"): "lstm",
        ("network", "biDirectionalLSTM"): "lstm",
        ("network", "gru"): "gru",
        ("network", "simpleRecurrent"): "rnn",
        ("program", "lstm"): "lstm_program",
        ("program", "gru"): "gru_program",
        ("program", "rnn"): "rnn_program",
    }
)
NO_CLIP = 500.0
"""coremltools writes this bound of the cell state, or a larger one, where no clip was asked for."""
WRITTEN_FOR_NONE = 50000.0
"""The bound that is written where there is none, as coremltools does: a state grows by at most 1 a step."""
DEFAULT_CLIP = 50.0
"""What a cellClipThreshold of 0 stands for, and the bound of every pre-activation."""
