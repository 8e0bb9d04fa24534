"""A runner with a script: it answers the commands it was told of, in their order, and fails on any other."""

from collections.abc import Sequence
from dataclasses import dataclass

from aoe_core.errors import AoECsiError
from aoe_core.host.contracts import Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One command and how it ends."""

    argv: tuple[str, ...]
    code: int = 0
    stdout: str = ""
    stderr: str = ""
    stdin: bytes | None = None
    raises: AoECsiError | None = None
    """Raised instead of an end, as `Runner.run` does."""


class ScriptedRunner:
    """`Runner` on a script. `finish` at the end proves that every command came."""

    def __init__(self, *script: Expected) -> None:
        self._script = list(script)

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Finished:
        """Answer the next command of the script. Raises: AssertionError when it is another one."""
        if timeout_s <= 0:
            raise AssertionError(f"{' '.join(argv)} was run without a limit")
        if not self._script:
            raise AssertionError(f"nothing more was expected, and {' '.join(argv)} was run")
        expected = self._script.pop(0)
        if (tuple(argv), stdin) != (expected.argv, expected.stdin):
            raise AssertionError(f"expected {expected.argv} with {expected.stdin!r}, got {tuple(argv)} with {stdin!r}")
        if expected.raises is not None:
            raise expected.raises
        return Finished(
            argv=tuple(argv), code=expected.code, stdout=expected.stdout, stderr=expected.stderr, seconds=0.0
        )

    def finish(self) -> None:
        """Prove that the whole script was run. Raises: AssertionError."""
        if self._script:
            raise AssertionError(f"{len(self._script)} expected commands never came, first {self._script[0].argv}")
