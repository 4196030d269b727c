"""The step that is due, of the kind of which it can be done: what one waits for holds up no other."""

from datetime import datetime

from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life, Step
from signer.authority.slots import KINDS
from signer.authority.state import AuthorityState
from signer.errors import SignerError


class Attempts:
    """Does steps of `life`, and knows which could not be done."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._failed: dict[str, str] = {}

    @property
    def notes(self) -> list[str]:
        """For people: why the last attempt at a kind's step failed."""
        return [f"{kind}: {why}" for kind, why in self._failed.items()]

    async def next(self, state: AuthorityState, acks: Acks, now: datetime) -> tuple[Step, AuthorityState] | None:
        """The first step that is due and can be done, and the state after it: where a CA above certifies nothing, JWT
        keys are replaced all the same. None where none is due. Raises SignerError where none can be done.
        """
        failed: SignerError | None = None
        for kind in KINDS:
            step = self._life.due(state, acks, now, (kind,))
            try:
                found = None if step is None else (step, await self._life.do(state, step, now))
            except SignerError as error:
                self._failed[kind] = f"it failed to {step.action if step else 'go on'}: {error.reason}: {error}"
                failed = failed or error
                continue
            self._failed.pop(kind, None)
            if found is not None:
                return found
        if failed is not None:
            raise failed
        return None
