"""Makes compat.npz: what weaver-core 0.5.3 and EnergyFlow 1.4.0 say of a few jets. Run by a Python that has both."""

from pathlib import Path

import numpy as np
import torch
from energyflow.utils import ptyphims_from_p4s
from weaver.nn.model.ParticleNet import knn
from weaver.nn.model.ParticleTransformer import pairwise_lv_fts_pp

HERE = Path(__file__).parent
with np.load(HERE / "jets64.npz") as f:
    rows = [f["p4"][a : a + 24] for a in f["offsets"][:3]]  # E, px, py, pz
padded = np.zeros((3, 4, 28), np.float32)
padded[:, :, :24] = np.stack(rows)[:, :, [1, 2, 3, 0]].transpose(0, 2, 1)
x = torch.from_numpy(padded)
points = torch.stack([torch.asinh(x[:, 2] / x[:, :2].norm(dim=1)), torch.atan2(x[:, 1], x[:, 0])], 1).double()
points[:, :, 24:] = 1e9
np.savez_compressed(
    HERE / "compat.npz",
    padded=padded,
    pairs=pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2), num_outputs=5).numpy(),
    points=points.numpy(),
    neighbours=knn(points, 7).numpy().astype(np.int16),
    hadronic=ptyphims_from_p4s(np.stack(rows), phi_ref="hardest"),
)
