"""The options of `train/run.py`: model, samples, training."""

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from modeling_worldvla.configuration_worldvla import ACTION_CHOICES, LOSS_FORMS
from tokenization.choices_worldvla import require_choice
from train.argument_parsing import require_not_negative, require_positive, require_share
from train.learning_rates import require_schedule
from train.scores import greater_is_better
from train.windows import TAILS

LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
STOPS = ("max_loss_ratio", "early_stopping_patience")
LORA_OPTIONS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")


@dataclass
class ModelArguments:
    """Which model is trained: a new one of the given sizes, or an existing checkpoint."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or Hub id to start from; without it, random weights."}
    )
    dtype: str = field(
        default="float32", metadata={"help": "Of a checkpoint's weights: float32, or bfloat16 where they are frozen."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Train low-rank adapters of this rank; 0: all weights."})
    lora_alpha: int = field(default=32, metadata={"help": "Adapters count by this over their rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_targets: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "Layers with adapters: all-linear (every one but the head), or names such as q_proj."},
    )
    image_embeddings_from_codebook: bool = field(
        default=False,
        metadata={"help": "Embeddings of image tokens of a new model begin as a projection of the VQ-GAN's codebook."},
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "How attention is computed: sdpa, eager (short sequences on CPUs), flex_attention (GPUs)."},
    )
    hidden_size: int = field(default=256, metadata={"help": "Width of a new model."})
    intermediate_size: int = field(default=704, metadata={"help": "Width of the MLP of a new model."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers of a new model."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads of a new model."})
    max_position_embeddings: int = field(default=2048, metadata={"help": "Longest sequence of a new model."})
    swin_norm: bool = field(default=False, metadata={"help": "Norm after attention and MLP (Chameleon-34B's order)."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of attention weights."})
    use_action_attention_mask: bool = field(
        default=True, metadata={"help": "Actions of a chunk do not see each other (paper); false: plain causal."}
    )
    action_choice: str = field(
        default="likeliest",
        metadata={"help": "What the policy takes of a bin's distribution: likeliest (paper) or median."},
    )
    world_model_loss_weight: float = field(default=0.04, metadata={"help": "alpha: weight of the world model's loss."})
    z_loss_weight: float = field(default=0.0, metadata={"help": "Weight of the z-loss (official code: 1e-5)."})
    loss_form: str = field(
        default="paper",
        metadata={"help": "paper: by role, over the step; official: by class weights, per micro-batch."},
    )
    loss_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Most labelled tokens whose logits exist at once; by default 256 MiB of them."},
    )

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        require_choice("action choice", self.action_choice, ACTION_CHOICES)
        require_choice("attention", self.attn_implementation, ["sdpa", "eager", "flex_attention"])
        require_choice("form of the loss", self.loss_form, LOSS_FORMS)
        require_not_negative(self, "world_model_loss_weight", "z_loss_weight", "lora_rank")
        require_share(self, "attention_dropout", "lora_dropout")
        require_choice("dtype", self.dtype, ["float32", "bfloat16"])
        if self.image_embeddings_from_codebook and self.model_name_or_path is not None:
            raise ValueError(
                "`--image_embeddings_from_codebook` begins a new model, but `--model_name_or_path` brings its own "
                "embeddings. Leave one of them out."
            )
        if self.lora_rank and self.model_name_or_path is None:
            raise ValueError("`--lora_rank` adapts an existing model: give one as `--model_name_or_path`.")
        if self.dtype != "float32" and not self.lora_rank:
            raise ValueError(
                f"`--dtype {self.dtype}` would round small updates of the weights away. Keep float32 and compute in "
                "bfloat16 with `--bf16 true`, or train adapters with `--lora_rank`."
            )


@dataclass
class DataArguments:
    """Which samples are drawn from which data set."""

    tokens: str | None = field(
        default=None,
        metadata={"help": "Folder written by train/pretokenize.py; or give --demonstrations, tokenized on the fly."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set that the tokens must hold; others are refused. By default any."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the square images, in pixels, that the tokens must come from."}
    )
    n_obs_steps: int = field(default=2, metadata={"help": "M: frames that a policy sample shows."})
    chunk_size: int = field(default=5, metadata={"help": "K: actions that a policy sample asks for."})
    world_model_history: int = field(
        default=1, metadata={"help": "Most frame-action pairs a sample shows (paper: 1)."}
    )
    world_model_rounds: int = field(
        default=1, metadata={"help": "N: frames one after another that a world-model sample asks for (paper: 1)."}
    )
    tail: str = field(
        default="shorten",
        metadata={"help": "Chunks that reach past the end: shorten, pad (the last command again, not learned), drop."},
    )
    action_dead_band: list[float] = field(
        default_factory=list,
        metadata={
            "help": "One number per action dimension: commands of the expert nearer to 0 are learned as 0. For "
            "corrections that no camera shows the reason of. By default none."
        },
    )
    policy_samples: bool = field(default=True, metadata={"help": "Train the policy role."})
    world_model_samples: bool = field(default=True, metadata={"help": "Train the world-model role."})
    world_model_ratio: float = field(
        default=1.0, metadata={"help": "World-model samples per policy sample and epoch (paper: 1)."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Put the samples of a micro-batch into shared rows instead of padding each."}
    )
    packed_length: int = field(default=4096, metadata={"help": "Most tokens of a packed row."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_choice("tail", self.tail, TAILS)
        require_positive(
            self, "n_obs_steps", "chunk_size", "world_model_history", "world_model_rounds", "world_model_ratio",
            "packed_length",
        )  # fmt: skip
        if any(band < 0 for band in self.action_dead_band):
            raise ValueError(f"`--action_dead_band` holds numbers of at least 0, got {self.action_dead_band}.")
        if not (self.policy_samples or self.world_model_samples):
            raise ValueError("Nothing to train: both `--policy_samples` and `--world_model_samples` are off.")


@dataclass
class WorldVLATrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults that fit both roles."""

    output_dir: str = field(default="outputs/run", metadata={"help": "Folder for checkpoints and the final model."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads all columns."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW weight decay."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW beta2."})
    max_grad_norm: float = field(default=4.0, metadata={"help": "Gradient clipping."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are no numbers out of the log; they end training anyway."}
    )
    max_loss_ratio: float | None = field(
        default=None,
        metadata={"help": "Stop before a step whose loss exceeds the median of the last 100 so many times."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop when --metric_for_best_model was not better for so many evaluations."}
    )
    report_to: str = field(default="none", metadata={"help": "Trackers: tensorboard, wandb, trackio or none."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of an average of the weights, which is evaluated and exported; 0: none is kept."},
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "A resumed run counts on, for instance the patience of early stopping."}
    )
    rollout_every: int = field(
        default=0, metadata={"help": "Steps between two rollouts in the simulator during training; 0: none."}
    )
    rollout_suite: str | None = field(default=None, metadata={"help": "LIBERO suite of these rollouts."})
    rollout_task_ids: list[int] = field(default_factory=list, metadata={"help": "Its tasks; all when not given."})
    rollout_episodes: int = field(default=5, metadata={"help": "Episodes per task."})
    rollout_num_envs: int = field(default=1, metadata={"help": "Simulators at once; each needs about a core."})
    hub_strategy: str = field(default="end", metadata={"help": "With --push_to_hub: upload when training ends."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = greater_is_better(self.metric_for_best_model)
        super().__post_init__()
        require_share(self, "ema_decay")
        require_positive(self, *(name for name in STOPS if getattr(self, name) is not None))
        if self.early_stopping_patience and (self.metric_for_best_model is None or self.eval_strategy == "no"):
            raise ValueError(
                "`--early_stopping_patience` waits for a metric of evaluations, got none. Give "
                "`--metric_for_best_model eval_val_ind_loss_action`, say, and `--eval_strategy steps`."
            )
        for name in self.report_to or []:
            require_choice("tracker for `--report_to`:", name, [*INTEGRATION_TO_CALLBACK, "all", "none"])
        if self.save_only_model:
            raise ValueError("`--save_only_model` makes checkpoints that no run can go on from. Leave it out.")
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "`--train_sampling_strategy group_by_length` builds every sample to measure it, and a resumed run "
                "sees another order. Spare the padding with `--packing true` instead."
            )
        require_positive(self, "learning_rate", "rollout_episodes", "rollout_num_envs")
        require_not_negative(self, "rollout_every")
        if bool(self.rollout_every) != (self.rollout_suite is not None):
            raise ValueError("`--rollout_every` and `--rollout_suite` go together: give both, or neither.")
        if self.rollout_suite is not None:
            require_choice("suite", self.rollout_suite, LIBERO_SUITES)
        require_schedule(self)
        if self.label_smoothing_factor:
            raise ValueError(
                f"`--label_smoothing_factor {self.label_smoothing_factor}` would replace the two-role loss by the "
                "Trainer's own. Set `label_smoothing` in the model's config instead."
            )
