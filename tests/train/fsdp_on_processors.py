"""train/run.py with FSDP2 on a machine without accelerators: accelerate shards on those alone unless it is told so.

Give it to `accelerate launch --config_file train/recipes/accelerate/fsdp2.yaml` in the place of train/run.py.
"""

import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType

sys.path[0] = str(Path(__file__).resolve().parents[2])

from train.run import main  # noqa: E402

plain_init = PartialState.__init__


def take_processors_for_accelerators(self, *args, **kwargs):
    plain_init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = take_processors_for_accelerators

if __name__ == "__main__":
    main(sys.argv[1:])
