"""CuPy backend: a thread per four-vector, in float64."""

from .. import _cuda

THREADS = 256


def run(p4, out):
    kernel = _cuda.kernel("kinematics/kernel.cu", "kinematics", REAL=_cuda.REAL[p4.dtype.name])
    n = p4.shape[1]
    _cuda.launch(kernel, -(n // -THREADS), THREADS, *_cuda.inputs(*p4), n, out)


def backward(gradient, p4, grad_p4):
    kernel = _cuda.kernel("kinematics/kernel.cu", "kinematics_gradient", REAL=_cuda.REAL[p4.dtype.name])
    n = p4.shape[1]
    _cuda.launch(kernel, -(n // -THREADS), THREADS, *_cuda.inputs(gradient, *p4), n, grad_p4)
