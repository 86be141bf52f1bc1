"""`loader_child.py START TIMES`: jet images through DataLoader workers that use threads, against the same without."""

import sys
import warnings

import numpy as np
import torch

import fasttag

warnings.simplefilter("ignore")  # of fork with threads, of more workers than cores


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        p4 = torch.from_numpy(np.random.default_rng(i).normal(size=(4, 50)))
        jets = fasttag.Jets(p4, torch.arange(0, 51, 10))
        return fasttag.pixelate(jets, npix=8, threads=2)


if __name__ == "__main__":
    start, times = sys.argv[1:]
    expected = [Images()[i] for i in range(8)]  # the pool of threads is there before the workers are
    for _ in range(int(times)):
        loader = torch.utils.data.DataLoader(Images(), batch_size=None, num_workers=2, multiprocessing_context=start)
        found = list(loader)
        assert len(found) == 8 and all(map(torch.equal, found, expected))
    print(start, times)
