"""THE table: op -> backend -> "module:function", the torch schema's arguments, gradient arguments, paper."""

from typing import Any

TABLE: dict[str, dict[str, Any]] = {
    "kinematics": {
        "backends": {"numba": "kinematics.numba_cpu:run"},
        "backward": {"numba": "kinematics.numba_cpu:backward"},
        "arguments": {"p4": "Tensor"},
        "returns": "Tensor",
        "gradients": ("p4",),
        "paper": "FastJet, arXiv:1111.6097 (rapidity)",
    },
    "segment": {
        "backends": {"numba": "segment.numba_cpu:run"},
        "backward": {"numba": "segment.numba_cpu:backward"},
        "arguments": {"values": "Tensor", "offsets": "Tensor"},
        "returns": "Tensor",
        "gradients": ("values",),
        "paper": "Deep Sets, arXiv:1703.06114, Theorem 2; Energy Flow Networks, arXiv:1810.05165, eqs. (1.1) and (1.2)",
    },
    "pad": {
        "backends": {"numba": "pad.numba_cpu:run"},
        "backward": {},
        "arguments": {"values": "Tensor", "offsets": "Tensor", "length": "int", "truncate": "bool"},
        "returns": "(Tensor, Tensor)",
        "gradients": (),
        "paper": "",
    },
    "pixelate": {
        "backends": {"numba": "pixelate.numba_cpu:run"},
        "backward": {},
        "arguments": {
            "pt": "Tensor",
            "eta": "Tensor",
            "phi": "Tensor",
            "offsets": "Tensor",
            "kind": "Tensor?",
            "npix": "int",
            "half_width": "float",
            "center": "str",
            "rotate": "bool",
            "flip": "bool",
            "normalize": "bool",
            "wrap": "bool",
            "channels": "str[]",
            "dtype": "str",
        },
        "returns": "Tensor",
        "gradients": (),
        "paper": "Macaluso and Shih, arXiv:1803.00107, section 2; Komiske et al., arXiv:1612.01551 (colours)",
    },
    "knn": {
        "backends": {"numba": "knn.numba_cpu:run"},
        "backward": {},
        "arguments": {"x": "Tensor", "k": "int", "offsets": "Tensor?", "periodic": "int?"},
        "returns": "Tensor",
        "gradients": (),
        "paper": "ParticleNet, arXiv:1902.08570, section 3; Batcher, AFIPS 32 (1968) 307 (sorting networks)",
    },
}
