"""The options that choose a policy and say what it is made from. Loads no torch: simulator processes read it, too."""

from dataclasses import dataclass, field

from evaluation.libero_setup import choose

# Which options each policy cannot do without, by the policy's name.
NEEDED_OPTIONS: dict[str, tuple[str, ...]] = {
    "worldvla": ("checkpoint",),
}
POLICY_NAMES = tuple(NEEDED_OPTIONS)


@dataclass
class PolicyArguments:
    """Which policy acts, and with what."""

    policy: str = field(default="worldvla", metadata={"help": f"Who acts: {', '.join(POLICY_NAMES)}."})
    checkpoint: str | None = field(
        default=None, metadata={"help": "worldvla: folder or Hub id of a checkpoint with its processor."}
    )
    device: str = field(default="cpu", metadata={"help": "worldvla: torch device of the model and the VQ-GAN."})
    camera: str = field(default="agentview", metadata={"help": "worldvla: camera that the checkpoint was trained on."})
    n_obs_steps: int | None = field(
        default=None, metadata={"help": "worldvla: M, frames that are shown; by default the checkpoint's."}
    )
    chunk_size: int | None = field(default=None, metadata={"help": "worldvla: K; by default the checkpoint's."})
    n_action_steps: int | None = field(
        default=None, metadata={"help": "worldvla: actions of a chunk that are carried out; by default all."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "worldvla: whose action limits, where the checkpoint holds several."}
    )
    history_actions: bool = field(
        default=False,
        metadata={"help": "worldvla: show the commands between the frames, to checkpoints that were trained so."},
    )

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        choose("policy", self.policy, POLICY_NAMES)
        for name in NEEDED_OPTIONS[self.policy]:
            if not getattr(self, name):
                raise ValueError(f"Policy `{self.policy}` needs `--{name}`, which was not given.")
        for name in ("n_obs_steps", "chunk_size", "n_action_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`--{name}` must be larger than 0, got {value}.")
