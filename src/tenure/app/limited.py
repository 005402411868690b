"""An application as a caller sees it who has rights to some queues."""

from __future__ import annotations

import copy

from tenure.app.app import Tenure
from tenure.app.core import Noun
from tenure.jobs.queue_rights import Patterns


def limited_to(app: Tenure, queues: Patterns | None) -> Tenure:
    """Return `app` for callers who may use these queues only; `app` itself if None.

    Its verbs show and change only these queues. Verbs that cannot be limited raise Forbidden.
    """
    if queues is None:
        return app
    limited = copy.copy(app)
    limited.core = app.core.limited_to(queues)
    for name, noun in vars(app).items():
        if isinstance(noun, Noun):
            setattr(limited, name, type(noun)(limited.core))
    return limited
