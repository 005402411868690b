"""The table of orders."""

from django.db import migrations, models

ID = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    """As `makemigrations` writes it."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Order",
            fields=(
                ("id", ID),
                ("number", models.IntegerField(unique=True)),
                ("shipped", models.IntegerField(default=0)),
            ),
        ),
    )
