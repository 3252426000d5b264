import pytest

from benchmarks.evaluation import BenchmarkArguments, InstantPolicy, compare
from evaluation.policies import ChunkRequest


def test_the_evaluation_is_measured():
    """A quick simulator; the bounds are those of a machine that does much else, not the benchmark's targets."""
    arguments = BenchmarkArguments(tasks=1, episodes=2, steps=12, chunk_size=4, pace=0.5)
    overhead, speed, batch = compare(arguments)
    assert 0 <= overhead.ratio < 0.9 and overhead.target == "under 0.05"
    assert 0.2 < speed.ratio < 2.5 and speed.target == "at least 1.6"
    assert (batch.ratio, batch.holds) == (1, True)
    assert int(batch.result.split()[0]) in range(3, 7)  # 3 chunks an episode, together or one by one


def test_batches_are_counted():
    policy = InstantPolicy(BenchmarkArguments(chunk_size=3))
    for name in "abc":
        policy.begin(name, "stand still")
    assert policy.predict_chunks([ChunkRequest("a", []), ChunkRequest("b", [])])[1].shape == (3, 7)
    policy.end("c")
    policy.predict_chunks([ChunkRequest("a", [])])
    assert policy.asked / policy.could_ask == pytest.approx(3 / 5)
