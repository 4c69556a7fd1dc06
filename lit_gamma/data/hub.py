"""The Hugging Face hub: is it there, and if not, say so at once."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

from huggingface_hub import constants

from lit_gamma.errors import InputError

_PATIENCE = 3.0  # Seconds; the hub's own client would retry for some twenty.


def check_reachable(what: str, alternative: str) -> None:
    """Refuses to go on without the hub, unless offline mode says that the local cache is meant.

    Args:
        what: What is wanted from the hub.
        alternative: What to do without it.

    Raises:
        InputError: The hub does not answer within five seconds.
    """
    if constants.HF_HUB_OFFLINE:
        return
    outcome = ["no answer"]

    def ask() -> None:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=_PATIENCE).close()
            outcome[0] = ""
        except urllib.error.HTTPError:
            outcome[0] = ""  # It answers; what it says to the real request matters.
        except OSError as error:
            outcome[0] = str(getattr(error, "reason", error))

    # A thread, since the look-up of a host name knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    if outcome[0]:
        raise InputError(
            f"{what}: the hub {constants.ENDPOINT} cannot be reached ({outcome[0]}); offline, "
            f"{alternative}, or set HF_HUB_OFFLINE=1 if it is in the hub's local cache"
        )
