"""Version 1 of Tenure's schema."""

from __future__ import annotations

from django.db import migrations

from tenure.contrib.django.migrating import RunTenure


class Migration(migrations.Migration):
    """Makes the tables of Tenure, unless `tenure migrate` has."""

    initial = True
    dependencies = ()
    operations = (RunTenure(),)
