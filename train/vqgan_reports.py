"""What a VQ-GAN run tells about itself: `log.jsonl`."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from train.arguments import VQGANArguments

LOG = "log.jsonl"


class RunLog:
    """Writes numbers to `log.jsonl` in the run's folder; only the main process does.

    Args:
        arguments (`VQGANArguments`): all options.
        accelerator (`Accelerator`): says which process is the main one.
    """

    def __init__(self, arguments: VQGANArguments, accelerator: Accelerator) -> None:
        self.output = Path(arguments.output_dir)
        self.accelerator = accelerator

    def write(self, line: dict[str, Any]) -> None:
        """Append one line.

        Args:
            line (`dict[str, Any]`): numbers by name, `step` among them.
        """
        if self.accelerator.is_main_process:
            with (self.output / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
