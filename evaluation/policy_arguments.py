"""The options that choose a policy and say what it is made from. Loads no torch: simulator processes read it, too."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from evaluation.libero_setup import choose

REPLAY_KEYS = ("recorded", "number")


@dataclass(frozen=True)
class PolicyOptions:
    """What a policy is made from.

    Attributes:
        needed (`tuple[str, ...]`): options that must be given.
        understood (`tuple[str, ...]`): options that may be given. `camera` and `device` may stand with every policy.
    """

    needed: tuple[str, ...] = ()
    understood: tuple[str, ...] = ()


# What `--best_of` above 1 goes by.
RANKING_OPTIONS = ("goal", "progress", "temperature", "sampling_seed")
_SHARED = ("policy", "camera", "device")
OPTIONS = {
    "worldvla": PolicyOptions(
        ("checkpoint",),
        ("n_obs_steps", "chunk_size", "n_action_steps", "dataset_name", "history_actions", "best_of")
        + RANKING_OPTIONS,
    ),
    "http": PolicyOptions(("server",), ("n_action_steps", "server_timeout", "server_retries")),
    "expert": PolicyOptions(),
    "replay": PolicyOptions(("demonstrations",), ("replay_by",)),
    "replay_mean": PolicyOptions(("demonstrations",)),
    "random": PolicyOptions((), ("random_limit",)),
    "noop": PolicyOptions(),
}


@dataclass
class PolicyArguments:
    """Which policy acts, and with what."""

    policy: str = field(default="worldvla", metadata={"help": f"Who acts: {', '.join(OPTIONS)}."})
    checkpoint: str | None = field(
        default=None, metadata={"help": "worldvla: folder or Hub id of a checkpoint with its processor."}
    )
    device: str = field(default="cpu", metadata={"help": "torch device of the model and the VQ-GAN."})
    camera: str | None = field(
        default=None,
        metadata={"help": "Camera that the policy looks at; by default those it was trained on, else agentview."},
    )
    n_obs_steps: int | None = field(
        default=None, metadata={"help": "worldvla: M, frames that are shown; by default the checkpoint's."}
    )
    chunk_size: int | None = field(default=None, metadata={"help": "worldvla: K; by default the checkpoint's."})
    n_action_steps: int | None = field(
        default=None, metadata={"help": "worldvla, http: actions of a chunk that are carried out; by default all."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "worldvla: whose action limits, where the checkpoint holds several."}
    )
    history_actions: bool = field(
        default=False,
        metadata={"help": "worldvla: show the commands between the frames, to checkpoints that were trained so."},
    )
    best_of: int = field(
        default=1,
        metadata={
            "help": "worldvla: chunks among which is chosen by what the world model imagines of them; 1 is off. Needs "
            "`--goal` or `--progress`."
        },
    )
    goal: list[str] = field(
        default_factory=list,
        metadata={
            "help": "best_of: go by the nearness to goal pictures: folders of pictures named after the instruction, "
            "or demonstrations, of which the last frames count."
        },
    )
    progress: str | None = field(
        default=None, metadata={"help": "best_of: go by the score that `evaluation/fit_progress.py` put there."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "best_of: divides the logits where chunks are drawn; the first is greedy."}
    )
    sampling_seed: int = field(default=0, metadata={"help": "best_of: seed of the chunks that are drawn."})
    server: str | None = field(
        default=None, metadata={"help": "http: address of the policy server, http://host:port."}
    )
    server_timeout: float = field(default=60.0, metadata={"help": "http: seconds that an answer may take."})
    server_retries: int = field(
        default=3,
        metadata={"help": "http: attempts after the first, where no answer comes; then episodes are errors."},
    )
    demonstrations: list[str] = field(
        default_factory=list, metadata={"help": "replay, replay_mean: HDF5 files or folders of demonstrations."}
    )
    replay_by: str = field(
        default="recorded",
        metadata={
            "help": "replay: `recorded` finds the demonstration with the initial state, or the seed, of the episode; "
            "`number` takes demonstration k for state k."
        },
    )
    random_limit: float = field(default=1.0, metadata={"help": "random: largest size of a number of an action."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        choose("policy", self.policy, tuple(OPTIONS))
        choose("--replay_by", self.replay_by, REPLAY_KEYS)
        self._check_given()
        for name in ("n_obs_steps", "chunk_size", "n_action_steps", "best_of"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`--{name}` must be larger than 0, got {value}.")
        if not 0 < self.server_timeout < float("inf") or self.server_retries < 0:
            raise ValueError(
                "`--server_timeout` must be larger than 0 and `--server_retries` at least 0, got "
                f"{self.server_timeout} and {self.server_retries}."
            )
        if not 0 < self.random_limit <= 1:
            raise ValueError(
                f"`--random_limit` must lie in (0, 1], what the simulator takes; got {self.random_limit}."
            )
        self._check_ranking()

    def _check_ranking(self) -> None:
        """Refuse to rank without a score or by two, and options of a ranking that does not take place."""
        if self.best_of == 1:
            options = [option for option in fields(PolicyArguments) if option.name in RANKING_OPTIONS]
            given = [f"`--{option.name}`" for option in options if getattr(self, option.name) != _default(option)]
            if given:
                raise ValueError(
                    f"{', '.join(given)} would do nothing: one chunk leaves nothing to choose. Add `--best_of 4`, or "
                    "another number above 1."
                )
        elif bool(self.goal) == bool(self.progress):
            came = "both" if self.goal else "neither"
            raise ValueError(
                f"`--best_of {self.best_of}` goes by one score: `--goal` (pictures or demonstrations) or `--progress` "
                f"(a folder of `evaluation/fit_progress.py`), got {came}. Give one of the two."
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`--temperature` must be a number above 0, got {self.temperature}.")

    def _check_given(self) -> None:
        """Refuse options that are missing, and options of other policies: they would do nothing."""
        options = OPTIONS[self.policy]
        for name in options.needed:
            if not getattr(self, name):
                raise ValueError(f"Policy `{self.policy}` needs `--{name}`, which was not given.")
        for option in fields(PolicyArguments):
            if option.name in (*_SHARED, *options.needed, *options.understood):
                continue
            if getattr(self, option.name) != _default(option):
                users = [name for name, other in OPTIONS.items() if option.name in other.needed + other.understood]
                raise ValueError(
                    f"Policy `{self.policy}` has no option `--{option.name}`; it belongs to {', '.join(users)}. Leave "
                    "it out, or choose another `--policy`."
                )


def _default(option: Any) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
