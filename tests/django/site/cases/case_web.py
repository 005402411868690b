"""The users of the project beside which the dashboard and the API are served."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User

from tenure.contrib.django.web import _name_of
from tenure.jobs.names import check_name

NAMED = {
    "ann": "ann",
    "j.doe": "j.doe",
    "ann@example.com": "ann-example.com:7",
    "Иван": "user:7",
    "Émile": "mile:7",
    "-bob": "bob:7",
    ".bob.": "bob:7",
    "j..doe": "j.doe:7",
    f"{'a' * 63}.doe": f"{'a' * 63}:7",
}


@pytest.mark.parametrize(("username", "named"), NAMED.items())
def test_users_with_some_names_were_answered_500(username: str, named: str) -> None:
    """Every name that Django gives a user: `authorize` has to return a name of Tenure."""
    User.username_validator(username)
    user: Any = User(pk=7, username=username)
    assert check_name(_name_of(user), "user", "authorize") == named
