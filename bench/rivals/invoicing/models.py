"""An invoice and its number."""

from __future__ import annotations

from django.db import models


class Invoice(models.Model):  # type: ignore[misc]  # Django brings no types
    """An issued number."""

    id = models.UUIDField(primary_key=True)
    series = models.UUIDField()
    number = models.BigIntegerField()
    meta = models.JSONField()
    created_ms = models.BigIntegerField()

    class Meta:
        """A number is unique in its series."""

        constraints = (models.UniqueConstraint(fields=["series", "number"], name="invoice_number"),)

    def __str__(self) -> str:
        return str(self.number)
