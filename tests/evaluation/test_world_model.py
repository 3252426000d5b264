import numpy as np
import pytest
import torch

from evaluation.world_model import fit_frames, imagine_episode, imagine_tokens, reconstruct


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5).eval()  # wide weights: answers that depend on the prompt


def test_episodes_imagined_together_are_those_imagined_alone(model, processor, stored):
    frames, actions = (np.stack([stored[name][part][:3] for name in stored]) for part in (0, 1))
    first, action_ids = processor.encode_images(list(frames[:, 0])), torch.as_tensor(processor.encode_actions(actions))
    numbers = []
    together = imagine_tokens(model, processor, first, action_ids, numbers.append)
    assert together.shape == (2, 3, 2, 2) and numbers == [1, 2, 3]
    alone = [imagine_tokens(model, processor, first[[row]], action_ids[[row]])[0] for row in range(2)]
    assert torch.equal(together, torch.stack(alone)) and not torch.equal(together[0], together[1])


@pytest.mark.parametrize("history", [1, 2, 3])
def test_an_imagined_episode_is_one_prediction_after_another(model, processor, stored, history, monkeypatch):
    monkeypatch.setattr(model.config, "world_model_history", history)
    frames, actions = stored["demo_1"]
    numbers = []
    found = imagine_episode(model, processor, frames[0], actions, on_frame=numbers.append)

    tokens = [processor.encode_images([frames[0]])]
    for step in range(len(actions)):
        shown, known = [grid[0].numpy() for grid in tokens][-history:], actions[: step + 1][-history:]
        inputs = processor(shown, actions=known, role="world_model", return_tensors="pt")
        tokens.append(model.predict_next_frame(**inputs))
    expected = np.stack([np.asarray(picture) for picture in processor.decode_images(torch.cat(tokens))])
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (5, 32, 32, 3) and found.dtype == np.uint8
    assert numbers == [1, 2, 3, 4]
    # The comparison means something: frames change from step to step, and with the commands.
    assert len(np.unique(found.reshape(5, -1), axis=0)) >= 3
    assert (imagine_episode(model, processor, frames[0], actions[::-1]) != found).any()


def test_the_first_imagined_frame_is_the_reconstruction(model, processor, stored):
    frames, actions = stored["demo_0"]
    found = imagine_episode(model, processor, frames[0], actions[:1])
    np.testing.assert_array_equal(found[:1], reconstruct(processor, frames[:1]))
    assert (reconstruct(processor, frames[:1]) != reconstruct(processor, frames[1:2])).any()


def test_frames_of_the_right_size_stay_as_they_are(processor, stored):
    np.testing.assert_array_equal(fit_frames(processor, stored["demo_0"][0]), stored["demo_0"][0])


def test_other_frames_are_cropped_and_scaled(processor):
    wide = np.random.default_rng(1).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_frames(processor, wide), wide[:, :, 16:48])
    large = np.empty((1, 64, 64, 3), np.uint8)
    large[:] = (10, 100, 200)
    found = fit_frames(processor, large)
    assert found.shape == (1, 32, 32, 3) and found.dtype == np.uint8
    assert (found == (10, 100, 200)).all()
