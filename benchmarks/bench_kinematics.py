"""pt, rapidity, eta, phi and mass of every constituent."""

import torch

from cases import OPS
from fasttag import _baselines
from fasttag_kernels.kinematics import kinematics, reference
from timing import check, local, torch_threads


def in_torch(p4):
    px, py, pz, e = p4
    pt2 = px * px + py * py
    pt = pt2.sqrt()
    m2 = ((e + pz) * (e - pz) - pt2).clamp_(min=0)
    rapidity = torch.copysign(((e + pz.abs()) / (pt2 + m2).sqrt()).log_(), pz)
    return pt, rapidity, torch.asinh(pz / pt), torch.atan2(py, px), m2.sqrt_()


def test_kinematics(compare, problem):
    p = problem("reference")
    check("kinematics", tuple(kinematics(p.p4)), reference.kinematics(p.p4), OPS["kinematics"].scale(p.p4))
    tensor = torch.from_numpy(p.p4)
    others = {
        "NumPy": local(lambda: _baselines.kinematics(p.p4), p),
        "torch": local(lambda: in_torch(tensor), p),
    }
    with torch_threads(1):
        compare(
            "kinematics", "reference", "five quantities", p, lambda: kinematics(p.p4), others, bytes=36 * p.constituents
        )
