"""What the card of a folder says, what it refuses, and what it never invents."""

import json
import sys

import pytest
from huggingface_hub import ModelCard

from modeling_worldvla import WorldVLAModel
from modeling_worldvla.card_results_worldvla import read_results
from modeling_worldvla.card_sections_worldvla import count_parameters, describe_training
from modeling_worldvla.model_card_worldvla import BEGIN, END, build_model_card, load_card, write_model_card
from modeling_worldvla.share_checkpoint import main

from .conftest import snippets

POLICY = {
    "suite": "libero_10",
    "episodes": 3,
    "successes": 2,
    "interval_95": [0.2077, 0.939],
    "settings": {
        "task_ids": [0],
        "episodes": 3,
        "seed": 7,
        "output_dir": "/home/me/x",
        "checkpoint_fingerprint": "f" * 64,
    },
}
IMAGINED = {
    "num_frames": 116,
    "psnr_db": {"imagined": 22.1917, "reconstruction": 26.6552, "copy_last_frame": 20.907},
    "settings": {"episode": 1, "start": 0, "demonstrations": "/home/me/demos", "commit": "c0ffee" * 4},
}
RECONSTRUCTED = {
    "settings": {"vq_model_hash": "a" * 64, "cameras": ["agentview", "wrist"], "frames": 500},
    "groups": {"all": {"whole": {"frames": 500, "episodes": 9, "psnr": {"mean": 25.91, "interval": [25.6, 26.1]}}}},
    "codebook": {"codes": 1024, "used": 900, "perplexity": 512.25},
}
MEASURED = {
    "num_windows": 20,
    "num_episodes": 10,
    "horizons": {
        "10": {
            "whole picture": {
                "imagined": {
                    "psnr": {"mean": 23.6601, "interval": [23.239, 24.153], "windows": 20},
                    "changed_token_accuracy": {"mean": 0.2057, "interval": [0.178, 0.234], "windows": 20},
                },
                "copy_last_frame": {"psnr": {"mean": 24.6056, "interval": [24.2, 25.0], "windows": 20}},
                "copy_last_reconstruction": {"psnr": {"mean": 22.4764, "interval": [22.3, 22.7], "windows": 20}},
                "reconstruction": {"psnr": {"mean": 25.7655, "interval": [25.4, 26.1], "windows": 20}},
            }
        }
    },
    "settings": {
        "temperature": 0.7,
        "top_p": None,
        "sampling_seed": 3,
        "demonstrations": ["/home/me/held_out"],
        "num_frames": [10],
        "regions": [],
        "checkpoint_fingerprint": "b" * 64,
        "commit": "ad402d3",
    },
}
DATA = {
    "dataset_name": "libero_goal",
    "camera": "agentview",
    "grid": [8, 8],
    "sources": [{"file": f"task{number}_demo.hdf5", "episodes": 2} for number in range(12)],
    "splits": {"train": 22, "val_ind": 2},
    "steps": 2839,
    "clipped_action_values": 3,
}
LOG = [
    {"loss": 2.0, "step": 20, "epoch": 0.5},
    {"eval_val_ind_accuracy_action": 0.25, "step": 400},
    {"eval_val_ind_accuracy_action": 0.75, "eval_val_ind_runtime": 4.5, "step": 800, "epoch": 3.25},
]


def installed(snippet):
    """The snippet with the classes that are installed here; test_push_to_hub.py runs it as it stands, elsewhere."""
    return snippet.replace(", trust_remote_code=True", "")


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_a_bare_folder_says_what_it_is_and_that_nothing_was_evaluated(checkpoint):
    card = build_model_card(checkpoint)
    assert card.text.count("Not evaluated.") == 3 and card.text.count("Not recorded in the files") == 2
    assert not card.data.eval_results and "model-index" not in str(card)
    for row in (
        f"| parameters | {count_parameters(checkpoint) / 1e6:,.1f}M, float32 |",
        "| layers x width | 2 x 32 |",
        "| actions in a chunk (K) | 5, 7 numbers each |",
        "| image size | 32 x 32 pixels |",
        "| action limits | made_up |",
        "| attention | action mask |",
    ):
        assert row in card.text
    assert "Intended use" in card.text and "Apache License 2.0" in card.text
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "robotics",
        "tags": ["worldvla", "vision-language-action", "world-model", "robotics"],
    }


def test_parameters_are_counted(checkpoint, make_model):
    assert count_parameters(checkpoint) == make_model().num_parameters()
    (checkpoint / "model.safetensors").unlink()
    assert "| parameters | not recorded |" in build_model_card(checkpoint).text


def test_numbers_come_with_sample_size_interval_command_and_commit(checkpoint):
    write(checkpoint / "evaluation", policy=POLICY, imagined=IMAGINED, reconstructed=RECONSTRUCTED)
    write(checkpoint, data_card=DATA, training_log=LOG)
    card = ModelCard(str(build_model_card(checkpoint, "me/tiny", datasets=["me/demos"])))
    for part in (
        "| success | 2/3 (66.7 %, 95 % interval 20.8 to 93.9 %) |",
        "| initial states | the benchmark's 0 to 2 of each task |",
        "`python evaluation/run.py --checkpoint me/tiny --output_dir results/ --task_ids 0 --episodes 3 --seed 7`; "
        "weights `ffffffffffff`, commit of the code not recorded.",
        "116 frames of 1 recorded episode; always the likeliest codes.",
        "| imagined | 22.19 | not recorded |",
        "weights not recorded, commit of the code `c0ffeec0ffee`.",
        "| whole | psnr | 25.910 | 25.600 to 26.100 | 500 | 9 |",
        "900 of 1024 codes used, perplexity 512.2.",
        "--cameras agentview wrist --frames 500`; weights `aaaaaaaaaaaa`",
        "| data set | libero_goal |",
        "| files | 12: task0_demo, task1_demo, ",
        "task9_demo and 2 more |",
        "| episodes | train 22, val_ind 2 |",
        "800 optimizer steps, 3.25 epochs.",
        "| val_ind_accuracy_action | 0.7500 |",
        "--suite libero_goal --output_dir results/",
    ):
        assert part in card.text, part
    assert "Not evaluated" not in card.text and "/home/me" not in str(card)
    assert card.data.datasets == ["me/demos"] and card.data.model_name == "tiny"
    values = {(result.task_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert values == {
        ("Policy in LIBERO", "success_rate"): 0.6667,
        ("World model", "psnr"): 22.192,
        ("VQ-GAN", "psnr"): 25.91,
    }
    samples = {result.task_name: result.metric_args for result in card.data.eval_results}
    assert samples["Policy in LIBERO"] == {"episodes": 3, "task_ids": [0]}
    assert samples["VQ-GAN"] == {"frames": 500, "episodes": 9, "part": "whole"}


def test_later_results_of_the_world_model_bring_intervals(tmp_path):
    later = IMAGINED | {"num_episodes": 4, "psnr_db_interval_95": {"imagined": [21.0, 23.5]}}
    write(tmp_path, later=later)
    text = read_results(tmp_path / "later.json", ".").text
    assert "116 frames of 4 recorded episodes;" in text and "| imagined | 22.19 | 21.00 to 23.50 |" in text


def test_imagined_episodes_of_a_run_are_told_from_recorded_ones(tmp_path):
    of_a_run = IMAGINED | {"num_episodes": 2, "settings": {"rollouts": "/home/me/results", "episode": 0}}
    write(tmp_path, imagined=of_a_run)
    results = read_results(tmp_path / "imagined.json", "me/tiny")
    assert "116 frames of 2 played episodes;" in results.text
    assert "`python evaluation/imagine.py --checkpoint me/tiny --rollouts results/`" in results.text
    assert results.entries[0].dataset_name == "Played episodes"


def test_the_world_model_measured_over_many_windows(tmp_path):
    write(tmp_path, measured=MEASURED)
    results = read_results(tmp_path / "measured.json", "me/tiny")
    assert results.task == "World model"
    for part in (
        "20 windows of 10 recorded episodes, frame after frame from real ones and the actions that were carried out; "
        "codes drawn at temperature 0.7.",
        "| 10 | whole picture | psnr | 23.660 | 23.239 to 24.153 | 22.476 | 25.765 |",
        "| 10 | whole picture | changed_token_accuracy | 0.206 | 0.178 to 0.234 |  |  |",
        "`python evaluation/measure_world_model.py --checkpoint me/tiny --demonstrations held_out/ --output_dir "
        "world_model/ --num_frames 10 --temperature 0.7 --sampling_seed 3`; weights `bbbbbbbbbbbb`, commit of the "
        "code `ad402d3`.",
    ):
        assert part in results.text, part
    assert "/home/me" not in results.text
    psnr, changed = results.entries
    assert (psnr.metric_type, psnr.metric_value, changed.metric_value) == ("psnr", 23.6601, 0.2057)
    assert psnr.metric_args == {"frames": 10, "windows": 20, "episodes": 10, "part": "whole picture"}
    assert psnr.metric_name == (
        "psnr of 10 imagined frames, whole picture (20 windows; codes drawn at temperature 0.7)"
    )


@pytest.mark.parametrize(
    ("chosen", "told", "flags"),
    [
        ({}, "; always the likeliest codes.", ""),
        ({"temperature": None, "top_p": None, "sampling_seed": 0}, "; always the likeliest codes.", ""),
        (
            {"temperature": 1.0, "top_p": 0.9, "sampling_seed": 0},
            "; codes drawn at temperature 1, top_p 0.9.",
            " --temperature 1.0 --top_p 0.9 --sampling_seed 0",
        ),
    ],
)
def test_the_card_says_how_codes_were_chosen(tmp_path, chosen, told, flags):
    for settings, command in (
        (IMAGINED["settings"] | chosen, "--output imagined.mp4 --episode 1 --start 0"),
        ({"rollouts": "/home/me/results"} | chosen, "--rollouts results/"),
    ):
        write(tmp_path, imagined=IMAGINED | {"settings": settings})
        text = read_results(tmp_path / "imagined.json", ".").text
        assert told in text and f"{command}{flags}`" in text


def test_the_card_says_which_weights_training_went_on_from(tmp_path):
    for name, told in (("me/tiny", "me/tiny"), ("outputs/tiny", "outputs/tiny"), ("/home/me/tiny", "tiny")):
        text = describe_training(LOG, {"model": {"model_name_or_path": name}})
        assert text.startswith(f"800 optimizer steps, 3.25 epochs, on from the weights `{told}`.")
    assert describe_training(LOG, {"model": {"model_name_or_path": None}}).startswith(
        "800 optimizer steps, 3.25 epochs."
    )


def test_given_files_are_read_instead_of_those_found(checkpoint, tmp_path, caplog):
    write(checkpoint / "evaluation", policy=POLICY, settings={"suite": "libero_10"})
    (checkpoint / "evaluation" / "broken.json").write_text("{")
    write(tmp_path, imagined=IMAGINED)
    assert "2/3" in build_model_card(checkpoint).text
    assert "settings.json` holds no results" in caplog.text and "broken.json` holds no results" in caplog.text
    given = build_model_card(checkpoint, evaluation_files=[tmp_path / "imagined.json"]).text
    assert "2/3" not in given and "22.19" in given and given.count("Not evaluated.") == 2
    assert build_model_card(checkpoint, evaluation_files=[]).text.count("Not evaluated.") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"The results in `.*file.json` are no JSON: .*Run the evaluation again"),
        ("[1]", "holds no results that a card can show. Give summary.json of evaluation/run.py, the JSON file of"),
        ('{"suite": "x"}', "holds no results that a card can show"),
        (json.dumps(POLICY | {"successes": 4}), "4 of 3 episodes cannot succeed. Run the evaluation again"),
        (json.dumps(POLICY | {"successes": "two"}), "Expected a finite number, got 'two'. Run the evaluation"),
        (json.dumps(POLICY | {"interval_95": [0.1, float("nan")]}), "Expected a finite number, got nan"),
        (
            json.dumps(IMAGINED | {"psnr_db": {}}),
            "looks like the JSON file of .*, but is not whole: KeyError 'imagined'",
        ),
        (
            json.dumps(RECONSTRUCTED | {"groups": {}}),
            "looks like results.json of .*, but is not whole: KeyError 'all'",
        ),
        (
            json.dumps(MEASURED | {"horizons": {"10": {"whole picture": {}}}}),
            "looks like results.json of evaluation/measure_world_model.py, but is not whole: KeyError 'imagined'",
        ),
    ],
)
def test_damaged_results_are_refused(tmp_path, content, message):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "file.json", ".")


def test_names_in_results_cannot_break_the_table(tmp_path):
    write(tmp_path, odd=POLICY | {"suite": "a|b\nc"})
    assert "| LIBERO suite | a\\|b c |" in read_results(tmp_path / "odd.json", ".").text


def test_weights_that_derive_from_others_keep_their_licence(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    write_model_card(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(config | {"derived_from": "Alibaba-DAMO-Academy/WorldVLA"}))
    for card in (build_model_card(checkpoint), load_card(write_model_card(checkpoint))):
        assert card.data.license == "other" and card.data.base_model == "Alibaba-DAMO-Academy/WorldVLA"
        assert card.data.license_link.endswith("/Alibaba-DAMO-Academy/WorldVLA")
        assert "The weights are not ours to license" in card.text


def test_a_decoder_alone_is_not_said_to_act(checkpoint, make_model):
    make_model().model.save_pretrained(checkpoint / "decoder")
    card = build_model_card(checkpoint / "decoder", "me/decoder")
    assert "decoder without its head" in card.text and "predict_action_chunk" not in card.text
    (snippet,) = snippets(card.text)
    namespace = {}
    exec(installed(snippet).replace("me/decoder", str(checkpoint / "decoder")), namespace)
    assert type(namespace["model"]).__name__ == WorldVLAModel.__name__


def test_damaged_cards_are_refused(checkpoint):
    path = write_model_card(checkpoint)
    whole = path.read_text()
    for text in (
        whole.replace(END, ""),
        whole.replace(BEGIN, ""),
        whole + BEGIN + END,
        whole.replace(BEGIN, "X").replace(END, BEGIN).replace("X", END),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="marker lines were damaged: .* Write each on a line of its own"):
            write_model_card(checkpoint)
    for metadata in ("a: [", "- a", "model-index: [{x: 1}]"):
        path.write_text(f"---\n{metadata}\n---\n# Mine\n")
        with pytest.raises(ValueError, match="metadata between the first two `---` .*README.md` cannot be read"):
            write_model_card(checkpoint)
    path.write_text("# Mine, without metadata\n")
    write_model_card(checkpoint)
    assert path.read_text().count("# Mine, without metadata") == 1 and "license: apache-2.0" in path.read_text()


def test_of_several_data_sets_the_snippet_names_one(checkpoint, monkeypatch):
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    settings["action_limits"]["another"] = {"low": [0.0] * 7, "high": [1.0] * 7}
    (checkpoint / "processor_config.json").write_text(json.dumps(settings))
    card = build_model_card(checkpoint)
    (snippet,) = snippets(card.text)
    assert snippet.count('dataset_name="made_up"') == 3 and 'checkpoint = "."' in snippet
    monkeypatch.chdir(checkpoint)
    namespace = {}
    exec(installed(snippet), namespace)
    assert namespace["actions"].shape == (1, 5, 7) and namespace["picture"].size == (32, 32)


def test_of_several_cameras_the_snippet_shows_all_and_imagines_the_first(checkpoint, monkeypatch):
    card = {"dataset_name": "made_up", "cameras": ["agentview", "wrist"], "camera": "agentview+wrist", "sources": []}
    card |= {"splits": {"train": 3}, "steps": 12, "grid": [2, 2], "clipped_action_values": 0}
    (checkpoint / "data_card.json").write_text(json.dumps(card))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"n_obs_steps": 1}))
    (snippet,) = snippets(build_model_card(checkpoint).text)
    assert "oldest moment first, of each agentview, then wrist" in snippet and "images=[frames[-2]]" in snippet
    monkeypatch.chdir(checkpoint)
    namespace = {}
    exec(installed(snippet), namespace)
    assert len(namespace["frames"]) == 2
    assert namespace["actions"].shape == (1, 5, 7) and namespace["picture"].size == (32, 32)


def test_the_command_writes_and_uploads(checkpoint, hub, tmp_path, monkeypatch, caplog):
    write(tmp_path, policy=POLICY)
    command = ["share_checkpoint", "--folder", str(checkpoint), "--evaluation_files", str(tmp_path / "policy.json")]
    monkeypatch.setattr(sys, "argv", command)
    with caplog.at_level("INFO"):
        main()
        assert f"model card in {checkpoint / 'README.md'}" in caplog.text and "uploaded" not in caplog.text
        assert "2/3" in (checkpoint / "README.md").read_text() and not hub.commits
        options = ["--datasets", "me/demos", "--push_to_hub", "me/tiny", "--private", "true"]
        monkeypatch.setattr(sys, "argv", [*command[:3], *options])
        main()
    path = checkpoint / "README.md"
    assert "2/3" not in path.read_text() and hub.card == path.read_text() and "me/demos" in hub.card
    assert hub.created == [("me/tiny", {"private": True, "exist_ok": True})] and "uploaded to me/tiny" in caplog.text
