"""One PyTorch learner: in this process, or in one of its own, which imports no JAX.

    python -m benchmarks.torch_process JOB SEED DEVICE

The job is a pickled file of `torch_step.job_of`. Once it is loaded the process says so; then each
line that it reads is a number of steps, which it takes and answers with their seconds. It ends with
its input, and within a second when whoever started it is gone.
"""

import pickle
import sys
from pathlib import Path

from benchmarks import torch_brac, torch_ctmrl, torch_td3
from benchmarks.parent import die_with_parent
from benchmarks.torch_parts import Loop, torch

LEARNERS = {  # name of an algorithm: its learner, on the backbone of its own suite
    "gentle": torch_td3.Gentle,
    "focal": torch_brac.Focal,
    "ctmrl": torch_ctmrl.Ctmrl,
}
READY = "ready"


def loop_of(job, device, threads):
    """Returns the Loop of a job. Args: threads, of this process on a CPU."""
    torch.set_num_threads(threads)
    return Loop(LEARNERS[job["algorithm"]](job, device))


def main(argv):
    """Answers on standard output until standard input ends."""
    die_with_parent()
    path, seed, device = argv[1:]
    torch.manual_seed(int(seed))
    loop = loop_of(pickle.loads(Path(path).read_bytes()), device, 1)
    print(READY, flush=True)
    for line in sys.stdin:
        print(loop.run(int(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv)
