"""A process that works for this one and answers through a pipe; used for simulators, one environment in each.

Processes are spawned, so that nothing of the parent (threads, CUDA, an open simulator) is inherited. The target must
be a function at the top of a module; that module and the main script are all that the new process imports.
"""

import multiprocessing
from collections.abc import Callable
from typing import Any


class WorkerEnded(RuntimeError):
    """A worker process is gone.

    Attributes:
        exit_code (`int`, *optional*): of the process; negative codes are signals.
    """

    def __init__(self, exit_code: int | None, what: str = "The process", advice: str = "") -> None:
        self.exit_code = exit_code
        meaning = " (-9: killed, often because memory ran out)" if exit_code == -9 else ""
        super().__init__(f"{what} ended with code {exit_code}{meaning}.{advice}")


class WorkerProcess:
    """A spawned process and the pipe to it.

    Args:
        target (`Callable`): called in the process as `target(connection, *arguments)`.
        arguments: picklable.

    Attributes:
        connection (`multiprocessing.connection.Connection`): this end of the pipe, for `wait` and `poll`.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=target, args=(child, *arguments), daemon=True)
        self.process.start()
        child.close()

    def send(self, message: Any) -> None:
        """Send a message.

        Args:
            message: picklable.

        Raises:
            WorkerEnded: if the process is gone.
        """
        try:
            self.connection.send(message)
        except OSError:
            raise self._ended() from None

    def receive(self) -> Any:
        """Wait for the next message.

        Returns:
            What the process sent.

        Raises:
            WorkerEnded: if the process ended before it had sent one whole.
        """
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> WorkerEnded:
        self.process.join(timeout=10)
        return WorkerEnded(self.process.exitcode)

    def dismiss(self, timeout: float = 10) -> None:
        """Ask the process to end by sending None, wait, and kill it where it does not.

        Args:
            timeout (`float`): seconds to wait.
        """
        try:
            self.connection.send(None)
        except OSError:
            pass  # it is gone already
        self.process.join(timeout=timeout)
        self.stop()

    def stop(self) -> None:
        """Kill the process, if it lives, and close the pipe."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
