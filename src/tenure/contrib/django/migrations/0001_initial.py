"""Version 1 of Tenure's schema."""

from __future__ import annotations

from django.db import migrations
from django.db.migrations.state import ModelState

from tenure.contrib.django.databases import RunTenure
from tenure.contrib.django.models import Job, Transition

UNMANAGED = [ModelState.from_model(model) for model in (Job, Transition)]
"""The models of today. Django never changes the database for them, so their past is not needed."""


class Migration(migrations.Migration):
    """Makes the tables of Tenure, unless `tenure migrate` has."""

    initial = True
    dependencies = ()
    operations = (
        RunTenure(),
        *(
            migrations.CreateModel(one.name, list(one.fields.items()), one.options, one.bases)
            for one in UNMANAGED
        ),
    )
