import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors run faster, and more evenly, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def uncompiled_flex():
    """Flex attention without its compiler: the same rule, in seconds."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
